"""Planes of parameter space: their coordinates, and points of interest such as other checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectra.curvature.displacement import displaced_losses
from spectra.directions.other_checkpoint import OtherCheckpoint, set_to, tensors_of
from spectra.directions.training import CHECKPOINT
from spectra.problem.problem import Problem
from spectra.surfaces.directions import COMPONENT, EIGENVECTOR, RANDOM, TO_A_POINT, Direction
from spectra.vectors import norm, sum_pieces

MARGIN = 0.25  # of the extent of points of interest: how far a side goes on beyond them
OBLIQUE = (EIGENVECTOR, RANDOM)  # kinds of directions that are not made orthogonal


@dataclass(frozen=True)
class Mark:
    """A point of interest; (x, y) is its projection to a plane."""

    name: str
    x: float
    y: float
    distance: float  # of the point from the plane
    loss: float | None  # at the point itself, with its own buffers; None if it is the loss in the plane
    loss_in_plane: float  # at (x, y)
    step: float | None = None  # of training


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints in the order of training, with their places in the plane of two components."""

    glob: str
    counts: str  # what the order is by: `training step`, `epoch`, or `checkpoint` for the natural order of names
    names: list[str]
    steps: list[float]
    coordinates: np.ndarray  # (k, 2)
    distances: np.ndarray  # (k,)
    shares: np.ndarray  # (2,) of the squared distances from the checkpoint
    read: Callable[[int], OtherCheckpoint]  # reads the checkpoint with this index


@dataclass(frozen=True)
class Plane:
    """The losses at theta + x d + y e, with d and e the two directions, or e made orthogonal to d."""

    x: np.ndarray  # (points,)
    y: np.ndarray  # (points,)
    loss: np.ndarray  # (y, x)
    prediction: np.ndarray  # (y, x), of the quadratic model; nan if buffers change too
    cosine: float  # between the two directions
    orthogonal: bool  # whether e was made orthogonal to d
    marks: list[Mark]
    path: Trajectory | None = None
    more: int = 0  # number of further losses computed


def frame(directions: Sequence[Direction], share: float) -> np.ndarray:
    """The axes of a plane, as rows (2, 2) of coefficients of the two directions.

    Eigenvectors, random directions and components are used unchanged. With a direction of training, the second is made
    orthogonal to the first, by subtracting `share` times the first. If it leads to a point, that is at y = 1; otherwise
    it keeps its length.
    """
    if all(d.kind in OBLIQUE for d in directions) or all(d.kind == COMPONENT for d in directions):
        return np.eye(2)
    d, e = (one.vector for one in directions)
    left = sum_pieces(lambda d, e: (e.double() - share * d.double()).square().sum(), d, e).sqrt().item()
    scale = 1.0 if directions[1].kind in TO_A_POINT or not left else norm(e) / left
    return np.array([[1.0, 0.0], [-scale * share, scale]])


def marked(
    problem: Problem,
    directions: Sequence[Direction],
    place: np.ndarray,
    path: Trajectory | None,
    losses: Any,
    watch: Callable[[], None],
) -> list[Mark]:
    """The points of interest: those of a trajectory, or those that directions lead to.

    Args:
        problem: the problem, at the current parameters.
        directions: the two directions.
        place: the axes of the plane, see `frame`.
        path: the trajectory of the directions, if they are its components.
        losses: the `landscape.Losses` at coefficients (points, 2) of the two directions.
        watch: called before each pass over the data.
    """
    if path is not None:
        inside = losses(path.coordinates)
        own = losses.task.step(lambda: [loss_at(problem, path.read(i), watch) for i in range(len(path.names))])
        return [
            Mark(name, float(x), float(y), float(path.distances[i]), float(own[i]), float(inside[i]), path.steps[i])
            for i, (name, (x, y)) in enumerate(zip(path.names, path.coordinates, strict=True))
        ]
    ends = [(i, d) for i, d in enumerate(directions) if d.kind in TO_A_POINT]
    if not ends:
        return []
    at = np.eye(2)[[i for i, _ in ends]]
    spots = at @ np.linalg.inv(place)
    inside = losses(at)
    return [
        Mark(d.source if d.kind == CHECKPOINT else d.name, float(x), float(y), 0.0, None, float(loss))
        for (_, d), (x, y), loss in zip(ends, spots, inside, strict=True)
    ]


def loss_at(problem: Problem, there: OtherCheckpoint, watch: Callable[[], None]) -> float:
    """The mean loss at another checkpoint, with all its parameters and buffers, and with weight decay."""
    own = tensors_of(problem.model)
    with set_to(own, there.values) if there.values else nullcontext():
        return displaced_losses(problem, [0 * problem.parameter_vector()], watch)[0]


def side(points: int, start: float, stop: float, marks: Sequence[float]) -> np.ndarray:
    """Coordinates (points,) from start to stop, with 0.0, extended so that 0 and the marks lie well inside."""
    low, high = min([0.0, *marks]), max([0.0, *marks])
    room = MARGIN * (high - low)
    low, high = min(start, low - room), max(stop, high + room)
    if not high > low:
        low, high = -1.0, 1.0
    behind = min(max(round((points - 1) * -low / (high - low)), 1), points - 2)
    step = max(-low / behind, high / (points - 1 - behind))
    return step * np.arange(-behind, points - behind)
