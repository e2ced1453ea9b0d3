"""Find forward hooks that only observe, such as those that log activations, and disable them during a recording.

A hook that returns a value, writes to its arguments, or sets a tensor of its module is part of the model, as in
weight_norm and pruning, and is kept. Each hook has to be called once to find out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from torch.utils import _pytree as pytree

TABLES = ("_forward_pre_hooks", "_forward_hooks")
Hooks = OrderedDict[int, Callable]


def forward_hooks(model: nn.Module) -> set[int]:
    """Return the ids that PyTorch has given to the forward hooks of the model's modules, and to global hooks."""
    return {number for table in tables(model) for number in table}


def observers(model: nn.Module, hooks: Set[int], run: Callable[[], Any]) -> set[int]:
    """Call `run()`, a forward pass, and return those of the hooks that were called and only observed."""
    called, active = set(), set()

    def watched(number: int, hook: Callable) -> Callable:
        def call(module: nn.Module, *given: Any, **keywords: Any) -> Any:
            called.add(number)
            before = tensor_versions(module, given, keywords)
            result = hook(module, *given, **keywords)
            if result is not None or tensor_versions(module, given, keywords) != before:
                active.add(number)
            return result

        return call

    with replaced(model, lambda number, hook: watched(number, hook) if number in hooks else hook):
        run()
    return called - active


@contextmanager
def without_observers(model: nn.Module, hooks: Set[int]) -> Iterator[None]:
    """Disable these hooks inside this context."""
    with replaced(model, lambda number, hook: None if number in hooks else hook):
        yield


@contextmanager
def replaced(model: nn.Module, other: Callable[[int, Callable], Callable | None]) -> Iterator[None]:
    """Replace each forward hook by `other(id, hook)`, or remove it if that is None, inside this context."""
    kept = [(table, OrderedDict(table)) for table in tables(model)]
    try:
        for table, hooks in kept:
            table.clear()
            table.update({number: found for number, hook in hooks.items() if (found := other(number, hook))})
        yield
    finally:
        for table, hooks in kept:
            table.clear()
            table.update(hooks)


def tables(model: nn.Module) -> list[Hooks]:
    """Return the tables of forward hooks of all modules in the model, and of global hooks."""
    own = [table for module in model.modules() for name in TABLES if (table := module.__dict__.get(name))]
    return own + [table for name in TABLES if (table := getattr(everywhere, f"_global{name}"))]


def tensor_versions(module: nn.Module, *given: Any) -> list[tuple[Any, ...]]:
    """Return identities and versions of the tensors that a hook could change, in its arguments and its module."""
    held = {**vars(module), **module._parameters, **module._buffers}
    tensors = [("", x) for x in pytree.tree_leaves(given)] + list(held.items())
    return [(name, id(x), 0 if x.is_inference() else x._version) for name, x in tensors if isinstance(x, Tensor)]
