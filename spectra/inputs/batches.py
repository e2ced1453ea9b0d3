"""Make batches from the items of a loader or of a user's collate_fn, choose examples, and change the batch size.

A batch is a tree of tensors with the examples in the first dimension, or of lists with one entry for each example, such
as images of different sizes. Loaders turn tuples into lists, and collate functions may turn lists into tuples, so the
lengths decide which of them hold examples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Subset

from spectra.errors import SpectraError, describe
from spectra.inputs.items import CannotSplit, ItemRequirements, as_tensor, pair_wanted, plain, split_item
from spectra.inputs.samples import chosen_indices
from spectra.inputs.stacking import CONSTANTS, checked, leaves_of, next_labels, same, widened
from spectra.problem.batch import Batch
from spectra.problem.outputs import tensors_of, tuple_like
from spectra.wording import counted

Collate = Callable[[list[Any]], Any]
READ_TWICE = 8  # examples read a second time, to catch augmentation
UNCUT = 256  # default number of examples in a batch that a collate_fn makes and that cannot be cut


@dataclass(frozen=True)
class Batches:
    """Examples in the batches of their loader, with notes for the user on how they were read."""

    batches: list[Batch]
    notes: tuple[str, ...] = ()
    transform: str | None = None  # description of the transform of every x

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def cut(self, size: int) -> list[Batch]:
        """Return the batches unchanged; `size` is ignored."""
        return self.batches


def batch_of(item: Any, indices: Tensor | None, first: int, wanted: ItemRequirements, what: str, name: str) -> Batch:
    """Convert an item of a loader to a batch.

    Args:
        item: the item.
        indices: the indices of its examples in the data set; None where they are unknown.
        first: the index of its first example where indices are unknown.
        wanted: how it is divided into inputs and targets.
        what: the name of the item in messages.
        name: the name of the data in messages.

    Raises:
        SpectraError: it has another form, or holds numbers that are not finite.
    """
    try:
        inputs, targets, count = arranged(item, wanted)
    except CannotSplit:
        text = f"is a {type(item).__name__}, but every batch has to be {pair_wanted()}"
        raise SpectraError(f"`data`: {what} {text}") from None
    except (ValueError, TypeError) as error:
        raise SpectraError(f"`data`: {what} cannot be read ({describe(error)}); give tensors") from error
    refuse_uncountable((inputs, targets), what)
    sizes = [len(leaf) for leaf in tensors_of(inputs) if leaf.ndim]
    if not count and wanted.whole and sizes:  # tensors of different lengths, one batch that is not cut
        count = max(sizes) if indices is None else len(indices)
    if not count:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors_of((inputs, targets)) if leaf.ndim)
        if not shapes:
            text = "holds no tensors; give batches of tensors, or a list of the examples"
            raise SpectraError(f"`data`: {what} {text}")
        raise SpectraError(f"`data`: x and y of {what} have shapes {shapes}; give them the same first dimension")
    if indices is None or len(indices) != count:
        indices = torch.arange(first, first + count)
    inputs, targets = tree_map(without_inference_mode, widened((inputs, targets)))
    checked(inputs, targets, indices, name, wanted)
    if wanted.shift is not None:
        targets = next_labels(targets, wanted.shift, name)
    return Batch(inputs, targets, indices)


def arranged(item: Any, wanted: ItemRequirements) -> tuple[Any, Any, int]:
    """Return the inputs and targets of a batch, with lists where entries are examples, and the number of examples.

    The number is 0 where it is not clear. Raises CannotSplit.
    """
    inputs, targets = tree_map(as_tensor, split_item(item, wanted))
    sizes = {len(leaf) for leaf in tensors_of((inputs, targets)) if leaf.ndim}
    stacked = len(sizes) == 1 and not any(type(leaf) in (int, float) for leaf in tree_leaves(item))
    if wanted.whole and not stacked and is_list_of_examples(item):
        return list(inputs), None, len(item)
    if len(sizes) == 1:
        count = sizes.pop()
        return words_listed(inputs, count), words_listed(targets, count), count
    if not wanted.whole and len(counts := lengths([inputs, targets])) == 1:
        return listed(inputs), listed(targets), counts.pop()
    parts = [*children(inputs), *children(targets)]
    if len(counts := lengths(parts)) == 1:
        return with_children(inputs, listed), with_children(targets, listed), counts.pop()
    return inputs, targets, 0


def is_list_of_examples(item: Any) -> bool:
    """Whether a batch is a list of examples of one form, as an identity collate_fn returns it."""
    if not isinstance(item, list) or not all(isinstance(entry, Mapping | tuple | list) for entry in item):
        return False
    if all(isinstance(entry, Mapping) for entry in item):
        return len({tuple(entry) for entry in item}) == 1
    return len({tuple(map(type, entry)) for entry in item}) == 1


def lengths(parts: Iterable[Any]) -> set[int]:
    """Return the lengths of tensors and tuples; none if a mapping is among them."""
    parts = list(parts)
    if any(isinstance(part, Mapping) for part in parts):
        return set()
    return {len(part) for part in parts if isinstance(part, tuple) or (isinstance(part, Tensor) and part.ndim)}


def children(tree: Any) -> list[Any]:
    """Return the entries of a tree at its first level."""
    if isinstance(tree, Mapping):
        return list(tree.values())
    return list(tree) if isinstance(tree, tuple) else [tree]


def with_children(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the entries of a tree at its first level."""
    if isinstance(tree, Mapping):
        return {key: function(value) for key, value in tree.items()}
    return tuple_like(tree, map(function, tree)) if isinstance(tree, tuple) else function(tree)


def listed(part: Any) -> Any:
    """Convert a tuple of examples to a list; return anything else unchanged."""
    return list(part) if isinstance(part, tuple) else part


def words_listed(tree: Any, count: int) -> Any:
    """Convert tuples of `count` strings in a tree to lists, since they hold one string for each example."""
    if isinstance(tree, tuple) and len(tree) == count and all(isinstance(entry, str) for entry in tree):
        return list(tree)
    if isinstance(tree, tuple | Mapping):
        return with_children(tree, lambda part: words_listed(part, count))
    return tree


def refuse_uncountable(trees: Any, what: str) -> None:
    """Raise SpectraError where a batch holds an object that cannot be split into examples."""
    for _, leaf, place in leaves_of(trees, "x"):
        if not isinstance(leaf, (Tensor, *CONSTANTS)) and place is None:
            text = f"holds a {type(leaf).__name__}, which cannot be split into examples"
            raise SpectraError(f"`data`: {what} {text}; give tensors, in tuples or mappings, or lists of examples")


def without_inference_mode(leaf: Any) -> Any:
    """Copy a tensor that was made under torch.inference_mode(), which has no derivatives; else return the leaf."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def chosen(batches: Sequence[Batch], samples: int, seed: int, name: str) -> list[Batch]:
    """Choose `samples` examples with the seed, and keep them in their batches. Raises SpectraError."""
    places = torch.cat([batch.indices for batch in batches]).argsort(stable=True)  # in the order of the data set
    picked = places[chosen_indices(len(places), samples, seed, name)].sort().values
    found, first = [], 0
    for batch in batches:
        own = picked[(picked >= first) & (picked < first + len(batch))] - first
        first += len(batch)
        if len(own):
            found.append(batch.part(own.to(batch.indices.device)))
    return found


def recut(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Cut the examples, in their order, into batches of `size`. Raises SpectraError where they cannot be joined."""
    from spectra.curvature.engine.batches import joined

    try:
        whole = joined(batches)
        return [whole.part(slice(first, first + size)) for first in range(0, len(whole), size)]
    except Exception as error:
        text = f"the batches cannot be joined ({describe(error)})"
        raise SpectraError(f"`batch_size` {size}: {text}; leave `batch_size` out to keep them") from error


def collate_fn_of(data: Any) -> Collate | None:
    """Return the `collate_fn` of a data set, or of the data set that a Subset wraps; None without one."""
    found = getattr(data, "collate_fn", None)
    if found is None and isinstance(data, Subset):
        return collate_fn_of(data.dataset)
    return found if callable(found) else None


def collated(
    raw: Callable[[int], Any],
    indices: Tensor,
    collate: Collate,
    wanted: ItemRequirements,
    batch_size: int | None,
    name: str,
) -> list[Batch]:
    """Make batches of the items `raw(i)` with a user's collate_fn.

    They have `batch_size` examples. Without it, there is one batch, unless it cannot be cut. Raises SpectraError.
    """

    def called(items: list[Any]) -> Any:
        try:
            return collate(items)
        except Exception as error:
            text = f"its collate_fn failed with {describe(error)}; SPECTRA_TRACEBACK=1 shows where"
            raise SpectraError(f"`data` {name}: {text}") from error

    def made(items: list[Any], places: Tensor) -> Batch:
        what = f"the output of its collate_fn for {counted(len(items), 'example')}"
        return batch_of(called(items), places, 0, wanted, what, name)

    items = [raw(index) for index in indices.tolist()]
    again = [raw(index) for index in indices[:READ_TWICE].tolist()]
    one, two = (tree_map(as_tensor, plain(called(few))) for few in (items[:READ_TWICE], again))
    if not same(one, two):
        text = "its first examples are different when they are read again; switch random augmentation off"
        raise SpectraError(f"`data` {name}: {text} in it and in its collate_fn")
    if batch_size is None:
        whole = made(items, indices)
        if len(items) <= UNCUT or can_be_cut(whole):
            return [whole]
    size = batch_size or UNCUT
    return [made(items[first : first + size], indices[first : first + size]) for first in range(0, len(items), size)]


def can_be_cut(batch: Batch) -> bool:
    """Whether a batch's tensors and lists have one entry for each example."""
    try:
        return bool(batch.part(slice(1)))
    except SpectraError:
        return False
