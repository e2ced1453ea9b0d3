"""Read some examples of a training loader without changing what the loader yields afterwards."""

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
from spectra.inputs.seeding import seeded

MOST = 10_000  # objects that are searched for random generators
LARGEST = 1000  # entries of a list or dictionary that is searched; larger ones are data
GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)
LEAVES = (torch.Tensor, np.ndarray, nn.Module, type, type(torch))  # not searched
GIVE = "give `data`, the examples to watch, as batches"


def some_batches(loader: Any, count: int, seed: int) -> list[Any]:
    """Read `count` examples of a DataLoader's data set, or all if it has fewer, in batches of the loader's size.

    The examples are chosen with the seed and read one by one, without the loader's sampler and workers. All random
    generators are restored afterwards, including those of the data set and the collate function. Random augmentation is
    drawn once.

    Raises:
        SpectraError: the loader is not a DataLoader, its data set has no length, or reading fails.
    """
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or not callable(collate):
        raise SpectraError(f"`data`: the trainer's loader is a {type(loader).__name__}, not a DataLoader; {GIVE}")
    name = type(dataset).__name__
    size = batch_size(loader)
    if size is None:
        raise SpectraError(f"`data`: the trainer's loader has no batch size: {name} makes its own batches; {GIVE}")
    try:
        length = len(dataset)
    except Exception as error:
        raise SpectraError(f"`data`: {name} has no length, so no examples can be chosen from it; {GIVE}") from error
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
    with seeded(seed), state_restored(dataset, collate):
        try:
            return [collate(items_of(dataset, order[i : i + size])) for i in range(0, len(order), size)]
        except Exception as error:
            raise SpectraError(f"`data`: reading {name} failed with {describe(error)}; {GIVE}") from error


def batch_size(loader: Any) -> int | None:
    """Return the size of a loader's batches, a default if they vary, and None if the data set makes its own batches."""
    for holder in (loader, getattr(loader, "batch_sampler", None)):
        if isinstance(size := getattr(holder, "batch_size", None), int):
            return size
    return None if getattr(loader, "batch_sampler", None) is None else UNCUT


def items_of(dataset: Any, indices: list[int]) -> list[Any]:
    """Read items of a data set as PyTorch's loaders do."""
    fetch: Any = getattr(dataset, "__getitems__", None)
    return fetch(indices) if fetch else [dataset[index] for index in indices]


@contextmanager
def state_restored(*objects: Any) -> Iterator[None]:
    """Restore, on leaving, the attributes of objects and of objects in them, and the states of random generators."""
    with ExitStack() as stack:
        for found in reachable(objects):
            stack.callback(restorer(found))
        yield


def restorer(found: Any) -> Any:
    """Return a function that restores the present state of a random generator, or the attributes of an object."""
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


def reachable(objects: Any) -> list[Any]:
    """List the random generators, and the objects with attributes, that are reachable from objects, nearest first."""
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
            waiting.append(getattr(one, "__self__", None))  # the object of a method
    return found
