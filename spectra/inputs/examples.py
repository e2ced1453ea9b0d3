"""Read the examples of `data`: choose them with the seed, read each once, then transform, stack and check them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import IterableDataset

from spectra.curvature.evaluation import cut_batches
from spectra.errors import SpectraError, describe
from spectra.inputs.batches import READ_TWICE, Batches, Collate, can_be_cut, collated
from spectra.inputs.items import (
    CannotSplit,
    ItemRequirements,
    describe_item,
    is_numbers,
    is_pair,
    pair_wanted,
    plain,
    split_item,
)
from spectra.inputs.samples import chosen_indices
from spectra.inputs.spec import WHERE, input_error
from spectra.inputs.stacking import checked, named, next_labels, same, stacked, widened
from spectra.inputs.transform import Transform
from spectra.problem.batch import Batch
from spectra.problem.model_inputs import map_tensors
from spectra.problem.weights import has_labels

OPTION = "`data`"


@dataclass(frozen=True)
class Data:
    """N examples in memory, decoded once, in the order of the data set.

    Inputs and targets are trees of tensors (N, ...) and of lists with N entries, with integers as int64.
    """

    inputs: Any
    targets: Any  # None where there are none
    indices: Tensor  # (N,) int64, the index of each example in the data set
    transform: str | None = None  # description of the transform of every x
    notes: tuple[str, ...] = ()  # for the user, on how the data were read

    def __len__(self) -> int:
        return len(self.indices)

    def cut(self, size: int) -> list[Batch]:
        """Cut the examples into batches of `size`; the last one may be shorter."""
        return cut_batches(self.inputs, self.targets, self.indices, size)


@dataclass(frozen=True)
class Arrays:
    """A data set of items (x, y), made from trees of tensors that hold all examples."""

    inputs: Any
    targets: Any

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return map_tensors(lambda tensor: tensor[index], (self.inputs, self.targets))


def read(
    source: Any,
    samples: int | None,
    seed: int,
    transform: Transform | None,
    name: str,
    wanted: ItemRequirements | None = None,
    collate: Collate | None = None,
    batch_size: int | None = None,
) -> Data | Batches:
    """Read the examples in `source`, or `samples` of them, chosen with the seed.

    Args:
        source: arrays of all examples (a pair x and y, or a mapping), or a data set of items.
        samples: the number of examples; None for all.
        seed: the seed of the choice.
        transform: the transform of every x; None for none.
        name: the name of the data in messages.
        wanted: how an item is divided into inputs and targets.
        collate: the user's function that makes a batch of a list of items; None to stack them.
        batch_size: the number of examples in a batch that `collate` makes and that cannot be cut.

    Raises:
        SpectraError: as `load_data` does.
    """
    wanted = wanted or ItemRequirements()
    if (arrays := as_arrays(source, wanted, name)) is not None:
        if wanted.whole and len(sizes := lengths(arrays)) > 1 and 0 not in sizes:
            # Such as points inside and on the boundary of a domain: one batch, which is not cut.
            if samples is not None:
                different = " and ".join(map(str, sorted(sizes)))
                text = f"the arrays of {name} have different lengths ({different}); leave it out"
                raise input_error("`samples`", samples, text)
            return Batches([Batch(widened(arrays.inputs), None, torch.arange(max(sizes)))])
        indices = chosen_indices(_length(arrays, name), samples, seed, name)
        if not transform:
            examples = map_tensors(lambda tensor: tensor[indices], (arrays.inputs, arrays.targets))
            return finished(examples, indices, name, wanted)
        source, collate = arrays, None
    else:
        indices = chosen_indices(_size(source, name), samples, seed, name)
    items = Items(source, name, transform, wanted if arrays is None else None)
    if collate:
        batches = collated(items.raw, indices, collate, wanted, batch_size, name)
        notes, view = (f"collate_fn of {name} makes the batches",), transform and transform.name
        if batch_size is None and len(batches) == 1 and can_be_cut(batches[0]):
            return Data(batches[0].inputs, batches[0].targets, batches[0].indices, view, notes)
        return Batches(batches, notes, view)
    return finished(_stacked(items, indices.tolist(), wanted), indices, name, wanted, transform)


def finished(
    examples: tuple[Any, Any], indices: Tensor, name: str, wanted: ItemRequirements, transform: Transform | None = None
) -> Data:
    """Check stacked examples (x, y), and return them as Data. Raises SpectraError for values that cannot be used."""
    inputs, targets = widened(examples)
    checked(inputs, targets, indices, name, wanted, transform)
    if wanted.shift is not None:
        targets = next_labels(targets, wanted.shift, name)
    return Data(inputs, targets, indices, transform and transform.name)


def as_arrays(source: Any, wanted: ItemRequirements, name: str) -> Arrays | None:
    """Return the arrays of all examples in `source` as tensors; None where it is a data set of items."""
    if not is_arrays(source, wanted):
        return None
    try:
        tensors = tree_map(_tensor, plain(source))
    except TypeError as error:
        raise input_error(
            OPTION, name, f"its arrays do not hold numbers ({describe(error)}); give x and y as arrays of numbers"
        ) from error
    try:
        return Arrays(*split_item(tensors, wanted))
    except CannotSplit:
        raise input_error(OPTION, name, f"it holds a {describe_item(source)}; give {pair_wanted()}") from None


def is_arrays(source: Any, wanted: ItemRequirements) -> bool:
    """Whether `source` holds all examples as arrays: a pair (x, y), a mapping, or, if the loss allows it, one array or
    a tuple. Lists of numbers in a tuple or mapping count as arrays.
    """
    if isinstance(source, Mapping):
        # Booleans and None beside arrays are arguments of the model, such as return_loss of CLIP.
        source = {key: array_of(value) for key, value in source.items() if not isinstance(value, bool | None)}
    elif isinstance(source, tuple):
        source = tuple(map(array_of, source))
    leaves = tree_leaves(source)
    if not leaves or not all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves):
        return False
    if isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[1], Tensor | np.ndarray):
        one_length = len({leaf.shape[:1] for leaf in leaves}) == 1  # else it is a list of batches
        return isinstance(source, tuple) or (not wanted.whole and (one_length or not wanted.trees))
    if isinstance(source, tuple) and len(source) == 2 and has_labels(source[1]):
        return True  # labels and weights without inputs would not be a batch
    free = wanted.whole or wanted.trees
    return isinstance(source, Mapping) or (free and isinstance(source, tuple | Tensor | np.ndarray))


def array_of(value: Any) -> Any:
    """Convert a list of numbers to a tensor; return anything else unchanged."""
    return plain(value) if isinstance(value, list) and is_numbers(value) else value


def _tensor(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        array = array.astype(array.dtype.newbyteorder("="))  # a copy in native byte order, which torch needs
    return torch.as_tensor(array).detach().cpu() if isinstance(array, Tensor | np.ndarray) else array


def lengths(arrays: Arrays) -> set[int]:
    """Return the set of lengths of the tensors, 0 for a scalar."""
    leaves = tree_leaves((arrays.inputs, arrays.targets))
    return {len(leaf) if leaf.ndim else 0 for leaf in leaves if isinstance(leaf, Tensor)}


def _length(arrays: Arrays, name: str) -> int:
    leaves = [leaf for leaf in tree_leaves((arrays.inputs, arrays.targets)) if isinstance(leaf, Tensor)]
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        text = f"x and y have different lengths (shapes {', '.join(map(str, shapes))})"
        raise input_error(OPTION, name, f"{text}; give one y for each x")
    return shapes[0][0]


def _size(source: Any, name: str) -> int:
    """Return the number of items of a data set with `__getitem__` and `__len__`. Raises SpectraError."""
    came = type(source).__name__
    if isinstance(source, IterableDataset):
        raise input_error(
            OPTION, name, f"it returned an IterableDataset ({came}); return a list of its items, or a DataLoader"
        )
    if isinstance(source, Mapping) or not hasattr(source, "__getitem__"):
        text = f"it returned an object of type {came}; return a data set of (x, y) items or two tensors x and y"
        raise input_error(OPTION, name, text)
    try:
        return len(source)
    except Exception as error:
        text = f"the length of its {came} is unknown ({describe(error)}); define __len__, or return a list"
        raise input_error(OPTION, name, text) from error


@dataclass(frozen=True)
class Items:
    """The items of a data set, each divided into x and y, with x transformed."""

    source: Any
    name: str
    transform: Transform | None
    wanted: ItemRequirements | None  # None: the items are pairs already

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item, transform = self.fetched(index), self.transform
        if transform and self.wanted and self.wanted.whole and is_pair(item):
            item, transform = (transform(item[0], index), item[1]), None
        try:
            x, y = split_item(item, self.wanted) if self.wanted else item
            x = plain(x)
        except CannotSplit:
            text = f"example {index} is a {describe_item(item)}; every item has to be {pair_wanted()}"
            raise input_error(OPTION, self.name, text) from None
        except Exception as error:
            raise self.failure(index, error) from error
        return (plain(transform(x, index)) if transform else x), y

    def raw(self, index: int) -> Any:
        """Return an item unchanged, for the user's collate_fn; with a transform, a pair with its x transformed."""
        item = self.fetched(index)
        if not self.transform:
            return item
        if is_pair(item):
            return self.transform(item[0], index), item[1]
        text = f"it needs pairs (x, y), but example {index} is a {describe_item(item)}; transform it in its collate_fn"
        raise input_error("`transform`", self.transform.name, text)

    def fetched(self, index: int) -> Any:
        """Return an item of the data set. Raises SpectraError where reading it fails."""
        try:
            return self.source[index]
        except Exception as error:
            raise self.failure(index, error) from error

    def failure(self, index: int, error: Exception) -> SpectraError:
        """Make the error for an item that cannot be read."""
        return input_error(OPTION, self.name, f"reading example {index} failed with {describe(error)}; {WHERE}")


def read_twice(item: Callable[[int], Any], chosen: list[int], name: str, transform: Transform | None) -> list[Any]:
    """Return the first of the chosen items. Raises SpectraError where one differs when it is read again."""
    head = [item(index) for index in chosen[:READ_TWICE]]
    again = [item(index) for index in chosen[:READ_TWICE]]
    for index, one, two in zip(chosen, head, again, strict=False):
        if not same(one, two):
            where = f" in it and in `transform` {transform.name}" if transform and transform.typed else ""
            text = f"example {index} is different when it is read again; switch random augmentation off{where}"
            raise input_error(OPTION, name, text)
    return head


def _stacked(items: Items, chosen: list[int], wanted: ItemRequirements) -> tuple[Any, Any]:
    """Read the chosen items once, the first few of them twice, and stack them."""
    found = read_twice(items.__getitem__, chosen, items.name, items.transform)
    found += [items[index] for index in chosen[READ_TWICE:]]
    try:
        return stacked([x for x, _ in found], wanted.whole), stacked([y for _, y in found])
    except Exception as error:
        raise input_error(OPTION, items.name, _unstackable(found, chosen, error)) from error


def _unstackable(items: Sequence[tuple[Any, Any]], chosen: Sequence[int], error: Exception) -> str:
    first = _shapes(items[0])
    for index, item in zip(chosen, items, strict=True):
        if (shapes := _shapes(item)) != first:
            a, b = _listed(first - shapes), _listed(shapes - first)
            text = f"example {chosen[0]} has {a}, but example {index} has {b}; give all examples the same shape"
            return (
                f"{text}: pad, crop or resize them in `transform` file.py:name, or in a collate_fn in the data's file"
            )
    text = f"the examples cannot be stacked ({describe(error)})"
    return f"{text}; give x and y as tensors, arrays or numbers, or convert them in `transform` file.py:name"


def _shapes(item: tuple[Any, Any]) -> Counter[tuple[str, tuple[int, ...]]]:
    x, y = item
    leaves = [*named(x), *(("y", leaf) for leaf in tree_leaves(y))]
    return Counter((what, tuple(getattr(leaf, "shape", ()))) for what, leaf in leaves)


def _listed(shapes: Counter[tuple[str, tuple[int, ...]]]) -> str:
    return " and ".join(f"{what} of shape {shape}" for what, shape in shapes) or "nothing more"
