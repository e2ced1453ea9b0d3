"""Weight perturbation: the gradient g and Hessian products H v of a loss E, from values of E alone.

    g  = <(E(w + u) - E(w)) u> / s^2               u random, of length s sqrt(n), and as likely as -u
    Hv = <R{E(w + u) - E(w)} u> / s^2              R{E(x)} the derivative of E at x along v

(Jabri and Flower 1991; Spall 1992 and, for the Hessian, 2000; Pearlmutter 1994.) For a quadratic loss both are exact on
average, whatever s. With t = tr H, f = |H|_F^2 and f' = f less the squares of H's diagonal, the expected squared errors
|estimate - true|^2 of one perturbation are

    g, central    (n - 1) |g|^2
    g, forward    (n - 1) |g|^2 + s^2 n (t^2 + 2 f') / 4              of signs
                  (n - 1) |g|^2 + s^2 n^2 (t^2 + 2 f) / (4 (n + 2))   on the sphere
    Hv            (n - 1) |Hv|^2                                      either form

and 1/m of that for m perturbations. If u'A u / 2 is subtracted from the differences for a matrix A, H - A replaces H in
the forward form; this adds no bias, because u'A u is even in u. For other losses the bias is of order s^2.

No derivative is computed, and no parameter is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectra.arguments import chosen_generator, require_choice, require_integer, require_number
from spectra.curvature.displacement import displaced_losses
from spectra.devices import device_of_vectors
from spectra.errors import ArgumentError, SpectraError
from spectra.given_operator import as_operator
from spectra.operator import SymmetricOperator
from spectra.problem.problem import Problem
from spectra.random_numbers import draw_keys, normal_rows, sign_rows
from spectra.vectors import WITHIN, all_finite, dot, norm, norms, squares_overflow
from spectra.wording import outline

BLOCK = 2**22  # numbers of perturbations that are held at a time

# A difference of losses: the weight of E(w + a u + b d) for each (a, b), with d the step along v.
Stencil = Mapping[tuple[int, int], float]

GRADIENT: dict[str, Stencil] = {
    "central": {(1, 0): 1 / 2, (-1, 0): -1 / 2},
    "forward": {(1, 0): 1, (0, 0): -1},
}
PRODUCT: dict[str, Stencil] = {  # R{} of these, by differences of the same kind
    "central": {(1, 1): 1 / 4, (-1, 1): -1 / 4, (1, -1): -1 / 4, (-1, -1): 1 / 4},
    "forward": {(1, 1): 1, (0, 1): -1, (1, 0): -1, (0, 0): 1},
}
SECOND_ORDER: dict[str, Stencil] = {
    "central": {(1, 0): 1 / 2, (-1, 0): 1 / 2, (0, 0): -1},
    "forward": {(1, 0): 1, (0, 0): -1},
}


@dataclass(frozen=True)
class VectorEstimate:
    """An estimate of a vector with its standard errors.

    The standard errors include the noise of the loss and its rounding (at least that of the dtype of the weights). They
    do not include the bias of steps of finite size, and are rough themselves with fewer than about 16 perturbations.

    Attributes:
        value: the estimate (n,).
        standard_errors: the standard error of each entry (n,); infinite after a single perturbation.
        perturbations: the number of random perturbations.
        evaluations: the number of evaluations of the loss.
    """

    value: Tensor
    standard_errors: Tensor
    perturbations: int
    evaluations: int

    __repr__ = outline

    @property
    def standard_error(self) -> float:
        """The expected size of the error |value - true value|, from the standard errors of the entries."""
        return norm(self.standard_errors)


def gradient_from_losses(
    loss: Problem | Callable[[Tensor], Any],
    point: Tensor | None = None,
    *,
    evaluations: int,
    form: str = "central",
    perturbations: str = "signs",
    size: float | None = None,
    second_order: SymmetricOperator | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> VectorEstimate:
    """Estimate the gradient of a loss from differences of its values under random perturbations of all weights.

    The relative error after m perturbations is sqrt((n - 1) / m) or more: one perturbation for each of n weights leaves
    an error as large as the gradient. No derivative of the loss is needed.

    Args:
        loss: a `Problem`, or a function of the weights (n,) that returns the loss.
        point: the weights (n,) at which to differentiate a function; a problem has its own.
        evaluations: the largest number of evaluations of the loss.
        form: central, (E(w + u) - E(w - u)) / 2, or forward, E(w + u) - E(w), which takes half the evaluations.
        perturbations: signs (each entry is `size` or -`size`) or sphere (random directions of the same length).
        size: the root mean square entry of a perturbation; None: that of w times the cube root of rounding.
        second_order: a part A (n, n) of the Hessian, such as a `RankTwo`; u'A u / 2 is subtracted from each forward
            difference, which lowers its variance where A is closer to the Hessian than zero is, and adds no bias.
        seed: the seed of the perturbations, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.

    Returns:
        The estimate of the gradient.

    Raises:
        SpectraError: an argument is wrong, or the loss is not finite at a perturbed point.
    """
    losses = Losses.of(loss, point)
    require_choice("form", form, GRADIENT)
    if second_order is not None and form != "forward":
        raise ArgumentError(
            f"`second_order` with `form` {form}: these differences have no second-order term; use form='forward'"
        )
    if second_order is not None:
        second_order = matrix = as_operator(second_order, "second_order")
        if matrix.shape[0] != losses.n:
            raise ArgumentError(f"`second_order` of shape {tuple(matrix.shape)}: give ({losses.n}, {losses.n})")
        if matrix.dtype != losses.point.dtype:
            raise ArgumentError(f"`second_order` of {matrix.dtype}: give it in {losses.point.dtype}, like the weights")
    size = losses.chosen_size(size, 1 / 3)
    reading = Reading(GRADIENT[form], lambda u: u.double() / size**2, second_order)
    rows = perturbation_rows(losses, evaluations, perturbations, size, [reading], seed, generator)
    return estimates(losses, rows, [reading])[0]


def product_from_losses(
    loss: Problem | Callable[[Tensor], Any],
    vector: Tensor,
    point: Tensor | None = None,
    *,
    evaluations: int,
    form: str = "central",
    perturbations: str = "signs",
    size: float | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> VectorEstimate:
    """Estimate H v, the Hessian of a loss times a vector, from differences of loss values under random perturbations.

    It is the change, along v, of the estimate that `gradient_from_losses` makes (Pearlmutter 1994), by a difference of
    the same form with a step as long as a perturbation. The relative error after m perturbations is
    sqrt((n - 1) / m).

    Args:
        loss: a `Problem`, or a function of the weights (n,) that returns the loss.
        vector: v (n,).
        point: the weights (n,) at which to differentiate a function; a problem has its own.
        evaluations: the largest number of evaluations of the loss.
        form: central, with four evaluations for each perturbation, or forward, with two.
        perturbations: signs (each entry is `size` or -`size`) or sphere (random directions of the same length).
        size: the root mean square entry of a perturbation; None: that of w times the fourth root of rounding.
        seed: the seed of the perturbations, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.

    Returns:
        The estimate of H v.

    Raises:
        SpectraError: an argument is wrong, or the loss is not finite at a perturbed point.
    """
    losses = Losses.of(loss, point)
    require_choice("form", form, PRODUCT)
    vector, size = losses.direction(vector), losses.chosen_size(size, 1 / 4)
    step = size * math.sqrt(losses.n) / norm(vector)
    reading = Reading(PRODUCT[form], lambda u: u.double() / (step * size**2))
    rows = perturbation_rows(losses, evaluations, perturbations, size, [reading], seed, generator)
    return estimates(losses, rows, [reading], step * vector)[0]


def gradient_and_product_from_losses(
    loss: Problem | Callable[[Tensor], Any],
    vector: Tensor,
    point: Tensor | None = None,
    *,
    evaluations: int,
    form: str = "central",
    size: float | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[VectorEstimate, VectorEstimate]:
    """Estimate the gradient and H v, the Hessian times a vector, from the same differences of loss values.

    H v comes from the second-order term of each difference, g'u + u'H u / 2, whose product with (u'v) u holds H v
    beside tr H (Pearlmutter 1994). For perturbations u on the sphere

        Hv = <(E(w + u) - E(w)) ((1 + 2/n) (u'v / s^2) u - v)> / s^2

    This saves the evaluations of a step along v, but its noise is that of all of H, about sqrt(n) tr H |v| / 2; in the
    forward form there is that of g too, which grows as 1 / s. Perturbations are on the sphere, because signs do not
    show the diagonal of H.

    Args:
        loss: a `Problem`, or a function of the weights (n,) that returns the loss.
        vector: v (n,).
        point: the weights (n,) at which to differentiate a function; a problem has its own.
        evaluations: the largest number of evaluations of the loss.
        form: central, with two evaluations for each perturbation, or forward, with one.
        size: s, the root mean square entry of a perturbation; None: that of w times the fourth root of rounding.
        seed: the seed of the perturbations, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.

    Returns:
        The estimates of the gradient and of H v; `evaluations` of each counts those of both.

    Raises:
        SpectraError: an argument is wrong, or the loss is not finite at a perturbed point.
    """
    losses = Losses.of(loss, point)
    require_choice("form", form, SECOND_ORDER)
    vector, size = losses.direction(vector), losses.chosen_size(size, 1 / 4)
    readings = [
        Reading(GRADIENT[form], lambda u: u.double() / size**2),
        Reading(SECOND_ORDER[form], lambda u: along_second_order(u, vector, size)),
    ]
    rows = perturbation_rows(losses, evaluations, "sphere", size, readings, seed, generator)
    gradient, product = estimates(losses, rows, readings)
    return gradient, product


def along_second_order(u: Tensor, vector: Tensor, size: float) -> Tensor:
    """The vector (n,) that averages to H v when multiplied by u'H u / 2, for u on the sphere."""
    n = len(u)
    return ((1 + 2 / n) * (dot(u, vector) / size**2) * u.double() - vector.double()) / size**2


class Losses:
    """The values of a loss around a point, with a count of the evaluations."""

    def __init__(self, values: Callable[[Iterator[Tensor]], list[float]], point: Tensor):
        self.values, self.point = values, point
        self.n, self.evaluations = len(point), 0

    @classmethod
    def of(cls, loss: Problem | Callable[[Tensor], Any], point: Tensor | None) -> Losses:
        """The losses of a problem around its own parameters, or of a function around a point."""
        if isinstance(loss, Problem):
            if point is not None:
                raise ArgumentError("`point`: a problem has its own parameters; leave `point` out")
            here = loss.parameter_vector()
            return cls(lambda steps: displaced_losses(loss, steps), here.to(device_of_vectors(here.device)))
        if not callable(loss):
            raise ArgumentError(f"`loss`: expected a Problem or a function of the weights, got {type(loss).__name__}")
        if not isinstance(point, Tensor) or point.ndim != 1 or not point.is_floating_point() or not len(point):
            came = f"{point.dtype} of shape {tuple(point.shape)}" if isinstance(point, Tensor) else type(point).__name__
            raise ArgumentError(f"`point`: expected the weights as a floating-point vector (n,), got {came}")
        if not all_finite(point) or squares_overflow(point):
            raise ArgumentError(f"`point`: give finite weights with a norm {WITHIN}")
        here = point.detach()
        return cls(lambda steps: [number(loss(here + step)) for step in steps], here)

    def __call__(self, steps: Sequence[Tensor] | Iterator[Tensor]) -> list[float]:
        """The loss at w + s for each step s. Raises SpectraError if one is not finite."""
        found = self.values(iter(steps))
        self.evaluations += len(found)
        if not all(map(math.isfinite, found)):
            raise SpectraError(
                "`size`: the loss is not finite at a perturbed point; check the loss, or give a smaller size"
            )
        return found

    def chosen_size(self, size: float | None, power: float) -> float:
        """The given size, or eps to this power times the root mean square of the weights.

        Raises ArgumentError if rounding would remove the perturbation: all differences, and their standard error, would
        then be zero.
        """
        own, dtype = norm(self.point) / math.sqrt(self.n), self.point.dtype
        eps = torch.finfo(dtype).eps
        if size is None:
            return eps**power * (own or 1.0)
        require_number("size", size, finite=True)
        if size <= (least := eps * own):
            raise ArgumentError(
                f"`size` {size:g}: lost to rounding beside weights of {own:.2g} in {dtype}; give one > {least:.2g}"
            )
        return float(size)

    def direction(self, vector: Tensor) -> Tensor:
        """Check a non-zero vector (n,), and convert it to the dtype and device of the weights."""
        if not isinstance(vector, Tensor) or vector.shape != self.point.shape:
            came = f"of shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else type(vector).__name__
            raise ArgumentError(f"`vector` {came}: give a tensor of shape ({self.n},)")
        if not vector.any():
            raise ArgumentError("`vector` is zero: give a non-zero vector")
        if not all_finite(vector) or squares_overflow(vector):
            raise ArgumentError(f"`vector`: give finite numbers with a norm {WITHIN}")
        return vector.detach().to(self.point)


def number(value: Any) -> float:
    """Convert a loss to a float. Raises ArgumentError if it is not a single number."""
    try:
        return value.item() if isinstance(value, Tensor) else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"`loss` returned {came}: return a single number") from error


@dataclass(frozen=True)
class Reading:
    """How a vector is estimated from losses: as the mean of a difference times a vector made from the perturbation."""

    stencil: Stencil
    weigh: Callable[[Tensor], Tensor]  # u (n,) -> (n,), float64
    second_order: SymmetricOperator | None = None

    def difference(self, u: Tensor, values: Mapping[tuple[int, int], float]) -> float:
        """The difference of the losses at the points of a perturbation."""
        whole = math.fsum(weight * values[place] for place, weight in self.stencil.items())
        return whole if self.second_order is None else whole - dot(u, self.second_order @ u) / 2

    def rounding(self, values: Mapping[tuple[int, int], float], eps: float) -> float:
        """The possible error of the difference by rounding of the losses, at most half of `eps` each."""
        return eps / 2 * sum(abs(weight * values[place]) for place, weight in self.stencil.items())


def places_of(readings: Sequence[Reading]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The points of all stencils: those that are the same for every perturbation, and the others."""
    places = list(dict.fromkeys(place for reading in readings for place in reading.stencil))
    return [p for p in places if not p[0]], [p for p in places if p[0]]


def perturbation_rows(
    losses: Losses,
    evaluations: int,
    perturbations: str,
    size: float,
    readings: Sequence[Reading],
    seed: int,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Blocks of perturbations, as rows (k, n), as many as the `evaluations` allow."""
    require_choice("perturbations", perturbations, LAWS)
    shared, own = map(len, places_of(readings))
    require_integer("evaluations", evaluations, shared + own)
    generator = chosen_generator(seed, generator)
    count, block = (evaluations - shared) // own, max(1, BLOCK // losses.n)
    sizes = (min(block, count - first) for first in range(0, count, block))
    return (LAWS[perturbations](draw_keys(generator, k), losses.point, size) for k in sizes)


def signs(keys: Sequence[int], like: Tensor, size: float) -> Tensor:
    """Rows of entries `size` or -`size` at random."""
    return size * sign_rows(keys, slice(0, len(like)), like.dtype, like.device)


def on_the_sphere(keys: Sequence[int], like: Tensor, size: float) -> Tensor:
    """Rows of random directions and length `size` sqrt(n)."""
    rows = normal_rows(keys, slice(0, len(like)), like.dtype, like.device)
    return rows * (size * math.sqrt(len(like)) / norms(rows)).to(rows)[:, None]


LAWS: dict[str, Callable[[Sequence[int], Tensor, float], Tensor]] = {"signs": signs, "sphere": on_the_sphere}


def estimates(
    losses: Losses, blocks: Iterator[Tensor], readings: Sequence[Reading], step: Tensor | None = None
) -> list[VectorEstimate]:
    """The mean of each reading over perturbations in blocks of rows (k, n); `step` (n,) is the d of the stencils."""
    shared, own = places_of(readings)
    along = torch.zeros_like(losses.point) if step is None else step
    values = dict(zip(shared, losses([b * along for _, b in shared]), strict=True))
    means, eps = [Mean(losses.point) for _ in readings], torch.finfo(losses.point.dtype).eps
    for rows in blocks:
        found = losses(a * u + b * along for u in rows for a, b in own)
        for i, u in enumerate(rows):
            values.update(zip(own, found[i * len(own) : (i + 1) * len(own)], strict=True))
            for mean, reading in zip(means, readings, strict=True):
                weights = reading.weigh(u)
                mean.add(reading.difference(u, values) * weights, reading.rounding(values, eps) * norm(weights))
    return [mean.estimate(losses) for mean in means]


class Mean:
    """The mean of vectors and its standard errors, vector by vector (Welford 1962), in float64."""

    def __init__(self, like: Tensor):
        self.mean, self.squares = (torch.zeros_like(like, dtype=torch.float64) for _ in range(2))
        self.count, self.rounding = 0, 0.0

    def add(self, vector: Tensor, rounding: float) -> None:
        """Include one more vector (n,), with the norm of its possible error by `rounding`."""
        self.count += 1
        self.rounding += (rounding - self.rounding) / self.count
        apart = vector - self.mean
        self.mean += apart / self.count
        self.squares += apart * (vector - self.mean)

    def estimate(self, losses: Losses) -> VectorEstimate:
        """The mean so far."""
        squares = self.squares / self.count / (self.count - 1) if self.count > 1 else self.squares + math.inf
        errors = (squares + self.rounding**2 / len(squares)).sqrt()
        value, errors = (part.to(losses.point.dtype) for part in (self.mean, errors))
        return VectorEstimate(value, errors, self.count, losses.evaluations)
