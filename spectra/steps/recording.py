"""Convert the results of `spectra step` to their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectra.curvature.matrices import definition
from spectra.directions.training import RATE, Direction
from spectra.records.entry import cost_of
from spectra.records.step import LayerShare, StepAlong, StepDirection, StepFound, StepPoint, StepResult
from spectra.steps.curvatures import DirectionalCurvature
from spectra.steps.line_search import Line, Step
from spectra.vectors import norm


def point_record(
    point: Any,
    directions: Sequence[Direction],
    slopes: Any,
    lines: Mapping[str, Line],
    left_out: Sequence[str],
    noise: Mapping[str, Any],
) -> StepPoint:
    """The record of the checkpoint and of the loss along its directions; `noise` has the fields on noise and balls."""
    return StepPoint(
        loss=point.loss,
        gradient_norm=norm(point.gradient),
        parameter_norm=point.norm,
        directions=[
            direction_record(d, slope, error, lines[d.name], norm(point.gradient))
            for d, slope, error in zip(directions, *slopes, strict=True)
        ],
        left_out=list(left_out),
        evaluations=sum(line.evaluations for line in lines.values()),
        **noise,
    )


def direction_record(d: Direction, slope: float, error: float | None, line: Line, steepest: float) -> StepDirection:
    """The record of one direction; `steepest` is |g|."""
    (one,) = np.flatnonzero(line.t == 1.0)[:1] if d.unit != RATE and 1.0 in line.t else (None,)
    return StepDirection(
        name=d.name,
        kind=d.kind,
        unit=d.unit,
        norm=d.norm,
        slope=slope,
        slope_error=error,
        cosine=-slope / (d.norm * steepest) if steepest else None,
        best=found(line.best),
        critical=found(line.critical),
        loss_at_one=None if one is None else float(line.loss[one]),
        rounding=line.rounding,
        searched=line.furthest,
        evaluations=line.evaluations,
        t=line.t,
        loss=line.loss,
    )


def found(step: Step) -> StepFound:
    """The record of a step."""
    return StepFound(step=step.t, error=step.error, loss=step.loss, reason=step.reason)


def step_result(measurement: Any, directions: Sequence[Direction], slopes: Any, n: int) -> StepResult:
    """The record of one measurement whose answer is a `steps.run.MatrixResult`."""
    result, pairs = measurement.answer, measurement.answer.pairs
    of_the_loss = definition(measurement.curvature).loss_power == 1
    along = {d.name: (d, slope, error) for d, slope, error in zip(directions, *slopes, strict=True)}
    return StepResult(
        of_the_loss=of_the_loss,
        k=result.k,
        parameters=n,
        eigenvalues=np.zeros(0) if pairs is None else pairs.values.numpy(),
        residuals=np.zeros(0) if pairs is None else pairs.residuals.numpy(),
        complete=None if pairs is None else pairs.complete,
        source=result.source,
        along=[
            along_record(*along[name], curvature, result.shares.get(name), of_the_loss)
            for name, curvature in result.curvatures.items()
        ],
        **result.noise,
        **cost_of(measurement),
    )


def along_record(
    d: Direction, slope: float, error: float | None, c: DirectionalCurvature, shares: Any, of_the_loss: bool
) -> StepAlong:
    """The record of one direction for one matrix."""
    best, best_error = quadratic_step(slope, error, c) if of_the_loss else (None, None)
    none = np.zeros(0)
    return StepAlong(
        direction=d.name,
        curvature=c.value,
        curvature_error=c.error,
        sharpness=c.value / d.norm**2,
        sharpness_error=c.error / d.norm**2,
        best_step=best,
        best_step_error=best_error,
        within=c.within,
        between=c.between,
        split_error=c.split_error,
        layers=[LayerShare(**vars(layer)) for layer in c.layers],
        share=shares.share if shares else none,
        share_lower=shares.lower if shares else none,
        share_upper=shares.upper if shares else none,
    )


def quadratic_step(slope: float, error: float | None, c: DirectionalCurvature) -> tuple[float | None, float | None]:
    """The minimum -g'd / d'Ad of the quadratic model with its error; None if it is not certain to be at t > 0."""
    if not (slope < 0 and c.value > c.error):
        return None, None
    best = -slope / c.value
    return best, None if error is None else best * (error / -slope + c.error / (c.value - c.error))
