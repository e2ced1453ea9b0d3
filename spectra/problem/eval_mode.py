"""A context that leaves a model and its process as they were found, for measurements in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectra.problem.hooks import without_gradient_hooks
from spectra.problem.side_effects import CONTAINERS, generators_restored, has_changed, put_back
from spectra.vectors import without_autocast

TABLES = ("_parameters", "_buffers", "_modules")
LARGEST = 1 << 24  # entries of a tensor attribute that is restored: a metric, but not a data set


@contextmanager
def temporary_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, with autograd on, and without autocast and gradient hooks, inside this context.

    Restored on leaving: the states of generators, each module's mode, hooks, parts, attributes (with the entries of
    lists and the like, and tensors written in place, as metrics are) and buffers, and the gradients in `grad`, which
    are absent inside: a user's loss may call `backward` or `zero_grad`. The mode is set as an attribute, since a
    model's own `eval()` or `train()` may do more, such as merge weights. Parameters are not copied: nothing inside may
    write to them. Other changes by a forward pass (to an object that modules share, or a file) remain.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # autograd on, under no_grad too
        stack.enter_context(without_autocast())
        stack.enter_context(generators_restored())
        for module in list(model.modules()):
            stack.enter_context(module_restored(module))
        stack.enter_context(without_gradient_hooks(model))
        yield


@contextmanager
def module_restored(module: nn.Module) -> Iterator[None]:
    """Put one module, without those in it, in eval mode and without gradients; on leaving, restore its mode, gradients,
    attributes and buffers.
    """
    training, attributes = module.training, dict(module.__dict__)
    tables = [(table, dict(table)) for name in TABLES if isinstance(table := attributes.get(name), dict)]
    containers = [(value, value.copy()) for value in attributes.values() if type(value) in CONTAINERS]
    buffers = [*module.buffers(recurse=False), *filter(is_plain, attributes.values())]
    buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters(recurse=False) if parameter.is_leaf]
    try:
        module.training = False
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        module.training = training  # a ScriptModule does not keep it in __dict__
        for table, before in [(module.__dict__, attributes), *tables]:
            table.clear()
            table.update(before)
        for container, before in containers:
            if has_changed(container, before):
                put_back(container, before)
        for parameter, before in gradients:
            parameter.grad = before
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def is_plain(value: Any) -> bool:
    """Whether a module's attribute is a tensor that can be copied and compared, and not a parameter."""
    if type(value) is not Tensor:
        return False
    return value.numel() <= LARGEST and value.layout is torch.strided and not value.is_meta
