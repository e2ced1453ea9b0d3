"""Find and disable hooks on gradients: of parameters, modules, all modules, and tensors inside a forward pass.

A hook that changes a gradient would make products wrong; a hook that only observes would see vectors in place of
gradients. So no hook runs while products are computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from spectra.problem.side_effects import modules

OF_MODULES = ("_backward_pre_hooks", "_backward_hooks")
REGISTER = Tensor.register_hook
OF_ALL = ("_global_backward_pre_hooks", "_global_backward_hooks")


Report = Callable[[str], None]


@dataclass(frozen=True)
class HookTable:
    """The hooks in one table of a tensor, a module, or PyTorch's own tables for all modules."""

    owner: Any
    table: str
    hooks: Any  # an OrderedDict of functions, which the handles of hooks know, or None

    def put(self, hooks: OrderedDict[int, Callable] | None) -> None:
        """Set the table of hooks."""
        setattr(self.owner, self.table, hooks)

    def clear(self) -> None:
        """Remove all hooks of the table."""
        self.put(None if isinstance(self.owner, Tensor) else OrderedDict())


def hook_tables(model: nn.Module) -> list[HookTable]:
    """The tables of all hooks on gradients that exist before a forward pass."""
    found, tensors = [HookTable(every_module, name, getattr(every_module, name)) for name in OF_ALL], {}
    for module in modules(model):
        found += [HookTable(module, name, getattr(module, name, None)) for name in OF_MODULES]
        tensors |= {id(tensor): tensor for tensor in module._parameters.values() if tensor is not None}
    found += [HookTable(tensor, "_backward_hooks", tensor._backward_hooks) for tensor in tensors.values()]
    return [each for each in found if each.hooks]


def set_register(register: Callable[[Tensor, Callable], Any]) -> None:
    """Replace `Tensor.register_hook` by `register`."""
    setattr(Tensor, "register_hook", register)  # noqa: B010, a type checker refuses an assignment


@contextmanager
def without_gradient_hooks(model: nn.Module) -> Iterator[None]:
    """Disable hooks on gradients inside this context, and restore them on leaving.

    Inside, no hook runs, and none is registered on a tensor. Hooks on the nodes of a graph (`grad_fn.register_hook`)
    cannot be disabled.
    """
    places, register = hook_tables(model), Tensor.register_hook
    try:
        set_register(lambda tensor, hook: RemovableHandle(OrderedDict()))
        for each in places:
            each.clear()
        yield
    finally:
        set_register(register)
        for each in places:
            each.put(each.hooks)


@contextmanager
def watched(places: Sequence[HookTable], model: nn.Module, report: Report) -> Iterator[list[str]]:
    """Run the hooks of these places, and those that a forward pass registers on tensors, inside
    `without_gradient_hooks`.

    Yields the list of their owners, and calls `report(owner)` for each hook that changes its arguments.
    """
    names = {id(module): f"module {name or type(model).__name__}" for name, module in model.named_modules()}
    names |= {id(parameter): name for name, parameter in model.named_parameters()}
    owners, unheard = [names.get(id(each.owner), "all modules") for each in places], Tensor.register_hook

    def register(tensor: Tensor, hook: Callable) -> RemovableHandle:
        where = getattr(hook, "__qualname__", type(hook).__qualname__).split(".<locals>")[0]
        owners.append(names.get(id(tensor), f"a tensor in {where}"))
        return REGISTER(tensor, watching(hook, owners[-1], report))

    parameters = [(parameter, parameter._backward_hooks) for parameter in model.parameters()]
    try:
        set_register(register)
        for each, name in zip(places, tuple(owners), strict=True):
            each.put(OrderedDict((key, watching(hook, name, report)) for key, hook in each.hooks.items()))
        yield owners
    finally:
        set_register(unheard)
        for each in places:
            each.clear()
        for parameter, hooks in parameters:  # forward may have registered some
            parameter._backward_hooks = hooks


def watching(hook: Callable, name: str, report: Report) -> Callable:
    """Wrap a hook to call `report(name)` if it returns tensors other than its arguments, or writes to these."""

    def call(*arguments):
        given = [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
        versions = [x._version for x in given]
        result = hook(*arguments)
        returned = pytree.tree_leaves(result)
        if versions != [x._version for x in given] or any(
            all(x is not y for y in given) for x in returned if x is not None
        ):
            report(name)
        return result

    return call
