"""The loss along lines and in planes of parameter space, beside what slope and curvature at the point predict.

    L(theta + t d)  =  L + t g'd + t^2 d'Ad / 2  +  departure

Coordinates are explicit: t multiplies a direction of known norm. With the Hessian for A the departure is of third
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.curvature.displacement import losses, square
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.evaluation import mean_loss
from spectra.curvature.matrices import definition
from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.operator import SymmetricOperator
from spectra.problem.problem import Problem
from spectra.surfaces.directions import EIGENVECTOR, Direction
from spectra.surfaces.quadratic import Quadratic, Range, quadratic, range_of_validity
from spectra.surfaces.spread import Spread, per_example, spread

FLOOR = 1e-3  # nats: of a loss smaller than that, the default radius is that of this one
ON_A_LINE, ON_A_SIDE = 41, 25  # points
RISE = 4.0  # losses that the quadratic term comes to at the default radius
Step = Callable[[Callable[[], Any]], Any]  # how a part of the work is done: at once, or taken from a run cut off


@dataclass(frozen=True)
class Point:
    """The point theta around which the loss is looked at, its loss and gradient with weight decay included."""

    loss: float
    gradient: Tensor  # (n,), whole
    norm: float  # |theta|

    @classmethod
    def of(cls, problem: Problem) -> Point:
        """The point where a problem's parameters are now."""
        theta, shift = problem.vector([p.detach() for p in problem.leaves]), problem.weight_decay
        theta = theta.to(device_of_vectors(theta.device))
        loss, size = mean_loss(problem) + shift * square(problem) / 2, square(problem) ** 0.5
        return cls(loss, mean_gradient(problem) + shift * theta, size)


@dataclass(frozen=True)
class Line:
    """Losses at theta + t d."""

    t: np.ndarray  # (points,), 0 in the middle
    loss: np.ndarray  # (points,), nan where it is not finite
    prediction: np.ndarray
    holds: Range

    @property
    def departure(self) -> np.ndarray:
        """The loss less its prediction, at each point."""
        return self.loss - self.prediction


@dataclass(frozen=True)
class Plane:
    """Losses at theta + x d + y e."""

    x: np.ndarray  # (points,)
    y: np.ndarray  # (points,)
    loss: np.ndarray  # (y, x)
    prediction: np.ndarray  # (y, x)
    cosine: float  # between d and e


@dataclass(frozen=True)
class Landscape:
    """The directions of one matrix by name, what is predicted along all of them, and what was found."""

    point: Point
    directions: dict[str, Direction]
    model: Quadratic  # in the order of `used`
    used: list[str]  # directions that are finite
    lines: dict[str, Line]
    planes: dict[tuple[str, str], Plane]
    spread: dict[str, tuple[Spread, Spread]]  # of curvature and of slope over the examples
    without: str  # why there is no spread
    evaluations: int  # forward passes over the data
    converged: bool


@dataclass(frozen=True)
class Grid:
    """The coordinates that were asked for; None stands for the defaults."""

    radius: float | None
    points: int | None

    def axis(self, direction: Direction, curvature: float, point: Point, points: int) -> np.ndarray:
        """The coordinates (points,) from -radius to radius, 0.0 in the middle."""
        radius = default_radius(direction, curvature, point) if self.radius is None else self.radius
        half = (self.points or points) // 2
        return radius * np.arange(-half, half + 1) / half


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
) -> Landscape:
    """Lines and planes `along` the directions named, beside what the matrix `name`, the operator, predicts there.

    One product for each direction; `watch` is called before each pass over the data. Lines and planes of directions
    that are not there, or not finite, are left out. Raises SpectraError where the model fails.
    """
    used = [key for key, d in directions.items() if d.vector.isfinite().all()]
    vectors = [directions[key].vector for key in used]
    model = quadratic(operator, point.loss, point.gradient, vectors)
    lines, planes = {}, {}
    for names in along:
        if not set(names) <= set(used):
            continue
        places = [used.index(key) for key in names]
        those, sides = [vectors[i] for i in places], model.along(*places)
        points = ON_A_LINE if len(names) == 1 else ON_A_SIDE
        axes = [
            grid.axis(directions[key], curvature, point, points)
            for key, curvature in zip(names, np.diag(sides.curvatures), strict=True)
        ]
        if len(names) == 1:
            lines[names[0]] = line(problem, those[0], axes[0], sides, step, watch)
        else:
            planes[names] = plane(problem, those, axes[0], axes[1], sides, step, watch)
    spreads, without = spread_along(problem, name, used, vectors, step)
    evaluations = sum(found.loss.size for found in (*lines.values(), *planes.values()))
    found = {"lines": lines, "planes": planes, "spread": spreads, "without": without, "evaluations": evaluations}
    return Landscape(point, directions, model, used, converged=len(lines) + len(planes) == len(along), **found)


def spread_along(
    problem: Problem, name: str, used: Sequence[str], vectors: Sequence[Tensor], step: Step
) -> tuple[dict[str, tuple[Spread, Spread]], str]:
    """Curvature and slope over the examples by direction; where there are none, why."""
    if not used:
        return {}, ""
    if definition(name).depends_on_batches:
        return {}, f"{name} is made of batches, so single examples have no curvature"
    curvatures, slopes, without = step(lambda: values_along(problem, name, vectors))
    both = zip(used, curvatures, slopes, strict=True) if not without else ()
    return {key: (spread(np.array(bend)), spread(np.array(slope))) for key, bend, slope in both}, without


def values_along(problem: Problem, name: str, vectors: Sequence[Tensor]) -> tuple[list, list, str]:
    """Curvatures and slopes of the examples, rows by direction; or why there are none."""
    try:
        curvatures, slopes = per_example(problem, name, vectors)
    except SpectraError as error:
        return [], [], f"no curvature of single examples, which takes third derivatives: {error}"
    if not np.isfinite([curvatures, slopes]).all():
        return [], [], "the curvature of some single example is not finite"
    return curvatures.tolist(), slopes.tolist(), ""


def line(problem: Problem, d: Tensor, t: np.ndarray, model: Quadratic, step: Step, watch: Callable[[], None]) -> Line:
    """A forward pass over the data for each t; `model` in the one coordinate."""
    coordinates = t[:, None]
    loss = np.array(step(lambda: losses(problem, d[None], coordinates, watch)))
    prediction = model(coordinates)
    return Line(t, loss, prediction, range_of_validity(t, loss - prediction, model.bend(coordinates)))


def plane(
    problem: Problem,
    directions: Sequence[Tensor],
    x: np.ndarray,
    y: np.ndarray,
    model: Quadratic,
    step: Step,
    watch: Callable[[], None],
) -> Plane:
    """A forward pass over the data for each (x, y), a step for each row; `model` in both coordinates."""
    both = torch.stack(list(directions))
    rows = [np.stack([x, np.full_like(x, value)], axis=1) for value in y]
    loss = np.array([step(lambda row=row: losses(problem, both, row, watch)) for row in rows])
    d, e = both.double()
    cosine = (d @ e / (d.norm() * e.norm())).item()
    return Plane(x, y, loss, np.stack([model(row) for row in rows]), cosine)


def default_radius(direction: Direction, curvature: float, point: Point) -> float:
    """The radius where the quadratic term is RISE times the loss (or FLOOR), at most |theta|; 1 along random ones.

    So the picture is the same whatever the loss is scaled by and the parameters are called.
    """
    if direction.kind != EIGENVECTOR:
        return 1.0
    furthest = point.norm or 1.0
    height = RISE * max(point.loss, FLOOR)
    return min((2 * height / abs(curvature)) ** 0.5, furthest) if curvature else furthest
