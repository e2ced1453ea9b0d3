"""Search the loss along a direction, by forward passes alone, for the best and the critical step.

With l(t) the loss at theta + t d, which falls at first, the critical step is the first t > 0 found with l(t) = l(0); a
longer step raises the loss. The best step is the t before it at which the loss is lowest. For a quadratic loss they are
-2 g'd / d'Hd and half of that. Rounding errors of losses are measured and included in the errors of both.
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

POINTS = 24  # intervals of the grid on which the first crossing is searched
SEEN = 4.0  # times its rounding error: a fall of the loss that is significant
NEAR = 1e-3  # of a first step: distance of the points that measure the rounding error of the loss
ASIDE = 0.05  # of a step: distance of the points that give slope and curvature there
TIGHT = 1e-6  # of a step: tolerance of the searches
FAR = 1000.0  # radii: the range of the search
NOT_FAR = 100.0  # radii: the longest first step if the curvature is almost zero
LONGER = 8.0  # times the best step of the quadratic model: the range of the search at least
RISES = "as the loss rises along it at first"
LOST = "as the fall of the loss along it is lost in rounding"
NEVER = "as the loss does not come back within the range searched"
FALLS = "as the loss still falls at the end of the range searched"


@dataclass(frozen=True)
class Step:
    """A step t, with its error and the loss there; if there is none, all are None and a reason is given."""

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
    furthest: float  # the end of the range of the search
    evaluations: int  # forward passes over the data

    __repr__ = outline


@dataclass
class Losses:
    """The function l(t), which computes each loss once; infinite where the loss is not finite."""

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
        """The t in [0, end] that have been evaluated, in rising order, and the losses there."""
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
        problem: the problem, at the parameters where t = 0.
        direction: the direction d (n,).
        slope: g'd.
        curvature: d'Hd, for a first guess of the step; None if it is unknown.
        radius: the first t to try if the curvature gives no guess; the search goes up to FAR times it.
        slope_error: the rounding error of the slope; a slope that may be zero does not say whether the loss falls.
        show: the t up to which losses are computed in any case.
        watch: called before each pass over the data.

    Returns:
        The losses that were computed, and both steps. A step is missing if the loss does not fall along d, if its fall
        is lost in rounding, or if it does not come back.

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
    """The standard deviation of the rounding error of one loss, at least one unit in its last place.

    It is estimated from fourth differences at seven points near 0, to which a smooth function contributes very little
    (Moré, Wild 2011, *Estimating computational noise*).
    """
    values = np.array([loss(NEAR * step * i) for i in range(-3, 4)])
    measured = np.sqrt(np.square(np.diff(values, 4)).mean() / 70) if np.isfinite(values).all() else 0.0
    return max(eps * abs(loss(0.0)), float(measured))


def bracket(
    loss: Losses, guess: float, furthest: float, seen: float, slope: float, bend: float
) -> tuple[float, float | None]:
    """A t at which the loss has fallen by `seen` (0 if there is none), and a later t at which it is back (or None).

    Steps are halved until the loss has fallen by `seen`, or until slope and `bend` (the curvature if it is negative)
    predict a smaller fall. Then they are doubled until the loss is back.
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
    """The first index at which the loss is back after it has fallen by `seen`; None if it never is."""
    fallen = int(np.flatnonzero(values < start - seen)[0])
    back = np.flatnonzero(values[fallen:] >= start)
    return fallen + int(back[0]) if len(back) else None


def critical_step(loss: Losses, t: np.ndarray, crossing: int | None, rounding: float) -> Step:
    """The root of l(t) - l(0) in the interval before the crossing, by Brent's method.

    Its error is the tolerance of the search, plus two rounding errors of the loss over the slope there.
    """
    if crossing is None:
        return Step(reason=NEVER)
    start, low, high = loss(0.0), t[crossing - 1], t[crossing]
    most = start - min(loss(one) for one in t)  # limits the influence of very high losses
    root = float(high)
    if loss(high) > start:
        root = cast(float, brentq(lambda t: min(loss(t) - start, most), low, high, xtol=TIGHT * high))
    aside = min(ASIDE * root, (high - low) / 2)
    slope = (loss(root + aside) - loss(root - aside)) / (2 * aside)
    error = TIGHT * high + (2 * rounding / slope if 0 < slope < math.inf else high - low)
    return Step(root, float(min(error, high - low)), loss(root))


def best_step(loss: Losses, t: np.ndarray, rounding: float) -> Step:
    """The minimum next to the lowest of the points t, by Brent's method.

    Its error is the tolerance of the search, plus the shift of a parabola's minimum by two rounding errors of the loss.
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
