"""Evaluate the loss along lines and in planes of parameter space, and compare it with its quadratic model.

    L(theta + t d)  =  L + t g'd + t^2 d'Ad / 2  +  departure

The coordinate t multiplies a direction of known norm. If A is the Hessian, the departure is of third order.

The direction to another checkpoint may change buffers too, such as running statistics of BatchNorm. The quadratic model
does not include them, so it is left out there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spectra.curvature.checks.loss_checks import why_no_examples
from spectra.curvature.displacement import displaced, losses
from spectra.curvature.matrices import definition
from spectra.directions.other_checkpoint import Statistics, tensors_of
from spectra.directions.point import Point
from spectra.directions.spread import Spread, per_example, spread
from spectra.directions.training import CHECKPOINT, UPDATE
from spectra.errors import SpectraError
from spectra.operator import SymmetricOperator
from spectra.problem.problem import Problem
from spectra.surfaces.barrier import Barrier, barrier
from spectra.surfaces.directions import COMPONENT, EIGENVECTOR, TRAINED, Direction
from spectra.surfaces.example_losses import example_losses
from spectra.surfaces.plane import Plane, Trajectory, frame, marked, side
from spectra.surfaces.quadratic import Quadratic, Range, quadratic, range_of_validity
from spectra.vectors import dot, norm

FLOOR = 1e-3  # nats: the smallest loss that determines a default radius
ON_A_LINE, ON_A_SIDE = 41, 25  # points
RISE = 4.0  # times the loss: the quadratic term at the default radius
BEYOND = 1 / 6  # of the distance to another checkpoint: how far a line goes on beyond both
BEHIND = 4  # points ahead for each point behind, along directions of training
ROOM = 1.25  # times the critical step of the quadratic model: the length of lines along these directions
PARALLEL = 1e-9  # two directions with a cosine this close to 1 span no plane
FAR = 4.0  # times |theta|: the largest length of such a line
STEPS = 2.0  # steps of the optimizer: the smallest length of its line
Step = Callable[[Callable[[], Any]], Any]  # runs a part of the work, or takes its result from an interrupted run


@dataclass(frozen=True)
class Line:
    """The losses at theta + t d, and the quadratic model."""

    t: np.ndarray  # (points,), with 0, which is in the middle for eigenvectors and random directions
    loss: np.ndarray  # (points,), nan where it is not finite
    prediction: np.ndarray  # (points,), of the quadratic model; nan if buffers change too
    holds: Range | None  # where the quadratic model is valid; None if buffers change too
    barrier: Barrier | None = None  # towards another checkpoint
    more: int = 0  # number of further losses computed

    @property
    def departure(self) -> np.ndarray:
        """The loss minus its prediction, at each point."""
        return self.loss - self.prediction


@dataclass(frozen=True)
class Landscape:
    """The directions of one matrix by name, the quadratic model along them, and the losses on lines and planes."""

    point: Point
    directions: dict[str, Direction]
    model: Quadratic  # in the order of `used`
    used: list[str]  # names of the directions that are finite
    lines: dict[str, Line]
    planes: dict[tuple[str, str], Plane]
    spread: dict[str, tuple[Spread, Spread]]  # of curvature and of slope over the examples
    without: str  # why the spread is unknown
    evaluations: int  # forward passes over the data
    converged: bool


@dataclass(frozen=True)
class Grid:
    """The requested radius and number of points; None: the defaults."""

    radius: float | None
    points: int | None

    def axis(self, direction: Direction, model: Quadratic, point: Point) -> np.ndarray:
        """The coordinates (points,) of a line, with 0.0; `model` is the quadratic model along it."""
        points = self.points or ON_A_LINE
        if direction.kind == CHECKPOINT:
            return between(points, BEYOND if self.radius is None else self.radius)
        behind = max(1, (points - 1) // (BEHIND + 1)) if direction.kind in TRAINED else points // 2
        ahead = points - 1 - behind
        return self.reach(direction, model, point) * np.arange(-behind, ahead + 1) / ahead

    def side(self, direction: Direction, model: Quadratic, point: Point, marks: Sequence[float]) -> np.ndarray:
        """The coordinates (points,) of a side of a plane; by default they cover the coordinates `marks`."""
        points = self.points or ON_A_SIDE
        if self.radius is not None or not (marks or direction.kind in TRAINED):
            return self.reach(direction, model, point) * np.arange(-(points // 2), points // 2 + 1) / (points // 2)
        radius = 0.0 if direction.kind in (CHECKPOINT, COMPONENT) else self.reach(direction, model, point)
        behind = radius / BEHIND if direction.kind in TRAINED else radius
        return side(points, -behind, radius, marks)

    def reach(self, direction: Direction, model: Quadratic, point: Point) -> float:
        """The largest distance from the checkpoint, in units of |d|."""
        if self.radius is not None:
            return self.radius
        return default_radius(direction, float(model.curvatures[0, 0]), point, float(model.slopes[0]))


def between(points: int, beyond: float) -> np.ndarray:
    """Coordinates (points,) from -beyond to 1 + beyond, with 0 and 1, at almost equal distances."""
    outside = min(round((points - 1) * beyond / (1 + 2 * beyond)), (points - 3) // 2)
    inside = np.linspace(0, 1, points - 2 * outside)
    past = beyond * np.arange(1, outside + 1) / max(outside, 1)
    return np.concatenate([0.0 - past[::-1], inside, 1 + past])


class Task(NamedTuple):
    """The settings that all lines and planes share."""

    grid: Grid
    step: Step
    watch: Callable[[], None]  # called before each pass over the data


def landscape(
    problem: Problem,
    operator: SymmetricOperator,
    name: str,
    point: Point,
    directions: dict[str, Direction],
    along: Sequence[tuple[str, ...]],
    grid: Grid,
    step: Step = lambda compute: compute(),
    watch: Callable[[], None] = lambda: None,
    paths: Mapping[tuple[str, ...], Trajectory] | None = None,
) -> Landscape:
    """Evaluate the loss on lines and planes, and its quadratic model with a matrix, by one product for each direction.

    Args:
        problem: the problem, at the current parameters.
        operator: the matrix (n, n).
        name: the name of the matrix in `spectra.MATRICES`.
        point: the loss and the gradient at the current parameters.
        directions: the directions by name.
        along: the names of the direction of each line, or of the two of each plane. Lines and planes with a direction
            that is missing or not finite are left out.
        grid: the coordinates.
        step: runs a part of the work, or takes its result from an interrupted run.
        watch: called before each pass over the data.
        paths: the trajectories of directions that are components.

    Raises:
        SpectraError: the model fails.
    """
    task = Task(grid, step, watch)
    used = [key for key, d in directions.items() if d.vector.isfinite().all()]
    vectors = [directions[key].vector for key in used]
    model = quadratic(operator, point.loss, point.gradient, vectors)
    lines, planes = {}, {}
    for names in along:
        if not set(names) <= set(used):
            continue
        those, sides = [directions[key] for key in names], model.along(*[used.index(key) for key in names])
        if len(names) == 1:
            lines[names[0]] = line(problem, those[0], sides, point, task)
        else:
            planes[names] = plane(problem, those, sides, point, task, (paths or {}).get(names))
    spreads, without = spread_along(problem, name, used, vectors, task.step)
    evaluations = sum(found.loss.size + found.more for found in (*lines.values(), *planes.values()))
    found = {"lines": lines, "planes": planes, "spread": spreads, "without": without, "evaluations": evaluations}
    return Landscape(point, directions, model, used, converged=len(lines) + len(planes) == len(along), **found)


def spread_along(
    problem: Problem, name: str, used: Sequence[str], vectors: Sequence[Tensor], step: Step
) -> tuple[dict[str, tuple[Spread, Spread]], str]:
    """The spread of curvature and slope over the examples by direction, or the reason why it is unknown."""
    if not used:
        return {}, ""
    if definition(name).depends_on_batches:
        return {}, f"{name} is made of batches, so single examples have no curvature"
    curvatures, slopes, without = step(lambda: values_along(problem, name, vectors))
    both = zip(used, curvatures, slopes, strict=True) if not without else ()
    return {key: (spread(np.array(bend)), spread(np.array(slope))) for key, bend, slope in both}, without


def values_along(problem: Problem, name: str, vectors: Sequence[Tensor]) -> tuple[list, list, str]:
    """Curvatures and slopes of the examples, rows by direction, or the reason why they are unknown."""
    why = why_no_examples(problem)
    if problem.processes.totals(float(why is not None))[0]:
        return [], [], f"no curvature of single examples: {'; '.join(why or ())}"
    try:
        curvatures, slopes = per_example(problem, name, vectors)
    except SpectraError as error:
        return [], [], f"no curvature of single examples, which needs third derivatives: {error}"
    if not np.isfinite([curvatures, slopes]).all():
        return [], [], "no curvature of single examples, since one of them is not finite"
    return curvatures.tolist(), slopes.tolist(), ""


class Losses:
    """A function from coordinates along some directions to mean losses; buffers change with the coordinates."""

    def __init__(self, problem: Problem, directions: Sequence[Direction], task: Task):
        self.problem, self.task = problem, task
        self.vectors = torch.stack([d.vector for d in directions])
        self.statistics = Statistics(tensors_of(problem.model), tuple(d.buffers for d in directions))

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """The losses at z (points, k), by one forward pass over the data each, as one part of the work."""
        return np.array(self.task.step(lambda: self.at(z)))

    def at(self, z: np.ndarray) -> list[float]:
        """The losses at z (points, k); nan where one is not finite."""
        if not self.statistics:
            return losses(self.problem, self.vectors, z, self.task.watch)
        found = []
        for one in z:
            with self.statistics.at(one):
                found += losses(self.problem, self.vectors, one[None], self.task.watch)
        return found

    def by_example(self, t: float) -> list[float] | None:
        """The losses of all examples at t along the first direction; None if examples have no losses of their own."""

        def compute() -> list[float] | None:
            self.task.watch()
            shift = torch.as_tensor(t).to(self.vectors) * self.vectors[0]
            with self.statistics.at([t]), displaced(self.problem.leaves, self.problem.tensors(shift)):
                found = example_losses(self.problem)
            return None if found is None else found.tolist()

        return self.task.step(compute)


def line(problem: Problem, d: Direction, model: Quadratic, point: Point, task: Task) -> Line:
    """The losses along d and the quadratic `model` along it; towards another checkpoint also the barrier."""
    t, along = task.grid.axis(d, model, point), Losses(problem, [d], task)
    coordinates = t[:, None]
    loss = along(coordinates)
    if d.buffers:
        prediction, holds = np.full_like(loss, np.nan), None
    else:
        prediction = model(coordinates)
        holds = range_of_validity(t, loss - prediction, model.bend(coordinates))
    if d.kind != CHECKPOINT:
        return Line(t, loss, prediction, holds)
    epsilon = torch.finfo(problem.dtype).eps
    looked = []

    def evaluate(more: Sequence[float]) -> np.ndarray:
        looked.extend(more)
        return along(np.array(more)[:, None])

    found = barrier(t, loss, evaluate, along.by_example, epsilon)
    more = len(looked) + (0 if found.standard_error == 0.0 or not np.isfinite(found.height) else 3)
    return Line(t, loss, prediction, holds, found, more)


def plane(
    problem: Problem,
    directions: Sequence[Direction],
    model: Quadratic,
    point: Point,
    task: Task,
    path: Trajectory | None,
) -> Plane:
    """The losses in the plane of two directions and the quadratic `model` there; each row is a part of the work.

    If a direction is one of training, the second coordinate is made orthogonal to the first.
    """
    along = Losses(problem, directions, task)
    d, e = along.vectors
    cosine = dot(d, e) / (norm(d) * norm(e))
    if not abs(cosine) < 1 - PARALLEL:
        names = ",".join(one.name for one in directions)
        raise SpectraError(f"`along` {names}: the directions are parallel and span no plane; name one, or others")
    place = frame(directions, dot(d, e) / dot(d, d))
    marks = marked(problem, directions, place, path, along, task.watch)
    own = [Quadratic(model.loss, place @ model.slopes, place @ model.curvatures @ place.T).along(i) for i in (0, 1)]
    grid, spots = task.grid, np.array([[mark.x, mark.y] for mark in marks]).reshape(-1, 2)
    x, y = (grid.side(directions[i], own[i], point, list(spots[:, i])) for i in (0, 1))
    rows = [np.stack([x, np.full_like(x, value)], axis=1) @ place for value in y]
    loss = np.array([along(row) for row in rows])
    prediction = np.full_like(loss, np.nan) if along.statistics else np.stack([model(row) for row in rows])
    more = sum(1 for mark in marks if mark.loss is not None) + len(marks)
    return Plane(x, y, loss, prediction, cosine, bool((place != np.eye(2)).any()), marks, path, more)


def default_radius(direction: Direction, curvature: float, point: Point, slope: float = 0.0) -> float:
    """The default length of a line in units of |d|, from the curvature d'Ad and the slope g'd.

    Along eigenvectors it is where the quadratic term is RISE times the loss (or FLOOR), but at most |theta|, so that
    the picture does not depend on the scale of the loss. Along directions of training it is somewhat beyond the step at
    which the quadratic model is back at the loss, or, if it never is, as for eigenvectors. For others it is 1.
    """
    if direction.kind not in (EIGENVECTOR, *TRAINED):
        return 1.0
    furthest = point.norm or 1.0
    if direction.kind in TRAINED:
        furthest /= norm(direction.vector) or 1.0
    height = RISE * max(point.loss, FLOOR)
    radius = (2 * height / abs(curvature)) ** 0.5 if curvature else furthest
    if direction.kind in TRAINED and slope * curvature < 0:
        radius, furthest = ROOM * 2 * abs(slope / curvature), FAR * furthest
    return max(min(radius, furthest), STEPS if direction.kind == UPDATE else 0.0)
