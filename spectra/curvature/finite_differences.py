"""The Hessian by finite differences of gradients, for comparison with exact products (Pearlmutter 1994).

    forward    H v ~ (g(w + r v) - g(w)) / r
    central    H v ~ (g(w + r v) - g(w - r v)) / 2r        g the gradient of the mean loss, r = R |w| / |v|

The step r is scaled by |w| and |v|, so that every displacement r v has the length R |w|, and products are proportional
to their vectors. Two errors compete. The curvature of a loss changes over a length L, so that a product is off by about
(R |w| / L)^p of its size, with p = 1 for the forward and 2 for the central form: the truncation. Weights and gradients
are rounded by eps of their size, which makes eps / R of the product: the rounding. The sum is smallest at

    R = (eps / (p s^p))^(1 / (p + 1)),     s = |w| / L

which is proportional to eps^(1/2) for the forward and to eps^(1/3) for the central form, and leaves errors of about
eps^(1/2) and eps^(2/3). On a trained network s is 2 for random vectors and 25 to 60 for the leading eigenvector
(measured in `results/finite-differences`); the larger one is used, since eigenvalues and residuals depend on it. In a
network with kinks, such as ReLU, each kink that is crossed adds another error: the jump of the gradient over r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectra.arguments import require_choice, require_number
from spectra.curvature.displacement import displaced
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.engine.footprint import Footprint
from spectra.curvature.engine.gradients import batch_gradient
from spectra.curvature.hessian import Hessian
from spectra.curvature.operator import PRODUCTS, Curvature
from spectra.defaults import EXACT
from spectra.defaults import PRODUCTS as WAYS
from spectra.errors import ArgumentError, SpectraError
from spectra.operator import Wrapper
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem
from spectra.vectors import norm

ORDERS = {"forward": 1, "central": 2}  # p: the power of the step with which the truncation falls
FORMS = {"finite-difference": "central", "forward-difference": "forward"}  # of `products`
SHARPNESS = 50  # s = |w| / L, with L the length over which the curvature of a loss changes
LONGER = {"forward": 3, "central": 2}  # the step of reference products, where there are no exact ones


def best_step(form: str, dtype: torch.dtype) -> float:
    """The relative step R at which truncation and rounding together are smallest, for a form and a type of numbers."""
    order = ORDERS[form]
    return (torch.finfo(dtype).eps / (order * SHARPNESS**order)) ** (1 / (order + 1))


def refuse_products(products: str, step: float | None, matrices: tuple[str, ...]) -> None:
    """Raise SpectraError where these matrices have no such products, or the products do not use such a step."""
    require_choice("products", products, WAYS)
    if products == EXACT:
        if step is not None:
            raise ArgumentError(
                f"`difference_step` {step:g}: exact products do not use it; give `products` {WAYS[1]} too"
            )
        return
    if step is not None:
        require_step(step)
    for name in matrices:
        if name != "hessian":
            raise SpectraError(
                f"`products` {products}: a difference of gradients is a product with the Hessian, not with {name}; ask "
                "for `curvature` hessian, or take exact products"
            )


def require_step(step: float) -> None:
    """Raise ArgumentError where `step` is not a number above 0."""
    require_number("difference_step", step, finite=True)
    if step == 0:
        raise ArgumentError("`difference_step` 0: give a number above 0")


@dataclass(frozen=True)
class DifferencedHessian(Hessian):
    """The second derivative of the mean loss, by differences of its gradient."""

    form: str = "central"
    step: float = 0.0  # R

    derivatives = ("gradient",)

    @classmethod
    def of(cls, form: str, problem: Problem, step: float | None = None) -> DifferencedHessian:
        """Make the matrix for a form and a problem, with the best step unless one is given."""
        return cls("hessian", form, best_step(form, problem.dtype) if step is None else step)

    def linearise(self, problem: Problem, batch: Batch) -> Apply:
        """The batch's term of a difference; the forward form keeps the batch's gradient at w."""
        length = self.step * size_of(problem)

        def slopes(vector: Tensor, step: float, leaves: slice) -> Tensor:
            with displaced(problem.leaves[leaves], problem.tensors(vector, leaves), step):
                found = batch_gradient(problem, batch) / problem.weight
            return problem.vector(problem.tensors(found)[leaves])

        here = batch_gradient(problem, batch) / problem.weight if self.form == "forward" else None

        def apply(vector: Tensor, leaves: slice | None = None) -> Tensor:
            chosen = slice(None) if leaves is None else leaves
            size = norm(vector)
            if size == 0:
                return torch.zeros_like(vector)
            step = length / size
            ahead = slopes(vector, step, chosen)
            if here is None:
                return (ahead - slopes(vector, -step, chosen)) / (2 * step)
            return (ahead - problem.vector(problem.tensors(here)[chosen])) / step

        return apply


def size_of(problem: Problem) -> float:
    """The norm |w| of the chosen parameters; where all are zero, the norm of a vector of ones."""
    return norm(problem.vector([leaf.detach() for leaf in problem.leaves])) or problem.size**0.5


class FiniteDifferences(Curvature):
    """The Hessian of a problem, plus weight decay, whose products are differences of gradients.

    Such products have truncation and rounding errors, and are neither exactly symmetric nor exactly linear in the
    vector. `ieee` is the exact matrix, which methods use only to measure these errors. Where exact products do not
    exist, differences with a longer step take their place, and `not_exact` says why. Parameters are not written to:
    while a gradient is computed they hold other tensors.

    Args:
        problem: the model, loss and data.
        form: central, or forward, which takes one gradient a product in place of two.
        step: the length of a displacement over |w|; None: the `best_step` of the form and the dtype.
        memory: bytes for products beyond model and data; by default a quarter of the device's.
        products: the number of products that are expected.
        check: compare an exact product with finite differences on a few examples first.
        tell: a function that is called with a line on what takes long or goes wrong while products are prepared.

    Raises:
        ArgumentError: there is no such form, or the step is not above 0.
    """

    only_measured = True

    def __init__(
        self,
        problem: Problem,
        form: str = "central",
        step: float | None = None,
        memory: int | None = None,
        products: int = PRODUCTS,
        check: bool = True,
        tell: Callable[[str], None] = lambda text: None,
    ):
        require_choice("form", form, ORDERS)
        if step is not None:
            require_step(step)
        super().__init__(problem, "hessian", memory, 0, check, compile=False, tell=tell)  # nothing is worth a trace
        self.definition = found = DifferencedHessian.of(form, problem, step)
        self.linearise = found.linearise
        self.form, self.step, self.expected = form, found.step, products
        self.length = found.step * size_of(problem)  # of a displacement
        self.not_exact: str | None = None  # why exact products do not exist, once that is known

    @property
    def path(self) -> str:
        """The way in which products are made, for the record."""
        return super().path.replace("double backward", f"{self.form} differences of gradients", 1)

    @property
    def too_noisy(self) -> str:
        """The message on products that are off by more than half of their size, with a place for that share."""
        return (
            f"`difference_step` {self.step:.2g}: products by {self.form} differences are off by {{}}; use a smaller "
            "step if the model has kinks (e.g. ReLU), a larger step or `dtype` float64 if rounding is the cause, or "
            f"`products` {EXACT}"
        )

    @cached_property
    def ieee(self) -> Curvature | LongerStep:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The reference for products: the exact matrix, or differences with a longer step where that does not exist.

        Twice the step has four times the truncation of the central form, and three times the step has three times that
        of the forward form. So the two differ by two or three times the truncation of the shorter step, and by no less
        than its rounding, as long as the truncation follows its power.
        """
        self.prepare()
        memory = self.memory and max(1, self.memory - super().kept_bytes)
        exact = Curvature(self.problem, self.name, memory, self.expected // 2, self._check, compile=False)
        try:
            product = exact @ torch.ones(self.problem.size, dtype=self.dtype, device=self.device)
            self.not_exact = None if product.isfinite().all() else "exact products are not finite"
        except SpectraError as error:
            self.not_exact = str(error).partition("; ")[0].replace("`", "")
        self.derivative_check = exact.derivative_check
        if self.problem.processes.least(int(self.not_exact is None)):
            return exact
        self.not_exact = self.not_exact or "another rank has no exact products"
        return LongerStep(FiniteDifferences(self.problem, self.form, LONGER[self.form] * self.step, self.memory))

    @property
    def kept_bytes(self) -> int:
        """The bytes that are kept between products besides model and data, those of exact products too."""
        return super().kept_bytes + self._exact("kept_bytes")

    @property
    def peak_bytes(self) -> int:
        """The bytes that are kept between products, plus the most that one product takes besides."""
        own, kept = super().peak_bytes, super().kept_bytes
        return max(own + self._exact("kept_bytes"), kept + self._exact("peak_bytes"))

    def _exact(self, what: str) -> int:
        return getattr(self.__dict__.get("ieee"), what, 0)

    def _compare(self, costs: Footprint | None = None) -> None:
        """Do nothing: exact products are compared with differences instead, once they are made."""


class LongerStep(Wrapper):
    """Differences with a longer step, in place of exact products that do not exist."""

    @property
    def ieee(self) -> LongerStep:
        """Return itself, since there is no better reference."""
        return self
