"""Call a model without side effects: attributes of its modules and the global random generators are restored.

A model may keep tensors between calls, such as a matrix computed from its weights. Such a tensor has no graph if it was
computed under no_grad, or belongs to other weights. Each call seeds the random generators differently, so that
randomness in the model is detected.
"""

from __future__ import annotations

import operator
import pickle
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spectra.devices import generator_states, restore_generators

CONTAINERS = frozenset((dict, OrderedDict, defaultdict, list, set, deque))
LARGEST = 1000  # entries of a container that is restored: a cache, but not a vocabulary
CALLS = count(1)


@contextmanager
def without_side_effects(model: nn.Module) -> Iterator[None]:
    """Undo the side effects of model calls inside this context: random numbers drawn, and tensors kept.

    The global generators get a different seed at each call, and are restored on leaving. If modules have new tensors,
    all their attributes are restored, with the entries of lists, sets and dictionaries of up to a thousand entries.
    Otherwise attributes stay as they are: a model may count its calls.
    """
    before = [(vars(module), vars(module).copy()) for module in modules(model)]
    before += [(value, value.copy() if value else ()) for _, had in before for value in had.values() if is_cache(value)]
    with generators_restored():
        reseed(next(CALLS))
        try:
            yield
        finally:
            if any(
                isinstance(x, Tensor)
                for pair in before
                if has_changed(*pair)
                for x in pytree.tree_leaves(new_entries(*pair))
            ):
                for container, had in before:
                    put_back(container, had)


def modules(model: nn.Module) -> list[nn.Module]:
    """The modules of `model.modules()` in no particular order; much faster."""
    found, stack = {id(model): model}, [model]
    while stack:
        for child in stack.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                stack.append(child)
    return list(found.values())


def put_back(container: Any, entries: Any) -> None:
    """Restore the entries of a container."""
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(entries)


def is_cache(value: Any) -> bool:
    """Whether a value is a container that may hold tensors between calls."""
    return type(value) in CONTAINERS and len(value) <= LARGEST


def has_changed(container: Any, before: Any) -> bool:
    """Whether a container has other entries now, or has them in another order."""
    if not before or len(container) != len(before):
        return len(container) != len(before)
    both = (container.values(), before.values()) if isinstance(container, dict) else (container, before)
    return not all(map(operator.is_, *both))


def new_entries(container: Any, before: Any) -> list[Any]:
    """The entries of a container that it did not have before."""
    now, then = (c.values() if isinstance(c, dict) else c for c in (container, before))
    known = {id(value) for value in then}
    return [value for value in now if id(value) not in known]


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and `random` on leaving. CUDA is not initialised for this."""
    states = generator_states()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        restore_generators(states)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def reseed(number: int) -> None:
    """Seed the global generators of torch, NumPy and `random`."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


def global_generator_states() -> list[bytes]:
    """The states of the global generators, which change when a number is drawn."""
    states = [state.numpy().tobytes() for state in pytree.tree_leaves(generator_states())]
    return [*states, pickle.dumps(random.getstate()), pickle.dumps(np.random.get_state())]  # noqa: NPY002
