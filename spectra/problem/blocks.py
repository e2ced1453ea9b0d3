"""The blocks of a model, and a context in which each is computed anew for derivatives, so that nothing in it is kept.

Blocks are the modules of a `ModuleList` or a `Sequential` that have modules and parameters in them, as the layers of a
transformer are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils import checkpoint

from spectra.problem.recomputation import recomputed
from spectra.problem.side_effects import without_side_effects


class Plain:
    """A function called as it is, in place of `torch.utils.checkpoint.CheckpointFunction`."""

    @staticmethod
    def apply(function: Callable, _preserve: bool, *arguments: Any) -> Any:
        """Call the function."""
        return function(*arguments)


def nothing(*_arguments: Any, **_keywords: Any) -> Iterator[None]:
    """Do nothing before and after the function of a checkpoint that is not reentrant."""
    yield


CHECKPOINTS = {  # names in `torch.utils.checkpoint`, of this version of PyTorch or another
    "CheckpointFunction": Plain,
    "_checkpoint_without_reentrant_generator": nothing,
    "_checkpoint_without_reentrant_generator_impl": nothing,
}
CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[str]:
    """The names of the outermost blocks, of which a container has two or more."""
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
    """Whether a module has modules and parameters in it."""
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


@contextmanager
def recomputing(model: nn.Module, names: Sequence[str], run: Callable = recomputed) -> Iterator[None]:
    """Compute the named modules anew for derivatives of what is called in this context.

    They are given no cache of keys and values, as transformers' models make: they would write to it twice. The model's
    own checkpoints call their functions as they are.
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
    """The function without caches among its arguments."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        given = (None if is_cache(value) else value for value in arguments)
        return function(*given, **{name: None if is_cache(value) else value for name, value in keywords.items()})

    return call


def is_cache(value: Any) -> bool:
    """Whether a value is a cache of transformers, whatever the package's version."""
    return any(kind.__name__ == "Cache" for kind in type(value).__mro__)


def undone(block: nn.Module, forward: Callable) -> Callable:
    """The function without side effects on the block."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        with without_side_effects(block):
            return forward(*arguments, **keywords)

    return call


def repeatable(model: nn.Module, names: Sequence[str], call: Callable[[], Any]) -> list[str]:
    """The named modules that return the same twice, as `call()` calls them."""
    twofold: set[int] = set()

    def twice(forward: Callable, *arguments: Any, again: Callable, **keywords: Any) -> Any:
        with torch.no_grad():
            first, second = (tensors(function(*arguments, **keywords)) for function in (again, again))
        if len(first) != len(second) or not all(map(torch.equal, first, second)):
            twofold.add(id(forward.__self__))  # pyright: ignore[reportFunctionMemberAccess]
        return forward(*arguments, **keywords)

    with recomputing(model, names, twice):
        call()
    return [name for name in names if id(model.get_submodule(name)) not in twofold]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]
