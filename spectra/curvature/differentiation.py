"""Derivatives of derivatives by autograd, and the settings under which every model has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.curvature.problem import Batch, Problem

Apply = Callable[[Tensor], Tensor]


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Kernels that have a second derivative and one answer; all settings are put back on leaving.

    Fused attention and cuDNN's and oneDNN's recurrent layers have no second derivative, TF32 keeps 10 bits.
    """
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in model.modules())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    matmul_tf32 = torch.backends.cuda.matmul.allow_tf32
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if torch.cuda.is_available():
            settings = {"enabled": not recurrent, "benchmark": False, "deterministic": True, "allow_tf32": False}
            stack.enter_context(torch.backends.cudnn.flags(**settings))
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            torch.backends.cuda.matmul.allow_tf32 = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.backends.cuda.matmul.allow_tf32 = matmul_tf32


def gradient(output: Tensor, inputs: Sequence[Tensor], weights: Tensor | None = None, create_graph: bool = False):
    """The derivative of weights'output by each input, zeros where there is none; the graph is kept."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        output,
        inputs,
        weights,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


class Jacobian:
    """J = d rows / d theta on one batch, linearised once: J v as the derivative of u -> J'u (reverse over reverse)."""

    def __init__(self, problem: Problem, batch: Batch):
        self.problem = problem
        self.rows = problem.loss.rows(problem.output(batch), batch.targets)
        self.dummy = torch.zeros_like(self.rows, requires_grad=True)
        transposed = gradient(self.rows, problem.leaves, self.dummy, create_graph=True)
        self.transposed = problem.vector(transposed)

    def times(self, vector: Tensor) -> Tensor:
        """J v, of the shape of rows."""
        return gradient(self.transposed, (self.dummy,), vector)[0]

    def transposed_times(self, rows: Tensor) -> Tensor:
        """J'u, (n,)."""
        return self.problem.vector(gradient(self.rows, self.problem.leaves, rows))
