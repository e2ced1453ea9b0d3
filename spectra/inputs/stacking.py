"""Stack values of examples into tensors, and check what they hold."""

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from spectra.inputs.items import Wanted, as_tensor, plain
from spectra.inputs.spec import input_error
from spectra.inputs.transform import Transform
from spectra.problem.outputs import tuple_like

OPTION = "`data`"
CONSTANTS = (bool, int, float, str, type(None))  # what a mapping or tuple may hold beside tensors: the same for all


def stacked(values: Sequence[Any], lists: bool = False) -> Any:
    """Values of examples as one tree of tensors (N, ...), each value being a tree of one structure.

    Those of other types than tensors, arrays and numbers stay a list; with `lists`, so do those entries of the tree
    that cannot be stacked, as images of different sizes.
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
            raise ValueError("they have different names")
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
    """Values of examples as tensors (N, ...), or as they are where they cannot be stacked.

    Mappings stay mappings of one example each, as detection has its targets: other entries are lists, too.
    """
    if isinstance(values[0], Mapping):
        return tree_map(as_tensor, values)
    try:
        return stacked(values)
    except (RuntimeError, ValueError, KeyError):
        return tree_map(as_tensor, values)


def same(one: Any, two: Any) -> bool:
    """Whether two trees have equal numbers; NaN equals itself, and other objects are passed over."""
    ones, twos = tree_leaves(one), tree_leaves(two)
    return len(ones) == len(twos) and all(_same_leaf(a, b) for a, b in zip(ones, twos, strict=True))


def _same_leaf(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor | np.ndarray | numbers.Number):
        return True  # such as a PIL image: refused when stacked
    a, b = torch.as_tensor(one), torch.as_tensor(two)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def named(x: Any, top: str = "x") -> list[tuple[str, Any]]:
    """The leaves of x, each with the name that a message calls it by: x, or x['ids']."""
    entries = {f"{top}[{key!r}]": tree for key, tree in x.items()} if isinstance(x, dict) else {top: x}
    return [(what, leaf) for what, tree in entries.items() for leaf in tree_leaves(tree)]


def widened(tree: Any) -> Any:
    """The tree with integers as int64, which labels and token ids have to be; anything else as it is."""
    return tree_map(_widened, tree)


def _widened(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool:
        return leaf
    return leaf.long()


def checked(
    inputs: Any, targets: Any, indices: Tensor, name: str, wanted: Wanted, transform: Transform | None = None
) -> None:
    """Raise SpectraError unless all leaves are finite tensors, and y is a single one where the loss takes no other.

    What a loss of (model, batch) gets may be anything.
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
                made = f", as `transform` {transform.name} has to" if transform else ""
                text = f"{what} holds a {type(leaf).__name__}; leave it out, or give tensors, arrays or numbers{made}"
                raise input_error(OPTION, name, text)
            if isinstance(leaf, Tensor) and (row := first_not_finite(leaf, place)) is not None:
                index = int(indices[row])
                raise input_error(OPTION, name, f"{what} of example {index} is not finite; leave it out or correct it")


def next_labels(targets: Any, ignored: int, name: str) -> Any:
    """Labels of tokens (b, T) as those of the next tokens; the last place of each sequence has none: `ignored`.

    Weights beside them move along. Raises SpectraError where there are no such labels.
    """
    labels = targets["labels"] if isinstance(targets, dict) else targets
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 2:
        came = f"shape {tuple(labels.shape)}, {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        text = f"shift moves labels of tokens, integers (b, T), and those of {name} are {came}; leave it out"
        raise input_error("`loss`", "cross_entropy?shift=true", text)
    if isinstance(targets, dict):
        return {key: moved(value, ignored if key == "labels" else 0) for key, value in targets.items()}
    return moved(labels, ignored)


def moved(rows: Tensor, last: int) -> Tensor:
    """Rows moved one place to the left, this value in the last place."""
    return torch.cat([rows[:, 1:], torch.full_like(rows[:, :1], last)], dim=1)


def leaves_of(tree: Any, name: str, place: int | None = None) -> Iterator[tuple[str, Any, int | None]]:
    """Yield the leaves of a tree, each with its name in messages, and with its place where a list holds examples."""
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
    """The row of the first example whose numbers are not all finite, or None."""
    if leaf.layout is not torch.strided or leaf.is_nested:
        return None
    eight_bits = leaf.is_floating_point() and leaf.itemsize == 1  # of which torch 2.11 has no isfinite
    finite = (leaf.float() if eight_bits else leaf).isfinite()
    if place is not None or not leaf.ndim:
        return None if finite.all() else place or 0
    finite = finite.flatten(1).all(1) if leaf.dim() > 1 else finite
    return None if finite.all() else int((~finite).nonzero()[0])
