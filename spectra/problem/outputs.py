"""Choose the tensor of a model's output that the loss is applied to, from nested dicts, tuples and dataclasses.

A user's loss may take the whole output. Its tensors are then concatenated into rows, one per example, so that matrices
in output space see one tensor; a `Layout` restores the output from the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spectra.errors import SpectraError
from spectra.quoting import foreign

SHOWN = 8  # entries that an error message lists


def choose_output(output: Any, key: str | None = None, trees: bool = False) -> Any:
    """The output itself, the only tensor among its entries, or the entry that a dotted path such as `0.logits` names.

    Each part of the path is a key, the name of an attribute, or an index (`0`, `-1`). For models of transformers,
    `logits` is chosen. With `trees`, an output of several tensors in tuples, lists and mappings is returned unchanged.
    Raises SpectraError if no tensor is found, or the choice is ambiguous.
    """
    if key is not None:
        return follow(output, key)
    if isinstance(output, Tensor):
        return output
    tensors = [value for value in entries(output).values() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    if trees and tensors_of(output):
        return output
    if is_of_transformers(output) and isinstance(logits := entries(output).get("logits"), Tensor):
        return logits
    way_out = "name one with `output`, or wrap the model to return one"
    if trees:  # of a class that PyTorch does not take apart, as distributions are
        way_out = "name one with `output`, or write the loss as a function of (model, batch), which calls the model"
    raise SpectraError(
        f"`model`: its output is of type {type(output).__name__}{contents(output)}, not one tensor; {way_out}"
    )


def is_of_transformers(output: Any) -> bool:
    """Whether an output is of the type that models of transformers return, whatever the package's version."""
    return any(kind.__name__ == "ModelOutput" for kind in type(output).__mro__)


def follow(output: Any, key: str) -> Tensor:
    """The tensor at a dotted path in the output. Raises SpectraError if there is none."""
    if isinstance(output, Tensor):
        raise SpectraError(f"`output` {foreign(key)}: the model's output is one tensor {shape(output)}; omit `output`")
    value, path = output, "the model's output"
    for part in key.split("."):
        found = entries(value)
        if isinstance(value, Sequence) and part.removeprefix("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        elif part in found:
            value = found[part]
        else:
            text = f"has no entry {foreign(part)!r}{contents(value)}; name one of its entries"
            raise SpectraError(f"`output` {foreign(key)}: {path} {text}")
        path = f"its entry {foreign(part)}"
    if not isinstance(value, Tensor):
        raise SpectraError(
            f"`output` {foreign(key)}: {path} is of type {type(value).__name__}{contents(value)}, not a tensor; name a "
            "tensor, with dots for nested entries"
        )
    return value


def entries(value: Any) -> dict[str, Any]:
    """The entries of a container by the names that a path may use; empty for a tensor or a string."""
    if isinstance(value, Tensor | str):
        return {}
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, Sequence):
        names = getattr(value, "_fields", map(str, range(len(value))))  # a named tuple has _fields
        return dict(zip(names, value, strict=True))
    names = getattr(type(value), "__dataclass_fields__", None) or getattr(value, "__dict__", {})
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


def contents(value: Any) -> str:
    """The entries of a container with their shapes, for an error message."""
    shown = [f"{foreign(name)} {shape(entry)}" for name, entry in entries(value).items()]
    more = ", ..." if len(shown) > SHOWN else ""
    return f" (it has {', '.join(shown[:SHOWN])}{more})" if shown else ""


def shape(value: Any) -> str:
    """The shape of a tensor, or the type of anything else, as text."""
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Layout:
    """The structure of an output of several tensors, which restores it from rows (b, K)."""

    structure: pytree.TreeSpec
    leaves: tuple[Any, ...]  # the shape and dtype of a tensor, as a pair; any other leaf as it is
    by_example: bool  # whether the first dimension of all tensors counts the examples, and is left out of the shapes

    def restored(self, rows: Tensor) -> Any:
        """Restore the output from rows (b, K)."""
        shapes = [leaf[0] for leaf in self.leaves if isinstance(leaf, tuple)]
        parts = iter(rows.split([prod(shape) for shape in shapes], dim=1))
        first = (len(rows),) if self.by_example else ()
        values = [
            as_kind(next(parts).reshape((*first, *leaf[0])), leaf[1]) if isinstance(leaf, tuple) else leaf
            for leaf in self.leaves
        ]
        return pytree.tree_unflatten(values, self.structure)


def flattened(output: Any, count: int) -> tuple[Tensor, Layout]:
    """Concatenate the tensors of an output for `count` examples into rows (count, K); return these and the layout.

    If the first dimension of a tensor is not `count`, there is one row (1, K). Integers are converted to floating
    point, and complex numbers to pairs of real ones.
    """
    values, structure = pytree.tree_flatten(output)
    tensors = [value for value in values if isinstance(value, Tensor)]
    by_example = all(tensor.ndim and len(tensor) == count for tensor in tensors)
    real = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    dtype = next(tensor.dtype for tensor in real if tensor.is_floating_point())
    rows = torch.cat([tensor.to(dtype).reshape(count if by_example else 1, -1) for tensor in real], dim=1)
    shapes = iter([tuple(tensor.shape[1:] if by_example else tensor.shape) for tensor in real])
    leaves = tuple((next(shapes), value.dtype) if isinstance(value, Tensor) else value for value in values)
    return rows, Layout(structure, leaves, by_example)


def as_kind(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert real numbers to a dtype, rounded for integers; for complex dtypes the last dimension holds pairs."""
    if dtype.is_complex:
        return torch.view_as_complex(values.contiguous()).to(dtype)
    return values.to(dtype) if dtype.is_floating_point else values.detach().round().to(dtype)


def tuple_like(tree: Any, values: Iterable[Any]) -> tuple[Any, ...]:
    """The values as a tuple, or as a named tuple of the type of `tree`."""
    return type(tree)(*values) if isinstance(tree, tuple) and hasattr(tree, "_fields") else tuple(values)
