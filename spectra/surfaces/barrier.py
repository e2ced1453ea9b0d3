"""The barrier of linear mode connectivity: the largest rise of the loss between two checkpoints above their chord.

    height  =  max over t in (0, 1) of  L(theta_t) - ((1 - t) L(theta_0) + t L(theta_1)),   theta_t on the line

Frankle, Dziugaite, Roy, Carbin 2020, *Linear mode connectivity and the lottery ticket hypothesis*. The losses at the
ends are weighted by t as in Entezari, Sedghi, Saukh, Neyshabur 2022, *The role of permutation invariance in linear mode
connectivity of neural networks*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spectra.surfaces.example_losses import NO_EXAMPLES

ROUNDS, PARTS = 2, 4  # the grid is refined ROUNDS times around the maximum, by the factor PARTS
ERRORS = 2.0  # standard errors that the height of a barrier has to exceed
ROUNDING = 8  # units in the last place: the rounding error of a mean loss
NOT_FINITE = "the loss is not finite at some point between the checkpoints"


@dataclass(frozen=True)
class Barrier:
    """The largest rise of the loss above the chord between the two checkpoints."""

    t: float  # its place, 0 at this checkpoint and 1 at the other
    height: float  # above the chord; nan if a loss in between is not finite
    standard_error: float | None  # of the height at t, over examples, paired; None if it is unknown
    grid_error: float  # how much higher the maximum may be between the grid points, from a parabola
    rounding: float  # of the losses
    start: float  # the loss at t = 0
    end: float  # at t = 1
    without_error: str | None  # why the standard error is unknown

    @property
    def present(self) -> bool | None:
        """Whether the height exceeds its errors; None if it is unknown."""
        if not np.isfinite(self.height):
            return None
        return self.height > ERRORS * (self.standard_error or 0.0) + self.grid_error + self.rounding


def barrier(
    t: np.ndarray,
    loss: np.ndarray,
    evaluate: Callable[[Sequence[float]], np.ndarray],
    by_example: Callable[[float], Sequence[float] | None],
    epsilon: float,
) -> Barrier:
    """Find the barrier from losses on a grid, and from at most 12 more losses around the largest rise.

    Args:
        t: the grid (points,), with 0 and 1.
        loss: the losses (points,) there.
        evaluate: returns the losses at other t.
        by_example: returns the losses of the examples (N,) at t, or None if examples have no losses of their own.
        epsilon: the machine epsilon of the losses.
    """
    between = (t >= 0) & (t <= 1)
    t, loss = refined(t[between], loss[between], evaluate)
    start, end = float(loss[0]), float(loss[-1])
    rounding = ROUNDING * epsilon * float(np.nanmax(np.abs(loss)))
    if not np.isfinite(loss).all():
        place = float(t[~np.isfinite(loss)][0])
        return Barrier(place, np.nan, None, np.nan, rounding, start, end, NOT_FINITE)
    above = rise(t, loss)
    best = int(np.argmax(above))
    place, height = float(t[best]), float(above[best])
    error, without = sampling_error(place, by_example)
    return Barrier(place, height, error, vertex(t, above, best), rounding, start, end, without)


def refined(
    t: np.ndarray, loss: np.ndarray, evaluate: Callable[[Sequence[float]], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Add points around the largest rise to a grid t (points,) and its losses; unchanged if a loss is not finite."""
    for _ in range(ROUNDS):
        if not np.isfinite(loss).all():
            break
        best = int(np.argmax(rise(t, loss)))
        sides = [(t[best], t[i]) for i in (best - 1, best + 1) if 0 <= i < len(t)]
        more = [a + (b - a) * j / PARTS for a, b in sides for j in range(1, PARTS)]
        found = np.array(evaluate(more))
        order = np.argsort([*t, *more])
        t, loss = np.array([*t, *more])[order], np.array([*loss, *found])[order]
    return t, loss


def sampling_error(
    place: float, by_example: Callable[[float], Sequence[float] | None]
) -> tuple[float | None, str | None]:
    """The standard error of the height at a place, over examples, paired; or None, and why it is unknown."""
    if not 0 < place < 1:
        return 0.0, None  # the height is 0 by definition
    losses = [by_example(t) for t in (0.0, place, 1.0)]
    if any(one is None for one in losses):
        return None, NO_EXAMPLES
    here, there, other = map(np.array, losses)
    error = standard_error(there - (1 - place) * here - place * other)
    return error, None if error is not None else "there is one example"


def rise(t: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The losses (points,) minus the chord from the first to the last, at t from 0 to 1; zeros at the ends."""
    above = loss - ((1 - t) * loss[0] + t * loss[-1])
    above[[0, -1]] = 0.0
    return above


def standard_error(values: np.ndarray) -> float | None:
    """The standard error of the mean of values (N,), as for examples drawn at random; None for one example."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def vertex(t: np.ndarray, height: np.ndarray, best: int) -> float:
    """How far a parabola through the highest point and its neighbours rises above it; 0 at either end."""
    if not 0 < best < len(t) - 1:
        return 0.0
    left, right = t[best] - t[best - 1], t[best + 1] - t[best]
    down, up = (height[best] - height[best - 1]) / left, (height[best + 1] - height[best]) / right
    bend = 2 * (up - down) / (left + right)
    slope = (down * right + up * left) / (left + right)
    return float(-(slope**2) / (2 * bend)) if bend < 0 else 0.0
