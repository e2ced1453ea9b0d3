"""Forward hooks that only look on, such as those that log activations: a look inside training leaves them out.

A hook that returns something, writes to what it is given, or gives its module a tensor is part of what the model
computes (so weight_norm and pruning work), and stays. Which it is cannot be known without one call of it.
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
    """The numbers that PyTorch has given to the forward hooks of the model's modules, and to those of all modules."""
    return {number for table in tables(model) for number in table}


def observers(model: nn.Module, hooks: Set[int], run: Callable[[], Any]) -> set[int]:
    """The hooks that `run()`, a forward pass, has called and that did nothing but look on."""
    called, busy = set(), set()

    def watched(number: int, hook: Callable) -> Callable:
        def call(module: nn.Module, *given: Any, **keywords: Any) -> Any:
            called.add(number)
            before = footing(module, given, keywords)
            result = hook(module, *given, **keywords)
            if result is not None or footing(module, given, keywords) != before:
                busy.add(number)
            return result

        return call

    with exchanged(model, lambda number, hook: watched(number, hook) if number in hooks else hook):
        run()
    return called - busy


@contextmanager
def without_observers(model: nn.Module, hooks: Set[int]) -> Iterator[None]:
    """A context in which these hooks are not called."""
    with exchanged(model, lambda number, hook: None if number in hooks else hook):
        yield


@contextmanager
def exchanged(model: nn.Module, other: Callable[[int, Callable], Callable | None]) -> Iterator[None]:
    """A context in which another function, or none, stands for each forward hook."""
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
    """The tables in which PyTorch keeps forward hooks, those of all modules among them."""
    own = [table for module in model.modules() for name in TABLES if (table := module.__dict__.get(name))]
    return own + [table for name in TABLES if (table := getattr(everywhere, f"_global{name}"))]


def footing(module: nn.Module, *given: Any) -> list[tuple[Any, ...]]:
    """Whatever a hook could change of a forward pass: the tensors that it is given, and those of its module."""
    held = {**vars(module), **module._parameters, **module._buffers}
    tensors = [("", x) for x in pytree.tree_leaves(given)] + list(held.items())
    return [(name, id(x), 0 if x.is_inference() else x._version) for name, x in tensors if isinstance(x, Tensor)]
