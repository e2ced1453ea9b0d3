"""Find the blocks of a model, and recompute their activations for derivatives instead of keeping them.

A block is a module in a `ModuleList`, `Sequential` or `ModuleDict` that contains modules and parameters, such as a
layer of a transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

from spectra.problem.outputs import tensors_of
from spectra.problem.recomputation import recomputed
from spectra.problem.side_effects import without_side_effects


class Plain:
    """A function called as it is, in place of `torch.utils.checkpoint.CheckpointFunction`."""

    @staticmethod
    def apply(function: Callable, _preserve: bool, *arguments: Any) -> Any:
        """Call the function."""
        return function(*arguments)


def nothing(*_arguments: Any, **_keywords: Any) -> Iterator[None]:
    """Do nothing before and after the function of a non-reentrant checkpoint."""
    yield


CHECKPOINTS = {  # names in `torch.utils.checkpoint`, across versions of PyTorch
    "CheckpointFunction": Plain,
    "_checkpoint_without_reentrant_generator": nothing,
    "_checkpoint_without_reentrant_generator_impl": nothing,
}
CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[str]:
    """The names of the outermost blocks, from containers with two or more."""
    found, queue = [], [("", model)]
    while queue:
        name, module = queue.pop()
        children = [(f"{name}.{own}".lstrip("."), child) for own, child in module._modules.items() if child is not None]
        inner = [pair for pair in children if is_block(pair[1])] if isinstance(module, CONTAINERS) else []
        if len(inner) > 1:
            found += {id(child): name for name, child in reversed(inner)}.values()  # tied ones once
        else:
            queue += children
    return sorted(found)


def is_block(module: nn.Module) -> bool:
    """Whether a module contains modules and parameters."""
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


@contextmanager
def recomputing(model: nn.Module, names: Sequence[str], run: Callable = recomputed) -> Iterator[None]:
    """Recompute the named modules for derivatives of calls made inside this context.

    Caches of keys and values, as models of transformers pass them, are replaced by None: a recomputed module would
    write to them twice. The model's own checkpoints are switched off.
    """
    if not names:
        yield
        return
    blocks = [model.get_submodule(name) for name in names]
    had = [vars(block).get("forward") for block in blocks]
    own = {name: getattr(checkpoint, name) for name in CHECKPOINTS if hasattr(checkpoint, name)}
    try:
        for name in own:
            setattr(checkpoint, name, CHECKPOINTS[name])
        for block in blocks:
            vars(block)["forward"] = uncached(partial(run, block.forward, again=undone(block, block.forward)))
        yield
    finally:
        for name, value in own.items():
            setattr(checkpoint, name, value)
        for block, forward in zip(blocks, had, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = forward


def uncached(function: Callable) -> Callable:
    """Wrap a function to replace caches among its arguments by None."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        given = (None if is_cache(value) else value for value in arguments)
        return function(*given, **{name: None if is_cache(value) else value for name, value in keywords.items()})

    return call


def is_cache(value: Any) -> bool:
    """Whether a value is a cache of transformers, whatever the package's version."""
    return any(kind.__name__ == "Cache" for kind in type(value).__mro__)


def undone(block: nn.Module, forward: Callable) -> Callable:
    """Wrap a function to undo its side effects on the block."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        with without_side_effects(block):
            return forward(*arguments, **keywords)

    return call


def repeatable(model: nn.Module, names: Sequence[str], call: Callable[[], Any]) -> list[str]:
    """The named modules that return equal results when they are called twice with the arguments of `call()`."""
    changing: set[int] = set()

    def twice(forward: Callable, *arguments: Any, again: Callable, **keywords: Any) -> Any:
        with torch.no_grad():
            first, second = (tensors_of(again(*arguments, **keywords)) for _ in range(2))
        if len(first) != len(second) or not all(map(torch.equal, first, second)):
            changing.add(id(forward.__self__))  # pyright: ignore[reportFunctionMemberAccess]
        return forward(*arguments, **keywords)

    with recomputing(model, names, twice):
        call()
    return [name for name in names if id(model.get_submodule(name)) not in changing]
