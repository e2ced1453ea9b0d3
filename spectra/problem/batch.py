"""A batch of examples: trees of tensors that are cut and joined example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.problem.model_inputs import Structured, divisible
from spectra.problem.outputs import tuple_like
from spectra.wording import counted


@dataclass(frozen=True)
class Batch:
    """Some examples of a data set: the model's inputs, the targets, and their indices.

    Inputs and targets are a tensor, or tuples, lists and mappings of tensors. The first dimension of a tensor counts
    the examples, and so do the entries of a list; entries of a tuple and values of a mapping belong together.

    Attributes:
        inputs: what the model is called with: a tuple gives positional arguments, a mapping gives keywords.
        targets: what the loss is called with besides the output; None if there are no targets.
        indices: the indices (b,) of the examples in the data set, int64.
    """

    inputs: Any
    targets: Any
    indices: Tensor

    def __post_init__(self):
        if isinstance(self.inputs, Mapping):  # a BatchEncoding and the like
            object.__setattr__(self, "inputs", dict(self.inputs))

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Batch({counted(len(self), 'example')})"

    def part(self, cut: slice | Tensor) -> Batch:
        """Take some of the examples, as a batch of their own.

        Args:
            cut: a slice, which gives views, or a tensor of indices or booleans.

        Returns:
            The batch of these examples.

        Raises:
            SpectraError: the first dimension of a tensor is not the number of examples.
        """
        count = len(self)
        return Batch(slice_tree(self.inputs, cut, count), slice_tree(self.targets, cut, count), self.indices[cut])


def slice_tree(tree: Any, cut: slice | Tensor, count: int) -> Any:
    """Take the examples of a cut from every tensor and list of a tree; `count` is the number before the cut.

    Raises SpectraError if one has a length other than `count`.
    """
    if isinstance(tree, Structured):
        return tree.part(cut)
    if isinstance(tree, Tensor) and not divisible(tree):
        raise SpectraError("`data`: a batch with a sparse or nested tensor cannot be cut; give smaller batches")
    if isinstance(tree, Mapping):
        return {key: slice_tree(value, cut, count) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple_like(tree, (slice_tree(value, cut, count) for value in tree))
    if not isinstance(tree, Tensor | list):
        return tree
    if isinstance(tree, Tensor) and not tree.ndim:
        return tree
    if len(tree) != count:
        raise SpectraError(
            f"`data`: a batch of {count} examples holds a tensor or list of length {len(tree)}; give one entry for "
            "each example"
        )
    if isinstance(tree, Tensor) or isinstance(cut, slice):
        return tree[cut]
    places = cut.nonzero().flatten() if cut.dtype == torch.bool else cut
    return [tree[place] for place in places.tolist()]


def join_trees(trees: Sequence[Any]) -> Any:
    """Put the examples of trees of one structure together: tensors and lists one after another."""
    first = trees[0]
    if isinstance(first, Structured):
        return first.joined(trees[1:])
    if isinstance(first, Mapping):
        return {key: join_trees([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        return tuple_like(first, (join_trees(parts) for parts in zip(*trees, strict=True)))
    if isinstance(first, list):
        return [entry for tree in trees for entry in tree]
    return torch.cat(list(trees)) if isinstance(first, Tensor) and first.ndim else first
