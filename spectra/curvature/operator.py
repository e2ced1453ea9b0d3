"""Curvature: any matrix of the register as a symmetric operator, summed over the batches of a problem."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from spectra.arguments import require_boolean, require_integer
from spectra.curvature.checks.derivative_check import DerivativeCheckResult, check_derivatives
from spectra.curvature.checks.loss_checks import refuse_unfit_loss
from spectra.curvature.checks.model_checks import refuse_one_example, refuse_unfit
from spectra.curvature.checks.notes import autocast_inside, model_notes
from spectra.curvature.checks.precision import refuse_precision
from spectra.curvature.engine.autotuning import Autotuner
from spectra.curvature.engine.differentiation import Apply, explained, twice_differentiable
from spectra.curvature.engine.execution import add_products
from spectra.curvature.engine.footprint import Footprint, footprint
from spectra.curvature.engine.gradients import mean_gradient, outer_product
from spectra.curvature.engine.memory_plan import MemoryPlan, plan_memory
from spectra.curvature.engine.products import Products
from spectra.curvature.factor.gram import Factor
from spectra.curvature.matrices import KERNELS, definition, refuse_unsuited
from spectra.defaults import IEEE
from spectra.errors import SpectraError, describe
from spectra.memory import collecting_new_objects, out_of_memory, products_share
from spectra.operator import Wrapper, refuse_other_dtype, wrong_shape
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem
from spectra.problem.space import Space

PRODUCTS = 100  # the number of products that are expected by default


class Curvature(Space):
    """A curvature matrix of a problem, such as its Hessian, as a symmetric operator: `curvature @ vectors`.

    Products are exact up to rounding. Weight decay X adds X I. The first product takes longer than the others
    (`setup_seconds`): whatever does not depend on the vector is computed once for each batch and kept, as far as
    `memory` allows; other batches are differentiated again in each product. Where many products are expected, the
    product is traced once. Where batches are dealt among processes, this is the process's part of the matrix, which
    is the sum over all processes.

    Args:
        problem: the model, loss and data.
        name: the name of the matrix in `spectra.MATRICES`.
        memory: bytes for products beyond model and data; by default a quarter of the device's.
        products: the number of products that are expected.
        check: compare one product with finite differences on a few examples first (`derivative_check`).
        choices: timed decisions of an earlier run, which are used again so that two runs give the same numbers.
        precision: ieee, tf32 or bf16: the precision of multiplications that depend on the vector; sums are taken in
            float32. Products are then noisy, and the attribute `ieee` is the same matrix without that noise.
        compile: compile products by torch.compile; None: on a GPU, where the expected products save more time than
            that takes.
        tell: a function that is called with a line on what takes long or goes wrong while products are prepared.

    Raises:
        SpectraError: the matrix is not defined for this loss, or not with weight decay; or the device or the dtype
            does not support the precision.

    Examples:
        >>> import torch, spectra
        >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
        >>> batches = spectra.cut_batches(x, y, torch.arange(20), 10)
        >>> problem = spectra.Problem(torch.nn.Linear(4, 3), spectra.CrossEntropy(), batches)
        >>> (spectra.Curvature(problem, "hessian") @ torch.ones(problem.size)).shape
        torch.Size([15])
    """

    def __init__(
        self,
        problem: Problem,
        name: str,
        memory: int | None = None,
        products: int = PRODUCTS,
        check: bool = True,
        choices: Autotuner | None = None,
        precision: str = IEEE,
        compile: bool | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ):
        require_integer("memory", memory, least=0, optional=True)
        require_integer("products", products, least=0)
        require_boolean("compile", compile, optional=True)
        if name in KERNELS:
            raise SpectraError(
                f"`curvature` {name}: only eig, trace and density compute this matrix over examples; choose another"
            )
        refuse_unsuited(name, problem.loss, problem.weight_decay)
        refuse_precision(precision, problem.dtype, problem.device)
        super().__init__(problem)
        self.name = name
        self.definition = definition(name)
        self.linearise = self.definition.linearise
        self.memory = memory
        self.choices = choices or Autotuner()
        self.compile, self.tell = compile, tell
        self.setup_seconds = 0.0
        self.derivative_check: DerivativeCheckResult | None = None  # the result, once the check is done
        self._expected = products
        self._check = check
        self._precision = precision  # the one asked for
        self._not_lower: str | None = None  # why products are in ieee nevertheless
        self._loss_fits = False  # whether the loss has been checked
        self._economy: MemoryPlan | None = None  # the problem in a form whose products fit memory
        self._products: Products | None = None
        self._terms: list[Apply] = []  # terms that belong to no batch
        self._versions = self._parameter_versions()

    def __repr__(self) -> str:
        return f"Curvature({self.name} of {self.problem!r}; products: {self.path})"

    @property
    def path(self) -> str:
        """How products are computed, in a few words, as results record it."""
        if self._products is None or self._economy is None:
            return "not yet made"
        precision = None if self._precision == IEEE else f"in {self.precision}"
        if self._not_lower:
            precision = f"{precision}, not {self._precision}: {self._not_lower}"
        return "; ".join(filter(None, [self._products.path, self._economy.path, precision]))

    @property
    def precision(self) -> str:
        """The precision of products: ieee, too, where a lower one was asked for but is not possible."""
        return IEEE if self._not_lower else self._precision

    @property
    def ieee(self) -> Curvature | InIeee:
        """This matrix with products in full precision; the object itself where they already are."""
        if self._precision == IEEE:
            return self
        self.prepare()
        return self if self.precision == IEEE else InIeee(self)

    @property
    def semidefinite(self) -> bool:
        """Whether the matrix has no negative eigenvalue, by its definition."""
        return self.definition.semidefinite(self.problem.loss)

    @property
    def kept_batches(self) -> int:
        """The number of batches of which something is kept between products."""
        return self._products.kept_batches if self._products else 0

    @property
    def kept_bytes(self) -> int:
        """The bytes kept between products, besides model and data; 0 before the first product."""
        return self._products.kept_bytes if self._products else 0

    @property
    def peak_bytes(self) -> int:
        """The most bytes in use during a product, besides model and data; 0 before the first product."""
        return self._products.peak_bytes if self._products else 0

    @cached_property
    def notes(self) -> list[str]:
        """Notes on the model that a reader of the result should know, one line each."""
        return model_notes(self.problem)

    def suspect(self) -> str | None:
        """The likely cause of products that are not repeatable or not symmetric: autocast in the model's forward.

        Returns:
            The cause, or None where the model does not show it.
        """
        if types := autocast_inside(self.problem):
            return f"the model's forward runs under autocast to {types}; remove autocast, or set enabled=False there"
        return None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with a vector (n,), or with the columns of (n, k).

        Raises ValueError where the lengths differ, TypeError where the dtypes differ, and SpectraError where parameters
        have changed since.
        """
        return self.multiply(vectors)

    def multiply(self, vectors: Tensor, exact: bool = False) -> Tensor:
        """Multiply vectors by the matrix, as `curvature @ vectors` does.

        Args:
            vectors: a vector (n,), or vectors as columns (n, k).
            exact: multiply in full precision, whatever the precision of the matrix is.

        Returns:
            The product, of the same shape.
        """
        if vectors.ndim not in (1, 2) or len(vectors) != self.problem.size:
            raise ValueError(wrong_shape(self.problem.size, vectors))
        refuse_other_dtype(self, vectors)
        columns = (vectors[:, None] if vectors.ndim == 1 else vectors).to(self.problem.device)
        self._refuse_changed()
        parts = self._parts()
        products = columns * (self.problem.weight_decay if self._first else 0.0)
        lower = self.precision != IEEE and not exact
        with self._settings(columns.shape[1], lower), explained():
            for apply in parts:
                add_products(apply, columns, products, lower)
                del apply  # frees its memory before the next one is made
        return products.view_as(vectors).to(vectors.device)

    def _settings(self, columns: int, lower: bool) -> AbstractContextManager:
        """The settings of PyTorch for a product; none for CUDA graphs, which were captured under them."""
        graphs = self._products is not None and self._products.runs_as_graphs(columns, lower) and not self._terms
        return nullcontext() if graphs else twice_differentiable(self.problem.model)

    def times_blocks(self, vectors: Sequence[tuple[slice, Tensor]]) -> list[Tensor]:
        """Multiply each diagonal block of the matrix by a vector of its own.

        Work that only other parameters need is left out, so that a block of a late layer costs little. The matrix must
        not have been traced.

        Args:
            vectors: pairs of a slice of the parameters and a vector (n_l,) over it.

        Returns:
            The products (n_l,), in order.
        """
        self._refuse_changed()
        parts = self._parts()
        decay = self.problem.weight_decay if self._first else 0.0
        vectors = [(leaves, vector.to(self.problem.device)) for leaves, vector in vectors]
        products = [vector * decay for _, vector in vectors]
        with twice_differentiable(self.problem.model), explained():
            for apply in parts:
                for product, (leaves, vector) in zip(products, vectors, strict=True):
                    product += apply(vector, leaves)
                del apply
        return [product.to(self.device) for product in products]

    def factor(self) -> Factor:
        """The factor F of the matrix A = F'F + shift I, by which its Gram matrix F F' is computed.

        Raises:
            SpectraError: the matrix has no such factor; the Hessian has none.
        """
        factor = Factor(replace(self.problem, blocks=()), self.name, self.memory)
        with twice_differentiable(self.problem.model), explained():
            self._refuse_unfit_loss()
            self._compare()
        return factor

    def prepare(self) -> None:
        """Trace the product and compute what is kept, which the first product would do otherwise."""
        if self._products is None:
            start = time.perf_counter()
            with collecting_new_objects(), twice_differentiable(self.problem.model), explained():
                refuse_unfit(self.problem)
                self._refuse_unfit_loss()
                self._economy = plan_memory(self.linearise, self.problem, self.memory, whole=not self._resizable)
                self._compare(self._economy.costs)
            if self.definition.subtracts_mean_gradient:
                refuse_one_example(self.problem, self.name)
                mean = mean_gradient(self._economy.problem).to(self.problem.device)
                self._terms = [outer_product(self.problem, mean, -1.0)] if self._first else []
            with collecting_new_objects(), twice_differentiable(self.problem.model), explained():
                self._products = self._make_products(self._economy)
                self._not_lower = None if self._precision == IEEE else self._why_not_lower()
            self.setup_seconds += time.perf_counter() - start

    def _why_not_lower(self) -> str | None:
        """The reason why products are not in the lower precision that was asked for; None where they are."""
        assert self._products
        if not self._products.lower:
            return "only matrix products and convolutions that are traced have a lower precision"
        try:
            vector = torch.ones(self.problem.size, 1, dtype=self.dtype, device=self.device)
            for apply in self._products:
                add_products(apply, vector, torch.zeros_like(vector), lower=True)
                del apply
        except RuntimeError as error:  # an operation that this device lacks in such a precision
            if out_of_memory(error):
                raise
            return describe(error)
        return None

    def _parts(self) -> Iterator[Apply]:
        """The functions of a vector whose sum is the product."""
        self.prepare()
        assert self._products is not None
        return chain(self._terms, self._products)

    def _refuse_unfit_loss(self) -> None:
        if not self._loss_fits:
            refuse_unfit_loss(self.problem, self.definition)
            self._loss_fits = True

    def _compare(self, costs: Footprint | None = None) -> None:
        """Compare one product with finite differences, once. Raises SpectraError where they contradict it."""
        if self._check and self.derivative_check is None:
            costs = costs or footprint(self.linearise, self.problem)
            memory = self.memory or products_share(self.device)
            problem = self._economy.problem if self._economy else self.problem
            self.derivative_check = check_derivatives(problem, self.name, memory, costs)

    def _make_products(self, economy: MemoryPlan) -> Products:
        split, name, tell = self.definition.depends_on_batches, self.name, self.tell
        return Products(
            self.linearise,
            economy.problem,
            economy.costs,
            self.memory,
            expected=0 if split else self._expected,  # its gradients are computed once: nothing is left to hoist
            resizable=self._resizable,
            choices=self.choices,
            precision=self._precision,
            compile=False if split else self.compile,
            tell=lambda text: tell(f"{name}: {text}"),  # `self` in it would make a reference cycle
        )

    @property
    def _resizable(self) -> bool:
        """Whether batches may be cut and joined."""
        own = isinstance(self.problem.loss, CustomLoss | BatchLoss)  # a loss that may need its batches as they are
        return not self.definition.depends_on_batches and not own

    def _parameter_versions(self) -> list[int]:
        return [p._version for p in self.problem.leaves]

    @property
    def _first(self) -> bool:
        """Whether this process adds the terms that belong to no batch."""
        return self.problem.processes.rank == 0

    def _refuse_changed(self) -> None:
        if self._parameter_versions() != self._versions:
            raise SpectraError("`model`: its parameters have changed since this matrix was made; make the matrix again")


class InIeee(Wrapper):
    """A Curvature of lower precision, with products in ieee."""

    def __init__(self, operator: Curvature):
        super().__init__(operator)
        self.matrix = operator

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.matrix.multiply(vectors, exact=True)

    @property
    def ieee(self) -> InIeee:
        """Return itself."""
        return self

    def factor(self) -> Factor:
        """The factor of the matrix. Raises SpectraError where there is none."""
        return self.matrix.factor()
