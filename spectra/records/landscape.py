"""The result of `spectra landscape` for one matrix: the loss along directions, and its quadratic model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from spectra.records.entry import Entry
from spectra.records.fields import Matrix, Stored, Vector, stored, written

LINE, PLANE = ("t", "loss", "prediction"), ("x", "y", "loss", "prediction")  # saved as arrays


def unless(name: str) -> dict[str, Any]:
    """The metadata of a field that is left out if it is None or False."""
    return written(omitted=lambda record: not getattr(record, name))


@stored
class Direction(Stored):
    """A direction d in parameter space."""

    name: str
    kind: str
    source: str = field(metadata=written("from"))  # file of an earlier eig or a checkpoint, `computed` or `drawn`
    eigenvalue: float | None  # None if d is not an eigenvector
    residual: float | None
    norm: float
    slope: float | None  # g'd; None if d is not finite
    curvature: float | None  # d'Ad


@stored
class ValidityRange(Stored):
    """The range of t in which the prediction along a line holds."""

    share: float  # of the quadratic term, as the largest departure
    start: float
    stop: float
    to_the_start: bool
    to_the_end: bool


@stored
class Barrier(Stored):
    """The largest rise of the loss above the chord between the losses of two checkpoints, at t = 0 and t = 1."""

    t: float  # where it is
    height: float  # nan if a loss between is not finite
    standard_error: float | None  # of the height at t, over the examples, paired
    grid_error: float  # how much higher it may be between grid points
    rounding: float  # of the losses
    start: float  # the loss at t = 0
    end: float  # at t = 1
    present: bool | None  # whether the height exceeds its errors; None if it is not finite
    without_error: str | None  # why there is no standard error


@stored
class Line(Stored):
    """Losses at theta + t d; nan if they are not finite."""

    along: str
    t: Vector  # (points,), 0 among them
    loss: Vector
    prediction: Vector  # nan if buffers change along the line
    departure: Vector  # loss less prediction
    holds: ValidityRange | None  # None if there is no prediction
    barrier: Barrier | None = field(default=None, metadata=unless("barrier"))  # on the way to another checkpoint

    @property
    def origin(self) -> int:
        """The index of t = 0."""
        return int(np.abs(self.t).argmin())


@stored
class Mark(Stored):
    """A point of interest in or beside a plane, with its nearest point (x, y) in the plane."""

    name: str
    x: float
    y: float
    distance: float  # from the plane
    loss: float | None  # at the point itself; None if it lies in the plane
    loss_in_plane: float  # at (x, y)
    step: float | None  # of training


@stored
class TrajectoryRecord(Stored):
    """The checkpoints of which two principal components span a plane, marked there in the order of training."""

    glob: str
    counts: str  # what the marks' steps are: `training step`, `epoch` or `checkpoint` (natural order of names)
    shares: list[float]  # of the squared distances from the checkpoint, along the first component and the second


@stored
class Plane(Stored):
    """Losses at theta + x d + y e; nan if they are not finite."""

    along: list[str]  # two
    cosine: float  # between the two directions
    orthogonal: bool = field(default=False, metadata=unless("orthogonal"))  # e is its part orthogonal to d
    x: Vector
    y: Vector
    loss: Matrix  # (y, x)
    prediction: Matrix  # (y, x); nan if buffers change too
    marks: list[Mark] | None = field(default=None, metadata=unless("marks"))
    trajectory: TrajectoryRecord | None = field(default=None, metadata=unless("trajectory"))


@stored
class Spread(Stored):
    """The distribution over examples of a number that each example has."""

    mean: float
    standard_deviation: float
    standard_error: float
    negative: float  # share of examples
    quantiles: list[float]
    signal_to_noise: float | None  # |mean| divided by standard deviation


@stored
class SpreadAlong(Stored):
    """The distributions over examples of curvature and slope along a direction."""

    along: str
    quantiles_at: list[float]
    curvature: Spread
    slope: Spread


@stored
class LandscapeResult(Entry):
    """The loss along lines and in planes around a checkpoint, with the prediction of one matrix's quadratic model."""

    method: str
    checkpoint: str | None = field(default=None, metadata=unless("checkpoint"))  # if there are several
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
        """Coordinates, losses and predictions, named `<what>_<matrix>[_<checkpoint>]_<direction>[_<direction>]`."""
        lines = {self._name(key, [one.along]): getattr(one, key) for one in self.lines for key in LINE}
        planes = {self._name(key, one.along): getattr(one, key) for one in self.planes for key in PLANE}
        return lines | planes

    def _name(self, key: str, along: Sequence[str]) -> str:
        of = [self.checkpoint] if self.checkpoint else []
        return "_".join([key, self.curvature, *of, *along]).replace(" ", "-").replace("/", ":")

    def is_finite(self) -> bool:
        """Whether all numbers are finite, apart from losses along lines and planes, which may overflow."""
        return super(LandscapeResult, self.changed(lines=[], planes=[])).is_finite()

    def summary(self) -> str:
        return f"{len(self.lines)} lines, {len(self.planes)} planes, loss {self.loss:.4g}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over the points of lines, with t as `x`, and of planes, as dictionaries."""
        of = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        for line in self.lines:
            for x, loss, prediction in zip(line.t, line.loss, line.prediction, strict=True):
                yield {**of, "along": line.along, "x": x, "y": None, "loss": loss, "prediction": prediction}
        for plane in self.planes:
            for y, losses, predictions in zip(plane.y, plane.loss, plane.prediction, strict=True):
                for x, loss, prediction in zip(plane.x, losses, predictions, strict=True):
                    at = {"along": ",".join(plane.along), "x": x, "y": y}
                    yield {**of, **at, "loss": loss, "prediction": prediction}
