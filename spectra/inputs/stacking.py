"""Stack the values of examples into tensors, and check their contents."""

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from spectra.inputs.items import ItemRequirements, as_tensor, plain
from spectra.inputs.spec import input_error
from spectra.inputs.transform import Transform
from spectra.problem.outputs import tuple_like

OPTION = "`data`"
CONSTANTS = (bool, int, float, str, type(None))  # may be beside tensors, with one value for all examples


def stacked(values: Sequence[Any], lists: bool = False) -> Any:
    """Stack the values of N examples, trees of one structure, into one tree of tensors (N, ...).

    Values that are not tensors, arrays or numbers become a list. With `lists`, so do entries of the tree that cannot be
    stacked, such as images of different sizes.
    """
    first = values[0]
    if lists and isinstance(first, tuple | Mapping):
        try:
            return stacked(values)
        except (RuntimeError, ValueError, KeyError):
            keys = first if isinstance(first, Mapping) else range(len(first))
            found = {key: stacked_or_list([value[key] for value in values]) for key in keys}
            return found if isinstance(first, Mapping) else tuple_like(first, found.values())
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError("they have different keys")
        return {key: stacked([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        return tuple_like(first, (stacked(entries) for entries in zip(*values, strict=True)))
    if all(value is None for value in values):
        return None
    if isinstance(first, str | bytes):
        return list(values)
    try:
        return plain(default_collate(list(values)))
    except TypeError:  # of another type
        return list(values)


def stacked_or_list(values: list[Any]) -> Any:
    """Stack the values of N examples into tensors (N, ...), or return a list where they cannot be stacked.

    Mappings become a list with one mapping for each example, as for the targets of object detection.
    """
    if isinstance(values[0], Mapping):
        return tree_map(as_tensor, values)
    try:
        return stacked(values)
    except (RuntimeError, ValueError, KeyError):
        return tree_map(as_tensor, values)


def same(one: Any, two: Any) -> bool:
    """Whether two trees have equal numbers; NaN equals NaN, and objects that are not numbers are not compared."""
    ones, twos = tree_leaves(one), tree_leaves(two)
    return len(ones) == len(twos) and all(_same_leaf(a, b) for a, b in zip(ones, twos, strict=True))


def _same_leaf(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor | np.ndarray | numbers.Number):
        return True  # such as a PIL image, which is refused later
    a, b = torch.as_tensor(one), torch.as_tensor(two)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def named(x: Any, top: str = "x") -> list[tuple[str, Any]]:
    """List the leaves of x with their names for messages: x, or x['ids']."""
    entries = {f"{top}[{key!r}]": tree for key, tree in x.items()} if isinstance(x, dict) else {top: x}
    return [(what, leaf) for what, tree in entries.items() for leaf in tree_leaves(tree)]


def widened(tree: Any) -> Any:
    """Convert the integer tensors of a tree to int64, which labels and token ids need."""
    return tree_map(_widened, tree)


def _widened(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool:
        return leaf
    return leaf.long()


def checked(
    inputs: Any, targets: Any, indices: Tensor, name: str, wanted: ItemRequirements, transform: Transform | None = None
) -> None:
    """Raise SpectraError unless all leaves are finite tensors, and y is a single tensor if the loss needs that.

    Batches for a loss of (model, batch) are not checked.
    """
    if wanted.whole:
        return
    weighted = isinstance(targets, dict) and targets.keys() == {"labels", "weights"}
    if not (wanted.trees or isinstance(targets, Tensor) or (weighted and isinstance(targets["labels"], Tensor))):
        came = type(targets).__name__
        raise input_error(OPTION, name, f"y is a {came} for each example; give one tensor or number as y")
    for tree, top in ((inputs, "x"), (targets, "y")):
        for what, leaf, place in leaves_of(tree, top):
            if not isinstance(leaf, Tensor) and not (place is None and isinstance(leaf, CONSTANTS)):
                made = f", also from `transform` {transform.name}" if transform else ""
                text = f"{what} holds a {type(leaf).__name__}; leave it out, or give tensors, arrays or numbers{made}"
                raise input_error(OPTION, name, text)
            if isinstance(leaf, Tensor) and (row := first_not_finite(leaf, place)) is not None:
                index = int(indices[row])
                raise input_error(OPTION, name, f"{what} of example {index} is not finite; leave it out or correct it")


def next_labels(targets: Any, ignored: int, name: str) -> Any:
    """Shift labels of tokens (b, T) by one place to the left; the last label of each sequence becomes `ignored`.

    Weights of the labels are shifted too. Raises SpectraError where the targets are not labels of tokens.
    """
    labels = targets["labels"] if isinstance(targets, dict) else targets
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 2:
        came = f"shape {tuple(labels.shape)}, {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        text = f"shift needs integer labels of tokens (b, T), but those of {name} are {came}; leave shift out"
        raise input_error("`loss`", "cross_entropy?shift=true", text)
    if isinstance(targets, dict):
        return {key: shifted(value, ignored if key == "labels" else 0) for key, value in targets.items()}
    return shifted(labels, ignored)


def shifted(rows: Tensor, last: int) -> Tensor:
    """Shift rows by one place to the left, and fill the last place with `last`."""
    return torch.cat([rows[:, 1:], torch.full_like(rows[:, :1], last)], dim=1)


def leaves_of(tree: Any, name: str, place: int | None = None) -> Iterator[tuple[str, Any, int | None]]:
    """Yield the leaves of a tree, each with its name for messages and, inside a list of examples, its index there."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves_of(value, f"{name}[{key!r}]", place)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from leaves_of(value, name, place)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from leaves_of(value, name, number if place is None else place)
    else:
        yield name, tree, place


def first_not_finite(leaf: Tensor, place: int | None) -> int | None:
    """Return the row of the first example with a number that is not finite, or None."""
    if leaf.layout is not torch.strided or leaf.is_nested:
        return None
    eight_bits = leaf.is_floating_point() and leaf.itemsize == 1  # torch 2.11 has no isfinite for them
    finite = (leaf.float() if eight_bits else leaf).isfinite()
    if place is not None or not leaf.ndim:
        return None if finite.all() else place or 0
    finite = finite.flatten(1).all(1) if leaf.dim() > 1 else finite
    return None if finite.all() else int((~finite).nonzero()[0])
