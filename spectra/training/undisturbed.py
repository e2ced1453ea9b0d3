"""A model and its process as they were found, whatever a look at the model does between: for a look inside training."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

TABLES = ("_parameters", "_buffers", "_modules")
GRADIENT_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode, autograd is on, autocast off, and no hook on a gradient runs.

    Put back on leaving: what generators will draw, each module's mode, hooks, parts, attributes and buffers. The mode
    is set as an attribute: an `eval()` or `train()` of the model's own may do more, such as merge weights. Parameters
    are not copied: whoever looks must not write to them. What else a forward pass changes (an object that modules
    share, a file) stays changed.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # autograd on, under no_grad too
        for kind in {"cpu", *(p.device.type for p in model.parameters())}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(chance_as_it_was())
        for module in list(model.modules()):
            stack.enter_context(module_as_it_was(module))
        for parameter in model.parameters():
            stack.enter_context(without_hooks(parameter))
        yield


@contextmanager
def chance_as_it_was() -> Iterator[None]:
    """The global generators of torch, NumPy and `random`, put back. CUDA's are not started for that."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def module_as_it_was(module: nn.Module) -> Iterator[None]:
    """One module without those in it: in eval mode, then with the mode, attributes and buffers that it had."""
    training, attributes = module.training, dict(module.__dict__)
    tables = [(table, dict(table)) for name in TABLES if isinstance(table := attributes.get(name), dict)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers(recurse=False)]
    try:
        module.training = False
        for name in GRADIENT_HOOKS:
            setattr(module, name, OrderedDict())
        yield
    finally:
        module.training = training  # of a ScriptModule it is no attribute
        for table, before in [(module.__dict__, attributes), *tables]:
            table.clear()
            table.update(before)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def without_hooks(parameter: nn.Parameter) -> Iterator[None]:
    """A hook may change a gradient, and then the matrix; or count, log, or reduce over processes."""
    hooks = parameter._backward_hooks
    try:
        parameter._backward_hooks = None
        yield
    finally:
        parameter._backward_hooks = hooks
