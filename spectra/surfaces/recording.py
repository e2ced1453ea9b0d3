"""Convert a landscape to its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spectra.directions.spread import QUANTILES
from spectra.records.entry import cost_of
from spectra.records.landscape import (
    Barrier,
    Direction,
    LandscapeResult,
    Line,
    Mark,
    Plane,
    Spread,
    SpreadAlong,
    TrajectoryRecord,
    ValidityRange,
)
from spectra.surfaces.landscape import Landscape
from spectra.surfaces.quadratic import SHARE
from spectra.vectors import norm


def landscape_results(found: Sequence[Any]) -> list[LandscapeResult]:
    """The records of measurements with `Landscape` as answers."""
    return [landscape_result(measurement) for measurement in found]


def landscape_result(measurement: Any) -> LandscapeResult:
    """The record of one measurement with a `Landscape` as its answer."""
    found: Landscape = measurement.answer
    return LandscapeResult(
        method="landscape",
        loss=found.point.loss,
        gradient_norm=norm(found.point.gradient),
        parameter_norm=found.point.norm,
        directions=list(directions(found)),
        lines=[line_record(name, line) for name, line in found.lines.items()],
        planes=[plane_record(names, plane) for names, plane in found.planes.items()],
        spread=[spread_record(name, *both) for name, both in found.spread.items()] or None,
        without_spread=found.without or None,
        evaluations=found.evaluations,
        **cost_of(measurement),
    )


def directions(found: Landscape) -> Iterator[Direction]:
    """The records of directions with slope g'd and curvature d'Ad, which is within `residual` of the eigenvalue."""
    places = {name: i for i, name in enumerate(found.used)}
    for name, d in found.directions.items():
        i = places.get(name)
        yield Direction(
            name=name,
            kind=d.kind,
            source=d.source,
            eigenvalue=d.eigenvalue,
            residual=d.residual,
            norm=norm(d.vector),
            slope=None if i is None else float(found.model.slopes[i]),
            curvature=None if i is None else float(found.model.curvatures[i, i]),
        )


def line_record(name: str, line: Any) -> Line:
    """The record of a line along this direction."""
    numbers = {key: getattr(line, key) for key in ("t", "loss", "prediction", "departure")}
    holds = None if line.holds is None else ValidityRange(share=SHARE, **line.holds._asdict())
    barrier = None if line.barrier is None else Barrier(**vars(line.barrier), present=line.barrier.present)
    return Line(along=name, holds=holds, barrier=barrier, **numbers)


def plane_record(names: Sequence[str], plane: Any) -> Plane:
    """The record of a plane along these directions."""
    numbers = {key: getattr(plane, key) for key in ("x", "y", "loss", "prediction", "cosine", "orthogonal")}
    marks = [Mark(**vars(mark)) for mark in plane.marks] or None
    path = plane.path and TrajectoryRecord(
        glob=plane.path.glob, counts=plane.path.counts, shares=plane.path.shares.tolist()
    )
    return Plane(along=list(names), marks=marks, trajectory=path, **numbers)


def spread_record(name: str, curvature: Any, slope: Any) -> SpreadAlong:
    """The record of the spread of curvature and slope over examples, along this direction."""
    spreads = [Spread(**vars(one), signal_to_noise=one.signal_to_noise) for one in (curvature, slope)]
    return SpreadAlong(along=name, quantiles_at=list(QUANTILES), curvature=spreads[0], slope=spreads[1])
