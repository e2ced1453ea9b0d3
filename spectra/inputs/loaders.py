"""Read a DataLoader, or another iterable of batches, once, and keep its batches.

A matrix belongs to fixed examples. A loader that shuffles is read once, and its examples keep their indices in the data
set. Data that change between two readings are refused, and so are data without an end.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset

from spectra.errors import SpectraError, describe
from spectra.files import in_units
from spectra.inputs.batches import READ_TWICE, Batches, batch_of, chosen, recut
from spectra.inputs.graphs import batch_of as graphs_of
from spectra.inputs.graphs import is_graph
from spectra.inputs.items import ItemRequirements, as_tensor, plain
from spectra.inputs.seeding import seeded
from spectra.inputs.spec import WHERE
from spectra.inputs.stacking import same
from spectra.memory import memory_share, out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.outputs import tensors_of
from spectra.quoting import quoted
from spectra.wording import counted

MOST = 3 * 10**5  # batches of data without a length: about a minute of reading
FINITE = "the data must be finite and repeatable"


class RecordingBatchSampler:
    """A batch sampler that remembers the indices that it has yielded."""

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.given: list[list[Any]] = []

    def __iter__(self) -> Iterator[Any]:
        for indices in self.sampler:
            self.given.append(list(indices))
            yield indices

    def __len__(self) -> int:
        return len(self.sampler)


def loaded(
    data: Any, samples: int | None, seed: int, batch_size: int | None, wanted: ItemRequirements, name: str
) -> Batches:
    """Read all batches of an iterable once, then choose `samples` examples and change the batch size if requested.

    Raises:
        SpectraError: the data are not batches, have no end, or change when they are read again.
    """
    if isinstance(data, Mapping):
        refuse_others(data, name)
    if isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        came = "None" if data is None else name
        raise SpectraError(f"`data`: expected a DataLoader, batches (x, y), tensors (x, y), or a name, got {came}")
    if any(kind.__name__ == "IterableDataset" for kind in type(data).__mro__):
        text = f"{name} yields single examples; wrap it in a DataLoader"
        raise SpectraError(f"`data`: {text} ({FINITE})")
    with seeded(seed), generators_kept(data):  # a loader that shuffles draws from them
        source, recorded = numbered(data)
        first: list[Any] = []
        batches = list(read_batches(source, recorded, first, wanted, name))
        if not batches:
            raise SpectraError(f"`data`: {name} is empty; give at least one batch")
        notes = loader_notes(data, recorded)
        refuse_changing(data, recorded, first[0], name)
    if samples is not None:
        batches = chosen(batches, samples, seed, name)
    if batch_size is not None:
        batches = recut(batches, batch_size)
    return Batches(batches, notes)


def refuse_others(data: Mapping[Any, Any], name: str) -> None:
    """Raise SpectraError where a mapping holds tensors and something else."""
    others = [key for key, value in data.items() if not hasattr(value, "shape")]
    if others and len(others) < len(data):
        held = ", ".join(f"{quoted(key)} of type {type(data[key]).__name__}" for key in others)
        text = f"{name} holds {held} beside tensors; leave it out, or give batches in a list, [batch]"
        raise SpectraError(f"`data`: {text}")


@contextmanager
def generators_kept(data: Any) -> Iterator[None]:
    """Restore the states of a DataLoader's own generators on leaving, so that reading it does not change training."""
    samplers = getattr(data, "sampler", None), getattr(data, "batch_sampler", None)
    holders = [data, *samplers, getattr(samplers[1], "sampler", None)]
    generators = [getattr(holder, "generator", None) for holder in holders]
    states = [(found, found.get_state()) for found in generators if isinstance(found, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def items_of(data: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield the items of the data. Raises SpectraError where reading one fails."""
    number = 0
    try:
        for number, item in enumerate(data, 1):  # noqa: B007  (used in the message)
            yield item
    except Exception as error:
        if isinstance(error, SpectraError) or out_of_memory(error):
            raise
        raise SpectraError(f"`data`: reading batch {number} of {name} failed with {reason(error)}; {WHERE}") from error


def reason(error: Exception) -> str:
    """Describe an error; for one from a worker process, take the last line of its traceback."""
    lines = str(error).strip().splitlines()
    if lines and re.match(r"Caught \w+ in DataLoader worker process", lines[0]):
        return quoted(lines[-1], 200)
    return describe(error)


def numbered(data: Any) -> tuple[Any, RecordingBatchSampler | None]:
    """Return data to iterate over and, for a DataLoader, the sampler that records the indices of its examples.

    The loader itself is not changed: a copy of it gets that sampler.
    """
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset) or data.batch_sampler is None:
        return data, None
    twin, recorded = copy.copy(data), RecordingBatchSampler(data.batch_sampler)
    twin.__dict__ |= {"batch_sampler": recorded, "_iterator": None}  # DataLoader itself refuses to change a sampler
    return twin, recorded


def read_batches(
    data: Iterable[Any], recorded: RecordingBatchSampler | None, first: list[Any], wanted: ItemRequirements, name: str
) -> Iterator[Batch]:
    """Yield the batches; examples are numbered as in the data set where that is known, else in order.

    The first item is appended to `first` unchanged. Raises SpectraError.
    """
    endless = not has_length(data)
    count = size = 0
    for number, item in enumerate(items_of(data, name)):
        if not number:
            first.append(item)
        if isinstance(item, Batch):
            batch = item
        elif is_graph(item):
            batch = graphs_of(item, count, f"batch {number} of {name}")
            known = indices_of(recorded, number)
            indices = batch.indices if known is None or len(known) != len(batch) else known
            batch = replace(batch, targets=None if wanted.whole else batch.targets, indices=indices)
        else:
            indices = indices_of(recorded, number)
            batch = batch_of(item, indices, count, wanted, f"batch {number} of {name}", name)
        yield batch
        count += len(batch)
        if endless:
            size += sum(tensor.nbytes for tensor in tensors_of((batch.inputs, batch.targets)))
            refuse_endless(number + 1, size, name)


def has_length(data: Any) -> bool:
    """Whether `len(data)` works."""
    try:
        return len(data) >= 0
    except Exception:  # PyTorch's loaders of iterable data sets have no length, each in its own way
        return False


def refuse_endless(batches: int, size: int, name: str) -> None:
    """Raise SpectraError where data without a length have given more batches than are kept."""
    if batches > MOST or size > 2 * memory_share(torch.device("cpu")):
        text = f"{name} does not end after {batches:,} batches ({in_units(size)}); {FINITE}"
        raise SpectraError(f"`data`: {text}: give a list of some batches, such as list(itertools.islice(data, 100))")


def indices_of(recorded: RecordingBatchSampler | None, number: int) -> Tensor | None:
    """Return the indices of a batch's examples in the data set; None where they are unknown or not integers."""
    if recorded is None or number >= len(recorded.given):
        return None
    found = recorded.given[number]
    return torch.tensor(found) if all(type(index) is int and index >= 0 for index in found) else None


def loader_notes(data: Any, recorded: RecordingBatchSampler | None) -> tuple[str, ...]:
    """Return notes on a loader that shuffles, or leaves examples out."""
    if recorded is None:
        return ()
    order = [index for indices in recorded.given for index in indices]
    if not all(type(index) is int for index in order):
        return ()
    notes = []
    if order != sorted(order):
        notes.append("the loader shuffles: it was read once, and its batches are kept")
    if has_length(data.dataset) and (left := len(data.dataset) - len(set(order))) > 0:
        notes.append(f"the loader leaves out {left} of {counted(len(data.dataset), 'example')}")
    return tuple(notes)


def refuse_changing(data: Any, recorded: RecordingBatchSampler | None, first: Any, name: str) -> None:
    """Raise SpectraError where the first examples are different when they are read again.

    The first examples of a DataLoader are read twice by their indices, since the loader may shuffle. For other data,
    the first item is compared with that of a second iteration. Lists and iterators are not checked.
    """
    if recorded is not None and recorded.given:
        few = recorded.given[0][:READ_TWICE]
        if not same(*(fetched(data, few, name) for _ in range(2))):
            text = f"{name} gives different examples when it is read again; switch random augmentation off"
            raise SpectraError(f"`data`: {text} in its data set and collate_fn, or give list(loader)")
    elif not isinstance(data, Sequence | Iterator | Tensor):
        again = next(items_of(data, name), None)
        if again is not None and not same(with_tensors(first), with_tensors(again)):
            text = f"{name} gives a different first batch when it is read again; {FINITE}"
            raise SpectraError(f"`data`: {text}: switch augmentation and shuffling off, or give a list of the batches")


def fetched(loader: Any, indices: Sequence[Any], name: str) -> Any:
    """Read and collate the examples with these indices as a loader does, as a plain tree. Raises SpectraError."""
    dataset = loader.dataset
    try:
        many = hasattr(dataset, "__getitems__")
        items = dataset.__getitems__(list(indices)) if many else [dataset[index] for index in indices]
        return with_tensors(loader.collate_fn(items))
    except Exception as error:
        raise SpectraError(f"`data`: reading {name} again failed with {describe(error)}; {WHERE}") from error


def with_tensors(item: Any) -> Any:
    """Convert an item to a plain tree of tensors."""
    return tree_map(as_tensor, plain(item))
