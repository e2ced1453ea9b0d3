"""The quadratic model of the loss around a point, and the range in which it is valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spectra.operator import SymmetricOperator, placed
from spectra.vectors import dot

SHARE = 0.1  # of the quadratic term: the largest departure at which the model counts as valid


@dataclass(frozen=True)
class Quadratic:
    """The quadratic model m(z) = loss + slopes'z + z'C z / 2 in coordinates z along k directions."""

    loss: float
    slopes: np.ndarray  # (k,)
    curvatures: np.ndarray  # C (k, k)

    def __call__(self, coordinates: np.ndarray) -> np.ndarray:
        """The values of m at coordinates (points, k)."""
        return self.loss + coordinates @ self.slopes + self.bend(coordinates)

    def bend(self, coordinates: np.ndarray) -> np.ndarray:
        """The quadratic term z'C z / 2 at coordinates (points, k)."""
        return np.einsum("pi,ij,pj->p", coordinates, self.curvatures, coordinates) / 2

    def along(self, *places: int) -> Quadratic:
        """The quadratic model in the coordinates of some of the directions."""
        return Quadratic(self.loss, self.slopes[list(places)], self.curvatures[np.ix_(places, places)])


def quadratic(operator: SymmetricOperator, loss: float, gradient: Tensor, directions: Sequence[Tensor]) -> Quadratic:
    """The quadratic model with this matrix, by one product for each direction (n,), whole on every process."""
    rows = [placed(d, operator) for d in directions]
    images = [operator @ row for row in rows]
    slopes = [dot(gradient, d) for d in directions]
    curvatures = np.array([[dot(row, image) for image in images] for row in rows]).reshape(len(rows), len(rows))
    return Quadratic(loss, np.array(slopes), (curvatures + curvatures.T) / 2)


class Range(NamedTuple):
    """The range of t in which the quadratic model is valid, and whether it reaches the ends of the line."""

    start: float
    stop: float
    to_the_start: bool
    to_the_end: bool


def range_of_validity(t: np.ndarray, departure: np.ndarray, bend: np.ndarray) -> Range:
    """The range around t = 0 in which |departure| <= SHARE |quadratic term|, with linear interpolation between points.

    An end is 0.0 if the first point on that side is not valid; then the range is shorter than the grid resolves. A loss
    that is not finite is not valid.
    """
    ratio = np.divide(np.abs(departure), SHARE * np.abs(bend), out=np.full(len(t), np.inf), where=bend != 0)
    ratio[np.isnan(ratio)] = np.inf
    zero = int(np.abs(t).argmin())
    stop, to_the_end = reach(t[zero:], ratio[zero:])
    start, to_the_start = reach(-t[zero::-1], ratio[zero::-1])
    return Range(0.0 - start, stop, to_the_start, to_the_end)


def reach(t: np.ndarray, ratio: np.ndarray) -> tuple[float, bool]:
    """The t, from 0, up to which the ratio is at most 1, and whether that is the last t."""
    beyond = np.flatnonzero(ratio[1:] > 1)
    if not len(beyond):
        return float(t[-1]), True
    i = beyond[0]  # the last point that is within
    share = (1 - ratio[i]) / (ratio[i + 1] - ratio[i]) if i else 0.0
    return float(t[i] + share * (t[i + 1] - t[i])), False
