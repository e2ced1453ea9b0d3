"""Second derivatives by autograd, and the PyTorch settings under which every model has them."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.curvature.engine.replacements import replacements
from spectra.devices import as_current
from spectra.errors import OutOfMemory, SpectraError, describe
from spectra.memory import out_of_memory
from spectra.problem.autograd_graph import nodes_behind
from spectra.problem.batch import Batch
from spectra.problem.hooks import without_gradient_hooks
from spectra.problem.problem import Problem
from spectra.problem.side_effects import modules
from spectra.vectors import without_autocast

# A function of v (n,) that returns A v. With a slice of leaves as second argument, it maps v (n_l,) to A_ll v, without
# the work for other leaves.
Apply = Callable[..., Tensor]
LOSS = re.compile(r"\baten::\w*loss")  # an operation that is a loss
NESTED = re.compile(r"nested|aten::(matmul|linear)_backward|\bj\d+\b", re.IGNORECASE)  # j5: a ragged size


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Set PyTorch so that kernels are deterministic and have second derivatives, inside this context.

    Hooks on gradients do not run, and the caller's autocast and TF32 (10 bits) are off. Fused attention, cuDNN's
    recurrent layers (oneDNN's have one), the functions of `replacements` and code compiled by torch.compile have no
    second derivative, and are switched off or replaced. Settings are restored on leaving.
    """
    backends = torch.backends
    settings = [
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
        *older_switch(),
        # TF32 and bfloat16 for each operation: PyTorch's older switches (allow_tf32, and the `flags` that set them)
        # raise or warn where a program has used these newer ones. Torch's stubs lack them.
        (backends.cudnn.conv, "fp32_precision", "ieee"),  # pyright: ignore[reportAttributeAccessIssue]
        (backends.cudnn.rnn, "fp32_precision", "ieee"),  # pyright: ignore[reportAttributeAccessIssue]
        (backends.cuda.matmul, "fp32_precision", "ieee"),
        (backends.mkldnn.conv, "fp32_precision", "ieee"),  # pyright: ignore[reportAttributeAccessIssue]
        (backends.mkldnn.matmul, "fp32_precision", "ieee"),  # pyright: ignore[reportAttributeAccessIssue]
        *replacements(),
    ]
    if any(isinstance(layer, nn.RNNBase) for layer in modules(model)):
        settings.append((backends.cudnn, "enabled", False))
    fast_path = backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(without_autocast())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(switched(settings))
        stack.enter_context(without_gradient_hooks(model))
        stack.enter_context(uncompiled())
        try:
            backends.mha.set_fastpath_enabled(False)
            parameter = next(model.parameters(), None)
            if parameter is not None and parameter.is_cuda:
                stack.enter_context(as_current(parameter.device))
                start_autograd(parameter.device)
            yield
        finally:
            backends.mha.set_fastpath_enabled(fast_path)


def older_switch() -> list[tuple[object, str, object]]:
    """The setting for cuDNN's older switch of TF32; empty where reading it already raises.

    Models that call `torch.backends.cudnn.flags`, as with CTC, read it, and it raises unless it agrees with the
    switches for each operation.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.backends.cudnn.allow_tf32  # noqa: B018
    except RuntimeError:
        return []
    return [(torch.backends.cudnn, "allow_tf32", False)]


def uncompiled() -> AbstractContextManager:
    """A context in which compiled functions run as they are written.

    The code that torch.compile makes has no second derivative.
    """
    compiles = "torch._dynamo" in sys.modules  # loaded if anything was compiled; importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


@cache
def start_autograd(device: torch.device) -> None:
    """Launch a first kernel in autograd's thread of a CUDA device.

    It gives the thread a CUDA context. Without one, PyTorch warns where the thread begins with a matrix product.
    """
    one = torch.ones((), device=device, requires_grad=True)
    torch.autograd.grad(one * one, one)


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of differentiation inside this context into SpectraErrors of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        what = describe(error)
        if out_of_memory(error):
            raise OutOfMemory(f"`batch_size`: out of memory; try a smaller one, or less `memory` ({what})") from error
        if NESTED.search(what):
            raise SpectraError(
                f"`model`: PyTorch lacks a derivative of a layer for nested tensors ({what}); pad the "
                "sequences to one length before that layer, and mask the padding"
            ) from error
        if any(phrase in what for phrase in ("not implemented", "not support", "differentiated twice")):
            if LOSS.search(what):  # in a loss of (model, batch), or in the model itself
                text = f"has no second derivative ({what}); write it with operations that can be differentiated twice"
                way_out = "or as a function of (output, target), and ask for `curvature` fisher-empirical"
                raise SpectraError(f"`loss`: {text}, {way_out}") from error
            raise SpectraError(f"`model`: a layer has no second derivative ({what}); replace that layer") from error
        raise SpectraError(f"`model`: differentiating it failed ({what})") from error


@contextmanager
def switched(settings: Sequence[tuple[object, str, object]]) -> Iterator[None]:
    """Set attributes, each (owner, name, value), inside this context, and restore them on leaving."""
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def gradient(output: Tensor, inputs: Sequence[Tensor], weights: Tensor | None = None, create_graph: bool = False):
    """The derivative of weights'output by each input, zero where it does not depend on one; keeps the graph."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    if create_graph and weights is None:
        weights = torch.ones_like(
            output, requires_grad=True
        )  # otherwise once_differentiable functions may go unnoticed
    gradients = torch.autograd.grad(
        output,
        inputs,
        weights,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    if create_graph:
        refuse_once_differentiable(gradients)
    return gradients


def combined_gradient(outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]):
    """The derivative of the sum of all weights'output by each input; keeps the graph."""
    held = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not held:
        return tuple(torch.zeros_like(x) for x in inputs)
    outputs, weights = zip(*held, strict=True)
    settings = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(outputs, inputs, weights, **settings)


def refuse_once_differentiable(gradients: Sequence[Tensor]) -> None:
    """Raise RuntimeError where a layer's derivative is detached from its graph.

    Its node would raise if it ran, but does not lead to any of our inputs, so autograd skips it and takes the
    derivative for zero (pytorch, `once_differentiable` in torch/autograd/function.py).
    """
    if any(node.name() == "torch::autograd::Error" for node in nodes_behind(gradients)):
        raise RuntimeError("a function marked with @once_differentiable cannot be differentiated twice")


class Jacobian:
    """The Jacobian J = d rows / d theta on one batch, linearised once.

    J v is computed as the derivative of u -> J'u by u (reverse over reverse).
    """

    def __init__(self, problem: Problem, batch: Batch):
        self.problem = problem
        self.rows = problem.rows(batch)
        self.dummy = torch.zeros_like(self.rows, requires_grad=True)
        self.parts = gradient(self.rows, problem.leaves, self.dummy, create_graph=True)
        self.transposed = problem.vector(self.parts)

    def times(self, vector: Tensor, leaves: slice | None = None) -> Tensor:
        """J v, of the shape of the rows, for v (n,); or for v (n_l,) with a slice of the parameters."""
        if leaves is None:
            return gradient(self.transposed, (self.dummy,), vector)[0]
        return combined_gradient(self.parts[leaves], (self.dummy,), self.problem.tensors(vector, leaves))[0]

    def transposed_times(self, rows: Tensor, leaves: slice | None = None) -> Tensor:
        """J'u (n,), for u of the shape of the rows; (n_l,) with a slice of the parameters."""
        inputs = self.problem.leaves[leaves or slice(None)]
        return self.problem.vector(gradient(self.rows, inputs, rows))
