"""The loss along a direction by forward passes alone: where it is lowest, and where it is back where it was.

With l(t) the loss at theta + t d, which falls at first, the critical step is the first t > 0 found with l(t) = l(0): a
longer one makes the loss larger. The best step is the t before it at which the loss is lowest. Of a quadratic loss they
are -2 g'd / d'Hd and half of that. Losses have rounding errors, which are measured and stand in the errors of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from spectra.curvature.displacement import losses
from spectra.problem.problem import Problem
from spectra.wording import outline

POINTS = 24  # of the grid on which the first crossing is looked for
SEEN = 4.0  # times its rounding, by which the loss has to fall to be seen to fall
NEAR = 1e-3  # of a first step: the distance of the points that tell the rounding of the loss
ASIDE = 0.05  # of a step: the distance of the points that tell slope and curvature there
TIGHT = 1e-6  # of a step, to which searches go
FAR = 1000.0  # radii, as far as is looked
NOT_FAR = 100.0  # radii, of a first step where the curvature is next to nothing
LONGER = 8.0  # times the best step of the quadratic model, as far as is looked at least
RISES = "as the loss rises along it at first"
LOST = "as the fall of the loss along it is lost in rounding"
NEVER = "as the loss is not back within the range searched"
FALLS = "as the loss still falls at the end of the range searched"


@dataclass(frozen=True)
class Step:
    """A step t, with its error and the loss there; all None where there is none, for the reason that is given."""

    t: float | None = None
    error: float | None = None
    loss: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Line:
    """The loss along one direction."""

    t: np.ndarray  # (points,), rising from 0
    loss: np.ndarray  # (points,), nan where it is not finite
    rounding: float  # standard deviation of one loss
    best: Step
    critical: Step
    furthest: float  # as far as was looked
    evaluations: int  # forward passes over the data

    __repr__ = outline


@dataclass
class Losses:
    """l(t), each computed once; infinite where it is not finite."""

    problem: Problem
    direction: Tensor  # (n,)
    watch: Callable[[], None]
    known: dict[float, float] = field(default_factory=dict)

    def __call__(self, t: float) -> float:
        if (t := float(t)) not in self.known:
            (value,) = losses(self.problem, self.direction[None], np.array([[t]]), self.watch)
            self.known[t] = math.inf if math.isnan(value) else value
        return self.known[t]

    def up_to(self, end: float) -> tuple[np.ndarray, np.ndarray]:
        """The t in [0, end] that have been looked at, rising, and the losses there."""
        t = np.array(sorted(t for t in self.known if 0 <= t <= end))
        return t, np.array([self.known[one] for one in t])


def search_line(
    problem: Problem,
    direction: Tensor,
    slope: float,
    curvature: float | None = None,
    *,
    radius: float,
    slope_error: float | None = None,
    show: float = 0.0,
    watch: Callable[[], None] = lambda: None,
) -> Line:
    """Search the loss along a direction for its best and its critical step.

    Args:
        problem: the problem, at the parameters from which the line goes out.
        direction: d (n,), in which t is measured.
        slope: g'd.
        curvature: d'Hd, for a first guess; None, or not positive, where there is none to be had.
        radius: the t that is gone first where there is no such guess; FAR times it is looked at.
        slope_error: the rounding error of the slope; a slope that may be zero does not tell whether the loss falls.
        show: a t up to which losses are wanted in any case.
        watch: called before each pass over the data.

    Returns:
        The losses that were computed, and both steps. They are missing where the loss does not fall along d, where its
        fall is lost in rounding, and where it does not come back.

    Raises:
        SpectraError: the model fails.
    """
    loss = Losses(problem, direction, watch)
    guess = -slope / curvature if curvature and curvature > 0 > slope else radius
    furthest, start = max(FAR * radius, LONGER * guess), loss(0.0)
    rounding = rounding_of(loss, min(guess, NOT_FAR * radius), torch.finfo(problem.dtype).eps)
    low, high, none, seen = 0.0, None, RISES, SEEN * rounding
    if slope <= (slope_error or 0.0):
        low, high = bracket(loss, guess, furthest, seen, slope, min(0.0, curvature or 0.0))
        none = "" if low else RISES if slope >= 0 and loss(guess) > start + seen else LOST
    end = high or (2 * guess if none else furthest)
    for t in np.linspace(0.0, end, POINTS + 1):
        loss(t)
    for t in np.linspace(end, show, POINTS + 1) if show > end else (show,):
        loss(t)
    best = critical = Step(reason=none)
    if not none:
        t, values = loss.up_to(end)
        crossing = first_crossing(values, start, seen)
        critical = critical_step(loss, t, crossing, rounding)
        best = best_step(loss, t[: crossing and crossing + 1], rounding)
    t, values = loss.up_to(max(end, show))
    return Line(t, np.where(np.isfinite(values), values, np.nan), rounding, best, critical, furthest, len(loss.known))


def rounding_of(loss: Losses, step: float, eps: float) -> float:
    """The standard deviation of the rounding of one loss, at least one unit in its last place.

    From fourth differences at seven points near 0, to which a smooth function adds nothing that matters (Moré, Wild
    2011, *Estimating computational noise*).
    """
    values = np.array([loss(NEAR * step * i) for i in range(-3, 4)])
    measured = np.sqrt(np.square(np.diff(values, 4)).mean() / 70) if np.isfinite(values).all() else 0.0
    return max(eps * abs(loss(0.0)), float(measured))


def bracket(
    loss: Losses, guess: float, furthest: float, seen: float, slope: float, bend: float
) -> tuple[float, float | None]:
    """A t at which the loss has fallen by `seen`, 0 where there is none, and a later one at which it is back, or None.

    Steps are halved until the loss has fallen, or until slope and `bend`, the curvature where it is below zero, make it
    fall by less. Then they are doubled until it is back.
    """
    start, low = loss(0.0), guess
    while not loss(low) < start - seen:
        if abs(slope) * low - bend * low**2 / 2 < seen:
            return 0.0, None
        low /= 2
    t = low
    while t < furthest:
        t = min(2 * t, furthest)
        if loss(t) >= start:
            return low, t
    return low, None


def first_crossing(values: np.ndarray, start: float, seen: float) -> int | None:
    """The first place at which the loss is back after it has fallen by `seen`; None where it is not."""
    fallen = int(np.flatnonzero(values < start - seen)[0])
    back = np.flatnonzero(values[fallen:] >= start)
    return fallen + int(back[0]) if len(back) else None


def critical_step(loss: Losses, t: np.ndarray, crossing: int | None, rounding: float) -> Step:
    """The root of l(t) - l(0) before the place of the crossing, by Brent's method.

    Its error is what the search leaves, and what two roundings make on the slope there.
    """
    if crossing is None:
        return Step(reason=NEVER)
    start, low, high = loss(0.0), t[crossing - 1], t[crossing]
    most = start - min(loss(one) for one in t)  # beyond which heights say nothing of the root
    root = float(high)
    if loss(high) > start:
        root = cast(float, brentq(lambda t: min(loss(t) - start, most), low, high, xtol=TIGHT * high))
    aside = min(ASIDE * root, (high - low) / 2)
    slope = (loss(root + aside) - loss(root - aside)) / (2 * aside)
    error = TIGHT * high + (2 * rounding / slope if 0 < slope < math.inf else high - low)
    return Step(root, float(min(error, high - low)), loss(root))


def best_step(loss: Losses, t: np.ndarray, rounding: float) -> Step:
    """The minimum around the lowest of the points, by Brent's method; among several it is that one.

    Its error is what the search leaves, and how far two roundings shift the minimum of a parabola.
    """
    values = np.array([loss(one) for one in t])
    lowest = int(values.argmin())
    if lowest == len(t) - 1:
        return Step(reason=FALLS)
    low, high = t[lowest - 1], t[lowest + 1]
    search: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": TIGHT * high})
    best = search.x if search.fun <= values[lowest] else t[lowest]
    aside = min(ASIDE * best, (high - low) / 2)
    bend = (loss(best + aside) - 2 * loss(best) + loss(best - aside)) / aside**2
    error = 2 * TIGHT * high + (math.sqrt(4 * rounding / bend) if 0 < bend < math.inf else high - low)
    return Step(float(best), float(min(error, high - low)), loss(best))
