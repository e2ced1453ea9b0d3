"""The floor: the matrix products and convolutions that a product needs, run alone, back to back.

They are taken from the traced product with the very tensors, shapes and layouts that it gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.fx import Interpreter
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.problems import Case
from scripts.benchmarks.tools import gradient, math_attention
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.hoisting import HoistedProduct
from spectra.curvature.matrices import definition

aten = torch.ops.aten


def operations(_, a: torch.Size, b: torch.Size, **__) -> int:
    """Of a product in place: PyTorch's counter misses those."""
    return 2 * math.prod(a) * b[-1]


IN_PLACE = {aten.addmm_: operations, aten.baddbmm_: operations}
MULTIPLYING = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward, *IN_PLACE}


class Recording(Interpreter):
    """Runs a graph, and keeps the calls that multiply matrices."""

    def __init__(self, module: torch.fx.GraphModule):
        super().__init__(module)
        self.calls: list[tuple] = []

    def call_function(self, target, args, kwargs):
        if getattr(target, "overloadpacket", None) in MULTIPLYING:
            self.calls.append((target, args, kwargs))
        return super().call_function(target, args, kwargs)


def floor(case: Case, matrix: str) -> Callable[[], None]:
    """The calls of one batch, for as many batches as there are. Raises Untraceable."""
    problem = case.problem()
    with twice_differentiable(problem.model):
        hoisted = HoistedProduct(definition(matrix).linearise, problem, problem.batches)
    recording = Recording(hoisted.second)
    vector = torch.randn(problem.size, dtype=problem.dtype, device=problem.device)
    with torch.no_grad():
        recording.run(*hoisted.residuals(problem.batches[0]), vector)

    def run() -> None:
        with torch.no_grad():
            for _ in case.batches:
                for target, args, kwargs in recording.calls:
                    target(*args, **kwargs)

    return run


def multiplications(call: Callable[[], object]) -> int:
    """Multiply-adds in matrix products and convolutions."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, math_attention():
        call()
    return counter.get_total_flops() // 2


def required(case: Case, matrix: str) -> int:
    """Multiply-adds of one product, once all that does not depend on the vector is known.

    A layer of m multiply-adds forward takes 3 m in a gradient, 6 m in a Hessian product and 4 m in one J' M J; the
    first layer, whose input has no derivative, takes 2, 2 and 2. With f forward and g in the gradient, first = 3 f - g.
    """

    def forward():
        with torch.no_grad():
            for x, _ in case.batches:
                case.model(x)

    f, g = multiplications(forward), multiplications(lambda: gradient(case))
    return 4 * g - 6 * f if matrix == "hessian" else 2 * g - 2 * f
