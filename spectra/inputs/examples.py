"""Read the examples of `data`: choose them by the seed, read them once, transform, stack and check them."""

import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate

from spectra.errors import describe
from spectra.inputs.spec import WHERE, input_error
from spectra.inputs.transform import Transform
from spectra.wording import counted

OPTION = "`data`"
READ_TWICE = 8  # examples read a second time, to catch augmentation
TARGETS = ("labels", "label")  # what transformers calls the targets in an item that is a mapping


@dataclass(frozen=True)
class Pairs:
    """Two tensors x and y as a data set; x may be a tuple or dict of them."""

    inputs: Any
    targets: Tensor

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return tree_map(lambda tensor: tensor[index], self.inputs), self.targets[index]


def read(
    source: Any, samples: int | None, seed: int, transform: Transform | None, name: str
) -> tuple[Any, Tensor, Tensor]:
    """(inputs, targets, indices) of the examples in `source`, or of a seeded choice of `samples` of them.

    Args:
        source: two tensors or arrays x and y, or a data set of items.
        transform: what is done to every x, if anything.
        name: of the data, for messages.

    Raises:
        SpectraError: as `load_data` does.
    """
    pair = _as_pair(source, name)
    indices = _choose(_pair_size(pair, name) if pair else _size(source, name), samples, seed, name)
    if pair and not transform:
        examples = tree_map(lambda tensor: tensor[indices], pair)
    else:
        examples = _stacked(Pairs(*pair) if pair else source, indices.tolist(), transform, name)
    inputs, targets = widened(examples)
    checked(inputs, targets, indices, name, transform)
    return inputs, targets, indices


def _as_pair(source: Any, name: str) -> tuple[Any, Tensor] | None:
    """The tensors x and y that `source` consists of, or None where it is a data set of items."""
    if not (isinstance(source, tuple | list) and len(source) == 2):
        return None
    if not all(isinstance(leaf, Tensor | np.ndarray) for leaf in [*tree_leaves(source[0]), source[1]]):
        return None
    try:
        return tree_map(_tensor, plain(source[0])), _tensor(source[1])
    except TypeError as error:
        raise input_error(
            OPTION, name, f"its arrays are no numbers ({describe(error)}); give x and y as arrays of numbers"
        ) from error


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    if isinstance(array, np.ndarray):
        array = array.astype(array.dtype.newbyteorder("="))  # a copy of its own, in the one order torch reads
    return torch.as_tensor(array).detach().cpu()


def _pair_size(pair: tuple[Any, Tensor], name: str) -> int:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(pair)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        text = f"x and y need one and the same length, they have shapes {', '.join(map(str, shapes))}"
        raise input_error(OPTION, name, f"{text}; give one y for each x")
    return shapes[0][0]


def _size(source: Any, name: str) -> int:
    """The number of items of a data set with `__getitem__` and `__len__`."""
    came = type(source).__name__
    if isinstance(source, DataLoader):
        raise input_error(OPTION, name, "it gave a DataLoader, which may shuffle; return its data set itself")
    if isinstance(source, IterableDataset):
        raise input_error(OPTION, name, f"it gave an IterableDataset ({came}); return a list of its items")
    if isinstance(source, Mapping) or not hasattr(source, "__getitem__"):
        text = f"it gave an object of type {came}; return a data set of (x, y) items or two tensors x and y"
        raise input_error(OPTION, name, text)
    try:
        return len(source)
    except Exception as error:
        text = f"the length of its {came} is unknown ({describe(error)}); give it __len__, or return a list"
        raise input_error(OPTION, name, text) from error


def _choose(size: int, samples: int | None, seed: int, name: str) -> Tensor:
    """(N,) ascending indices, all of them or a seeded choice."""
    if size == 0:
        raise input_error(OPTION, name, "it is empty; name data with at least one example")
    if samples is None:
        return torch.arange(size)
    if not 1 <= samples <= size:
        raise input_error("`samples`", samples, f"{name} has {counted(size, 'example')}; choose from 1 to {size}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:samples].sort().values


def _stacked(dataset: Any, chosen: list[int], transform: Transform | None, name: str) -> tuple[Any, Any]:
    """Decode the items of these indices once, the first few of them twice, and stack them."""

    def item(index: int) -> tuple[Any, Any]:
        x, y = _item(dataset, index, name)
        return (plain(transform(x, index)) if transform else x), y

    head = [item(index) for index in chosen[:READ_TWICE]]
    again = [item(index) for index in chosen[:READ_TWICE]]
    for index, one, two in zip(chosen, head, again, strict=False):
        if not _same(one, two):
            where = f" in it and in `transform` {transform.name}" if transform and transform.typed else ""
            text = f"example {index} came out different when it was read twice; switch random augmentation off{where}"
            raise input_error(OPTION, name, text)
    items = head + [item(index) for index in chosen[READ_TWICE:]]
    try:
        return plain(default_collate([x for x, _ in items])), plain(default_collate([y for _, y in items]))
    except Exception as error:
        raise input_error(OPTION, name, _unstackable(items, chosen, error)) from error


def _item(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    """x and y of one item: a pair, or a mapping that has y under one of TARGETS, and x in the rest."""
    try:
        item = dataset[index]
        if isinstance(item, tuple | list) and len(item) == 2:
            return plain(item[0]), plain(item[1])
        if isinstance(item, Mapping) and len(item) > 1 and len(under := [key for key in TARGETS if key in item]) == 1:
            rest = plain(item)
            return rest, rest.pop(under[0])
    except Exception as error:
        raise input_error(OPTION, name, f"reading example {index} failed with {describe(error)}; {WHERE}") from error
    came = f"{type(item).__name__}"
    if isinstance(item, Mapping):
        came += f" of {', '.join(map(str, item))}"
    elif isinstance(item, tuple | list):
        came += f" of length {len(item)}"
    wanted = f"a pair (x, y), or a mapping with y under {' or '.join(TARGETS)}"
    raise input_error(OPTION, name, f"example {index} is a {came}; every item has to be {wanted}")


def plain(tree: Any) -> Any:
    """The tree with mappings as dicts, sequences as tuples, and lists of numbers as tensors (torch would take
    them apart).
    """
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if _is_numbers(tree):
        return torch.tensor(tree)
    if isinstance(tree, tuple | list):
        return tuple(plain(value) for value in tree)
    return tree.detach().cpu() if isinstance(tree, Tensor) else tree


def _is_numbers(value: Any) -> bool:
    """Whether this is a list of numbers, or of lists of numbers."""
    if not isinstance(value, tuple | list) or len(value) == 0:
        return False
    return all(isinstance(entry, numbers.Number) or _is_numbers(entry) for entry in value)


def _same(one: Any, two: Any) -> bool:
    ones, twos = tree_leaves(one), tree_leaves(two)
    return len(ones) == len(twos) and all(_same_leaf(a, b) for a, b in zip(ones, twos, strict=True))


def _same_leaf(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor | np.ndarray | numbers.Number):
        return True  # such as a PIL image: refused when stacked
    a, b = torch.as_tensor(one), torch.as_tensor(two)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _unstackable(items: Sequence[tuple[Any, Any]], chosen: Sequence[int], error: Exception) -> str:
    first = _shapes(items[0])
    for index, item in zip(chosen, items, strict=True):
        if (shapes := _shapes(item)) != first:
            a, b = _told(first - shapes), _told(shapes - first)
            text = f"example {chosen[0]} has {a}, example {index} has {b}; give every example one shape"
            return f"{text}: pad, crop or resize them, as `transform` file.py:name can"
    text = f"the examples cannot be stacked ({describe(error)})"
    return f"{text}; give x and y as tensors, arrays or numbers, as `transform` file.py:name can"


def _shapes(item: tuple[Any, Any]) -> Counter[tuple[str, tuple[int, ...]]]:
    x, y = item
    leaves = [*named(x), *(("y", leaf) for leaf in tree_leaves(y))]
    return Counter((what, tuple(getattr(leaf, "shape", ()))) for what, leaf in leaves)


def _told(shapes: Counter[tuple[str, tuple[int, ...]]]) -> str:
    return " and ".join(f"{what} of shape {shape}" for what, shape in shapes) or "no more"


def named(x: Any) -> list[tuple[str, Any]]:
    """The leaves of x, each with the name that a message calls it by: x, or x['ids']."""
    entries = {f"x[{key!r}]": tree for key, tree in x.items()} if isinstance(x, dict) else {"x": x}
    return [(what, leaf) for what, tree in entries.items() for leaf in tree_leaves(tree)]


def widened(tree: Any) -> Any:
    """The tree with integers as int64, which labels and token ids have to be; anything else as it is."""
    return tree_map(_widened, tree)


def _widened(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool:
        return leaf
    return leaf.long()


def checked(inputs: Any, targets: Any, indices: Tensor, name: str, transform: Transform | None = None) -> None:
    """Raise SpectraError unless all leaves are finite tensors, and y is a single one."""
    if not isinstance(targets, Tensor):
        came = type(targets).__name__
        raise input_error(OPTION, name, f"y is a {came} for each example; give one tensor or number as y")
    for what, leaf in [*named(inputs), ("y", targets)]:
        if not isinstance(leaf, Tensor):
            made = f", as `transform` {transform.name} has to" if transform else ""
            text = f"{what} holds a {type(leaf).__name__}; leave it out, or give tensors, arrays or numbers{made}"
            raise input_error(OPTION, name, text)
        eight_bits = leaf.is_floating_point() and leaf.itemsize == 1  # of which torch 2.11 has no isfinite
        finite = (leaf.float() if eight_bits else leaf).isfinite()
        finite = finite.flatten(1).all(1) if leaf.dim() > 1 else finite
        if not finite.all():
            index = int(indices[~finite][0])
            raise input_error(OPTION, name, f"{what} of example {index} is not finite; leave it out or mend it")
