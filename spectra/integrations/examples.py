"""Some of a training loader's examples, read beside the loader, which goes on as if nobody had read."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.errors import SpectraError, describe
from spectra.inputs.batches import UNCUT
from spectra.inputs.chance import seeded

MOST = 10_000  # objects in which generators are looked for
LARGEST = 1000  # entries of a list or a dictionary: more are data
GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)
LEAVES = (torch.Tensor, np.ndarray, nn.Module, type, type(torch))  # in which nothing is looked for
GIVE = "give `data`, the examples to watch, as batches"


def some_batches(loader: Any, count: int, seed: int) -> list[Any]:
    """Batches of `count` examples of a DataLoader's data set, or of all where it has fewer.

    The examples are chosen by the seed and taken from the data set one by one: the loader's sampler and its workers
    stay out of it, and all generators, those that data set and collate function keep among them, are put back. What
    the data set draws at random is drawn once.

    Raises:
        SpectraError: the loader is none of PyTorch's, or its data set has no length; reading fails.
    """
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or not callable(collate):
        raise SpectraError(f"`data`: the trainer's loader is a {type(loader).__name__}, not a DataLoader; {GIVE}")
    name = type(dataset).__name__
    size = batch_size(loader)
    if size is None:
        raise SpectraError(f"`data`: the trainer's loader has no batch size, as {name} makes its own batches; {GIVE}")
    try:
        length = len(dataset)
    except Exception as error:
        raise SpectraError(f"`data`: {name} has no length, so no examples can be chosen from it; {GIVE}") from error
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
    with seeded(seed), as_they_were(dataset, collate):
        try:
            return [collate(items_of(dataset, order[i : i + size])) for i in range(0, len(order), size)]
        except Exception as error:
            raise SpectraError(f"`data`: reading {name} failed with {describe(error)}; {GIVE}") from error


def batch_size(loader: Any) -> int | None:
    """The size of a loader's batches, where they are of one size; None where the data set has batches of its own."""
    for holder in (loader, getattr(loader, "batch_sampler", None)):
        if isinstance(size := getattr(holder, "batch_size", None), int):
            return size
    return None if getattr(loader, "batch_sampler", None) is None else UNCUT


def items_of(dataset: Any, indices: list[int]) -> list[Any]:
    """The items of a data set, fetched as PyTorch's loaders do."""
    fetch: Any = getattr(dataset, "__getitems__", None)
    return fetch(indices) if fetch else [dataset[index] for index in indices]


@contextmanager
def as_they_were(*objects: Any) -> Iterator[None]:
    """Put back on leaving the attributes of objects, and of those within them, and the states of generators there."""
    with ExitStack() as stack:
        for found in within(objects):
            stack.callback(restorer(found))
        yield


def restorer(found: Any) -> Any:
    """The function that puts a generator back to its present state, or an object to its present attributes."""
    if isinstance(found, torch.Generator):
        state = found.get_state()
        return lambda: found.set_state(state)
    if isinstance(found, random.Random):
        state = found.getstate()
        return lambda: found.setstate(state)
    if isinstance(found, np.random.RandomState):
        state = found.get_state()
        return lambda: found.set_state(state)
    if isinstance(found, np.random.Generator):
        state = found.bit_generator.state
        return lambda: setattr(found.bit_generator, "state", state)
    held, before = vars(found), dict(vars(found))

    def restore() -> None:
        if held.keys() != before.keys() or any(held[name] is not value for name, value in before.items()):
            held.clear()
            held.update(before)

    return restore


def within(objects: Any) -> list[Any]:
    """Generators, and objects with attributes, in these and in what they hold, the nearest first."""
    found, seen, waiting = [], set(), deque(objects)
    while waiting and len(seen) < MOST:
        one = waiting.popleft()
        if id(one) in seen or isinstance(one, LEAVES):
            continue
        seen.add(id(one))
        if isinstance(one, GENERATORS):
            found.append(one)
        elif isinstance(one, list | tuple | dict):
            if len(one) <= LARGEST:
                waiting += one.values() if isinstance(one, dict) else one
        elif isinstance(held := getattr(one, "__dict__", None), dict):
            found.append(one)
            waiting += held.values()
            waiting.append(getattr(one, "__self__", None))  # of a method
    return found
