"""The result of `spectra landscape` for one matrix: the loss along directions, and its quadratic model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from spectra.records.entry import Entry
from spectra.records.fields import Matrix, Stored, Vector, stored, written

LINE, PLANE = ("t", "loss", "prediction"), ("x", "y", "loss", "prediction")  # what is kept as arrays


@stored
class Direction(Stored):
    """A direction d in parameter space."""

    name: str
    kind: str
    source: str = field(metadata=written("from"))  # the file of an earlier eig, or `computed` or `drawn`
    eigenvalue: float | None  # None where d is no eigenvector
    residual: float | None
    norm: float
    slope: float | None  # g'd; None where d is not finite
    curvature: float | None  # d'Ad


@stored
class Holds(Stored):
    """The range of a line in which the prediction holds, and whether that reaches the end of what was looked at."""

    share: float  # of the quadratic term, which the departure may come to
    start: float
    stop: float
    to_the_start: bool
    to_the_end: bool


@stored
class Line(Stored):
    """Losses at theta + t d; nan where they were not finite."""

    along: str
    t: Vector  # (points,), 0 in the middle
    loss: Vector
    prediction: Vector
    departure: Vector  # loss less prediction
    holds: Holds


@stored
class Plane(Stored):
    """Losses at theta + x d + y e; nan where they were not finite."""

    along: list[str]  # two
    cosine: float  # between d and e
    x: Vector
    y: Vector
    loss: Matrix  # (y, x)
    prediction: Matrix  # (y, x)


@stored
class Spread(Stored):
    """The distribution over examples of one number that each example has."""

    mean: float
    standard_deviation: float
    standard_error: float
    negative: float  # share of examples
    quantiles: list[float]
    signal_to_noise: float | None  # |mean| over standard deviation


@stored
class SpreadAlong(Stored):
    """The distributions over examples of curvature and slope along a direction."""

    along: str
    quantiles_at: list[float]
    curvature: Spread
    slope: Spread


@stored
class LandscapeResult(Entry):
    """The loss around a point, along lines and in planes, beside the prediction by one matrix."""

    method: str
    loss: float
    gradient_norm: float
    parameter_norm: float
    directions: list[Direction]
    lines: list[Line]
    planes: list[Plane]
    spread: list[SpreadAlong] | None
    without_spread: str | None  # why there is none
    evaluations: int  # forward passes over the data

    def arrays(self) -> dict[str, np.ndarray]:
        """Coordinates, losses and predictions, named `<what>_<matrix>_<direction>[_<direction>]`."""
        lines = {self._name(key, [one.along]): getattr(one, key) for one in self.lines for key in LINE}
        planes = {self._name(key, one.along): getattr(one, key) for one in self.planes for key in PLANE}
        return lines | planes

    def _name(self, key: str, along: Sequence[str]) -> str:
        return "_".join([key, self.curvature, *along]).replace(" ", "-")

    def is_finite(self) -> bool:
        """Whether all numbers are finite, but for losses far away, which may well overflow."""
        return super(LandscapeResult, self.changed(lines=[], planes=[])).is_finite()

    def summary(self) -> str:
        return f"{len(self.lines)} lines, {len(self.planes)} planes, loss {self.loss:.4g}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a point, of a line, whose t is `x`, or of a plane."""
        for line in self.lines:
            for x, loss, prediction in zip(line.t, line.loss, line.prediction, strict=True):
                yield {"along": line.along, "x": x, "y": None, "loss": loss, "prediction": prediction}
        for plane in self.planes:
            for y, losses, predictions in zip(plane.y, plane.loss, plane.prediction, strict=True):
                for x, loss, prediction in zip(plane.x, losses, predictions, strict=True):
                    yield {"along": ",".join(plane.along), "x": x, "y": y, "loss": loss, "prediction": prediction}
