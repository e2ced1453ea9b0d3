"""The noise scale of the gradient: the batch size at which its noise equals its signal.

With C the covariance of the gradients of single examples, the gradient of B examples has mean g and covariance C / B:

    simple    tr C / |g|^2           the batch size at which the noise is as large as the gradient
    full      tr(HC) / g'Hg          the batch size at which the best step lowers the loss half as much as along g

(McCandlish, Kaplan, Amodei et al. 2018, *An empirical model of large-batch training*). The data are treated as a sample
of N examples: C N / (N - 1), |g|^2 - tr C / (N - 1) and g'Hg - tr(HC) / (N - 1) are unbiased, the last for a fixed H.
Errors over examples are to first order, by each example's influence (Efron 1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spectra.arguments import chosen_generator, require_boolean, require_choice, require_integer, require_number
from spectra.cluster.distributed import distributed
from spectra.curvature.engine.gradients import with_weight_decay
from spectra.curvature.matrices import definition
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.diagonal import DiagonalEstimate, xdiag
from spectra.krylov.results import Progress
from spectra.operator import Counting, SymmetricOperator, random_signs
from spectra.problem.problem import Problem, require_problem
from spectra.steps.deviations import BetweenExamples, Deviations, images
from spectra.steps.ratio import Ratio
from spectra.steps.sampled import Sampled
from spectra.vectors import dot, without_autocast
from spectra.wording import counted, with_error

RTOL = 0.1  # standard error of a trace over the trace; users need the order of magnitude of a noise scale
MOST = 100  # products with a matrix over examples
EXACT_WORK = 100  # products that exact squares of single gradients may take; beyond, tr C is estimated
UNITS = ("example", "item")
VECTORS = 8  # random sums of the x_i, for rough estimates of influences


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale in examples, as a ratio of noise to signal with its errors.

    `value` is None if the data do not determine it; then `reason` says why, and `interval` gives bounds.
    """

    kind: str  # simple, or full
    curvature: str | None  # the matrix H of the full noise scale
    ratio: Ratio
    signal: float  # |g|^2 or g'Hg on these examples, without correction
    without_sampling: str | None = None  # why the error over examples is unknown

    def __str__(self) -> str:
        """The noise scale with its error, or the reason why it is unknown, and the interval."""
        low, high = self.interval
        found = self.reason or with_error(self.value or 0.0, self.standard_error or 0.0, most=4)
        if math.isnan(low) or low == high:
            return found
        return f"{found}; at least {low:.3g}" if math.isinf(high) else f"{found}; 95 %: {low:.3g} to {high:.3g}"

    @property
    def value(self) -> float | None:
        """The noise scale."""
        return self.ratio.value

    @property
    def standard_error(self) -> float | None:
        """The standard error, from the sample of data and from random vectors."""
        return self.ratio.standard_error

    @property
    def sampling_error(self) -> float | None:
        """The part of the standard error from the sample of data; 0 for a whole population."""
        return self.ratio.sampling_error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; its upper end is infinite if the data give only a lower bound, both are nan if none."""
        return self.ratio.interval

    @property
    def reason(self) -> str | None:
        """The reason why the value is unknown; None if it is known."""
        if self.value is not None:
            return None
        noise, signal = ("tr C", "|g|^2") if self.kind == "simple" else ("tr(HC)", "g'Hg")
        if not (math.isfinite(self.ratio.numerator) and math.isfinite(self.ratio.denominator)):
            return f"{noise} or {signal} is not finite"
        if abs(self.signal) < self.ratio.rounding:
            return f"{signal} is lost in rounding: it is zero within the precision of the dtype"
        if self.ratio.resolved:
            return f"{noise} is below zero: to second order, noise lowers the loss"
        if not math.isnan(self.interval[1]):
            return f"not resolved: with these examples {signal} cannot be distinguished from zero"
        if self.signal < 0:
            return f"{signal} is below zero: the loss curves down along the gradient and limits no step"
        return (
            f"{signal} is smaller than sampling noise alone would make it, as after training on these examples; use "
            "other examples, or treat these as the `population`"
        )


@dataclass(frozen=True, repr=False)
class Noise:
    """The noise of the gradient at one point: its noise scales, and their cost."""

    examples: int  # N, or the number of items
    population: bool
    simple: NoiseScale
    full: NoiseScale | None
    products: int  # a pass over the data counts as half a product
    unit: str  # what is counted: example, target or item
    note: str | None = None

    def __repr__(self) -> str:
        """Both noise scales, the number of examples, and the cost."""
        full = "" if self.full is None else f", full ({self.full.curvature}) {self.full}"
        of = counted(self.examples, self.unit)
        return f"Noise(simple {self.simple}{full}; of {of} in {counted(self.products, 'product')})"


@without_autocast()
def noise_scale(
    problem: Problem,
    name: str | None = "hessian",
    *,
    by: str = "example",
    population: bool = False,
    rtol: float = RTOL,
    max_products: int = MOST,
    seed: int = 0,
    generator: torch.Generator | None = None,
    memory: int | None = None,
    check: bool = True,
) -> Noise:
    """Estimate the gradient noise scales: the batch sizes at which the gradient's noise is as large as its signal.

    With g the mean gradient and C the covariance of the gradients of single examples, the simple noise scale is
    tr C / |g|^2, and the full one is tr(HC) / g'Hg (McCandlish et al. 2018). An example is a term of the mean loss: a
    target of cross entropy (so each token of a sequence), or a row for other losses. Weight decay changes g and H, but
    not C. tr C is exact where the squares of single gradients are cheap, as in linear and convolutional layers; tr(HC)
    is estimated by XDiag over the examples.

    Args:
        problem: the model, loss and data.
        name: the matrix H of the full noise scale, a second derivative in `spectra.MATRICES`; None: no full noise
            scale.
        by: what is counted and drawn for a batch: example, or item, where an item of the data holds several examples,
            as a sequence holds tokens.
        population: whether the data are the whole population, rather than a sample from a larger one. Then nothing is
            corrected for sampling, and there is no error over examples.
        rtol: the standard error over the trace at which an estimated trace has converged.
        max_products: the most products with a matrix over examples, for each trace; each takes one product with H and
            two passes over the data.
        seed: the seed of the random vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        memory: bytes for products beyond model and data; None: a quarter of the device's.
        check: compare derivatives with finite differences first.

    Returns:
        The noise scales `simple` and `full`, each with `value`, `standard_error`, `interval` and `reason`, and the cost
        in products.

    Raises:
        SpectraError: examples have no gradients of their own, there is only one example, or the matrix is not a second
            derivative.
    """
    require_problem(problem)
    require_choice("by", by, UNITS)
    require_boolean("population", population)
    require_number("rtol", rtol)
    require_integer("max_products", max_products, least=4)
    generator = chosen_generator(seed, generator)
    limits = {"rtol": rtol, "max_products": max_products, "memory": memory, "check": check}
    point = NoiseAt.of(problem, generator, population, by_item=by == "item", **limits)
    full, spent = None, 0
    if name is not None:
        refuse_matrix(name)
        operator = Counting(distributed(Curvature(problem, name, memory, products=4 * VECTORS, check=check)))
        full = point.full(operator, name)
        spent = operator.products
    simple, (unit, note) = point.simple(), unit_of(point.deviations)
    products = math.ceil(spent + point.deviations.products)
    return Noise(point.deviations.count, population, simple, full, products, unit, note)


def refuse_matrix(name: str) -> None:
    """Raise SpectraError for a matrix that is not a second derivative of the loss."""
    if definition(name).loss_power != 1:
        raise SpectraError(
            f"`name` {name}: is not a second derivative of the loss; name hessian, ggn or fisher, or None"
        )


@dataclass
class NoiseAt:
    """The noise of the gradient at one point, which computes both kinds of noise scale."""

    deviations: Deviations
    gradient: Tensor  # (n,), of the mean loss with weight decay
    generator: torch.Generator
    population: bool
    rtol: float = RTOL
    max_products: int = MOST  # with a matrix over examples
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        problem: Problem,
        generator: torch.Generator,
        population: bool,
        *,
        memory: int | None = None,
        check: bool = False,
        by_item: bool = False,
        **settings: Any,
    ) -> NoiseAt:
        """The noise at the current parameters. Raises SpectraError as `Deviations.of` does."""
        deviations = Deviations.of(problem, memory, check, by_item)
        return cls(deviations, with_weight_decay(problem, deviations.mean), generator, population, **settings)

    def simple(self) -> NoiseScale:
        """The simple noise scale tr C / |g|^2, with the influence of each example."""
        deviations, n = self.deviations, self.deviations.count
        error = 0.0
        if deviations.items is None and deviations.factor.trace_work() <= EXACT_WORK:
            squares = deviations.squares()
        else:
            estimate = self._diagonal(BetweenExamples(deviations), self.max_products)
            squares, error = n * estimate.values.cpu().double(), estimate.sum_errors.item()
        found = Sampled(n, squares.mean().item(), dot(self.gradient, self.gradient), error, self._eps)
        if not self.population:
            along = deviations.times([self.gradient, *self._random_sums()])
            found = replace(found, influences=squares[None].numpy(), about=2 * along[0].numpy())
            found = replace(found, second_order=second_order(along[1:]))
        return NoiseScale("simple", None, found.ratio(self.population), found.signal)

    def full(self, operator: SymmetricOperator, name: str, max_products: int | None = None) -> NoiseScale:
        """The full noise scale tr(HC) / g'Hg for the matrix `name`, with the influence of each example, if known.

        An example enters tr(HC) through x_i'H x_i, an entry of the diagonal of the matrix over examples, and through
        tr(H_i C) = E w'H_i w over random sums w. Besides those of the diagonal it takes VECTORS + 1 products with H.
        """
        deviations, n = self.deviations, self.deviations.count
        estimate = self._diagonal(BetweenExamples(deviations, operator), max_products or self.max_products)
        sums = self.gradient.new_zeros(0, len(self.gradient)) if self.population else self._random_sums()
        image, *others = images(operator, torch.cat([self.gradient[None], sums]))
        found = Sampled(n, estimate.sums.item(), dot(self.gradient, image), estimate.sum_errors.item(), self._eps)
        without = None
        if not self.population:
            along = deviations.times([image, *others])
            try:
                curvatures = deviations.curvatures(name, [self.gradient, *sums])
            except SpectraError as error:
                without = f"the curvature of single examples needs third derivatives: {error}"
            else:
                influences = n * estimate.values.cpu().double() + curvatures[1:]
                about = 2 * along[0] + curvatures[0]
                found = replace(found, influences=influences.numpy(), about=about.numpy())
                found = replace(found, second_order=second_order(along[1:]))
        return NoiseScale("full", name, found.ratio(self.population), found.signal, without)

    def rest(self) -> int:
        """The products that `full` takes in addition to two for each product with the matrix over examples."""
        return 1 if self.population else 4 * VECTORS + 5

    @property
    def _eps(self) -> float:
        return torch.finfo(self.deviations.problem.dtype).eps

    def _diagonal(self, matrix: BetweenExamples, max_products: int) -> DiagonalEstimate:
        def enough(sums: Tensor, errors: Tensor) -> bool:
            return bool(errors <= self.rtol * sums.abs())

        def sums(diagonal: Tensor) -> Tensor:
            return diagonal.double().sum()[None].cpu()

        limits = {"max_products": max_products, "progress": self.progress}
        return xdiag(matrix, sums, enough, generator=self.generator, **limits)

    def _random_sums(self) -> Tensor:
        """Vectors w = X'e / sqrt N for random signs e, with E w w' = C: (VECTORS, n)."""
        signs = random_signs(BetweenExamples(self.deviations), VECTORS, self.generator)
        return self.deviations.transposed_times(signs) / self.deviations.count**0.5


def second_order(along: Tensor) -> float:
    """Estimate 2 tr(HCHC) / N^2 from x_i'H w (K, N), since E (Hw)'C(Hw) = tr(HCHC)."""
    return 2 * along.square().mean().item() / along.shape[1] ** 2


def unit_of(deviations: Deviations) -> tuple[str, str | None]:
    """The unit of noise scales, and a caution if examples are not independent."""
    if deviations.items is not None:
        return "item", None
    items = sum(map(len, deviations.problem.batches))
    if deviations.count <= items:
        return "example", None
    return "target", (
        f"an example is a target here, and each item of the data has {deviations.count / items:.3g}; targets of "
        'one item are not independent, as the noise scale assumes; spectra.noise_scale(..., by="item") counts whole '
        "items"
    )
