"""The neural tangent kernel of a problem as a symmetric operator over examples, and as a dense matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from spectra.curvature.checks.derivative_check import DerivativeCheckResult, check_derivatives
from spectra.curvature.checks.model_checks import refuse_unfit
from spectra.curvature.definition import Definition
from spectra.curvature.engine.differentiation import explained, twice_differentiable
from spectra.curvature.engine.footprint import footprint
from spectra.curvature.factor.gram import LARGEST, Factor
from spectra.curvature.factor.part import first_of
from spectra.curvature.matrices import NTK, definition, refuse_unsuited
from spectra.curvature.tangent_kernel import outputs_of
from spectra.defaults import IEEE
from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.memory import products_share
from spectra.operator import refuse_other_dtype, wrong_shape
from spectra.problem.problem import Problem


class TangentKernelOperator:
    """The matrix Theta_ij = (1/C) sum_c <df_c(x_i), df_c(x_j)> over the N examples of a problem, in their order.

    Derivatives are by the chosen parameters; f_c are the C outputs of an example, as the loss views them. A product
    takes, for each output, one pass with J_c' and one with J_c over all the data. Nothing is divided by N.

    Args:
        problem: the model, the data, and a loss, which defines the outputs.
        memory: bytes within which blocks of the Jacobian are made; by default a quarter of the device's.
        check: compare a product with the Jacobian with finite differences on a few examples first.

    Raises:
        SpectraError: the loss hides the model's outputs.
    """

    name = NTK
    precision = IEEE
    path = "Jacobian by output"
    kept_bytes = 0

    def __init__(self, problem: Problem, memory: int | None = None, check: bool = True):
        refuse_unsuited(NTK, problem.loss, problem.weight_decay)
        self.problem = problem
        self.memory = memory
        self.setup_seconds = 0.0
        self.derivative_check: DerivativeCheckResult | None = None  # the result, once the check is done
        self._check = check
        self._prepared = False

    def __repr__(self) -> str:
        return f"TangentKernelOperator({self.problem!r})"

    @property
    def definition(self) -> Definition:
        """The definition of the kernel."""
        return definition(NTK)

    @property
    def semidefinite(self) -> bool:
        """True: the matrix is J J' / C."""
        return True

    @cached_property
    def count(self) -> int:
        """The number N of examples."""
        return sum(map(len, self.problem.batches))

    @property
    def shape(self) -> torch.Size:
        """The shape (N, N)."""
        return torch.Size((self.count, self.count))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of vectors."""
        return self.problem.dtype

    @property
    def device(self) -> torch.device:
        """The device of vectors."""
        return device_of_vectors(self.problem.device)

    @property
    def peak_bytes(self) -> int:
        """The bytes that the dense matrix takes, and as many for its eigenvectors."""
        return 2 * torch.float64.itemsize * self.count**2 if self.count <= LARGEST else 0

    @cached_property
    def outputs(self) -> int:
        """The number C of outputs of an example."""
        batch = first_of(self.problem.batches[0], 1)
        with twice_differentiable(self.problem.model), explained(), torch.no_grad():
            return outputs_of(self.problem.rows(batch), batch)

    def prepare(self) -> None:
        """Check the model and its derivatives, as the first product would."""
        if self._prepared:
            return
        start = time.perf_counter()
        with twice_differentiable(self.problem.model), explained():
            refuse_unfit(self.problem)
            if self._check:
                costs = footprint(self.definition.linearise, self.problem)
                memory = self.memory or products_share(self.device)
                self.derivative_check = check_derivatives(self.problem, NTK, memory, costs)
        self._prepared = True
        self.setup_seconds += time.perf_counter() - start

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with a vector (N,), or with the columns of (N, k)."""
        if vectors.ndim not in (1, 2) or len(vectors) != self.count:
            raise ValueError(wrong_shape(self.count, vectors))
        refuse_other_dtype(self, vectors)
        self.prepare()
        rows = vectors[None] if vectors.ndim == 1 else vectors.T
        products = torch.zeros_like(rows)
        for output in range(self.outputs):
            factor = OutputFactor(self.problem, output, self.memory)
            products += factor.times(factor.transposed_times(rows)) / self.outputs
        return products.T.reshape(vectors.shape)

    def factor(self) -> KernelFactor:
        """The kernel as a dense matrix. Raises SpectraError where there are too many examples to hold it."""
        self.prepare()
        return KernelFactor(self)


class KernelFactor:
    """The dense kernel and its trace, from the Jacobians of one output at a time, and their cost."""

    shift = 0.0

    def __init__(self, kernel: TangentKernelOperator):
        self.kernel = kernel
        self.products = 0  # spent so far: a pass over all the data for each output counts as half a product

    @property
    def rows(self) -> int:
        """The number N of rows."""
        return self.kernel.count

    def cost(self) -> int:
        """The number of products that `gram` will cost."""
        return self._cost(OutputFactor.cost)

    def trace_work(self) -> float:
        """The work of `trace` in products."""
        return self.trace_cost()

    def trace_cost(self) -> int:
        """The number of products that `trace` will cost."""
        return self._cost(OutputFactor.trace_cost)

    def _cost(self, cost: Callable[[OutputFactor], int]) -> int:
        return self.kernel.outputs * cost(self._of(0))

    def gram(self) -> Tensor:
        """Theta (N, N), in float64. Raises SpectraError where there are too many examples."""
        if self.rows > LARGEST:
            raise SpectraError(
                f"`method` gram: the kernel has {self.rows:,} rows, one for each example, more than the limit of "
                f"{LARGEST:,}; choose another method, or fewer `samples`"
            )
        total = torch.zeros(self.rows, self.rows, dtype=torch.float64, device=self.kernel.device)
        for output in range(self.kernel.outputs):
            factor = self._of(output)
            total += factor.gram()
            self.products += factor.products
        return total / self.kernel.outputs

    def trace(self) -> float:
        """The trace of Theta, the sum of all squares in the Jacobian over C."""
        total = []
        for output in range(self.kernel.outputs):
            factor = self._of(output)
            total.append(factor.trace())
            self.products += factor.products
        return math.fsum(total) / self.kernel.outputs

    def _of(self, output: int) -> OutputFactor:
        return OutputFactor(self.kernel.problem, output, self.kernel.memory)


class OutputFactor(Factor):
    """The Jacobian J_c (N, n) of one output of all examples."""

    def __init__(self, problem: Problem, output: int, memory: int | None = None):
        super().__init__(replace(problem, blocks=()), NTK, memory)
        self.definition = replace(self.definition, output=output)

    def _refuse_many(self, each: int) -> None:
        """Accept any number of rows, which only the dense kernel limits."""
