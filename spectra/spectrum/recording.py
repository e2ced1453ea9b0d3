"""Conversion of spectral measures to records: nodes and weights, and the numbers computed from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spectra.krylov.results import SpectralMeasure
from spectra.records.density import METHOD, DensityResult, EffectiveDimension, End, Outliers, Share, measure_fields
from spectra.records.entry import cost_of
from spectra.records.files import finite
from spectra.spectrum.curves import NOISE, cumulative
from spectra.spectrum.outliers import outliers
from spectra.spectrum.summaries import condition_number, effective_dimension
from spectra.spectrum.summarise import summaries_of


def density_result(
    measurement: Any, figure: Path | None, classes: int | None, damping: float | None, of_one: bool = True
) -> DensityResult:
    """Make the record of a measurement that gave a spectral measure.

    Args:
        measurement: the measurement of one matrix.
        figure: the file with the figure, if there is one.
        classes: the number of classes of the loss, to compare with the number of outliers.
        damping: the damping for the numbers of A + damping I; None: none.
        of_one: whether the spectrum is of one matrix and is summarised, not of the matrices of single examples.
    """
    measure, semidefinite = measurement.answer, measurement.semidefinite
    summarised = of_one and bool(measure.nodes.isfinite().all())
    return DensityResult(
        method=METHOD,
        **measure_fields(measure),
        negative=negative_share(measure, semidefinite),
        figure=str(figure) if figure else None,
        outliers=outliers_of(measure, classes),
        summaries=summaries_of(measure, damping, semidefinite) if summarised else None,
        **damped(measure, damping, semidefinite),
        **cost_of(measurement),
    )


def negative_share(measure: SpectralMeasure, semidefinite: bool) -> Share | None:
    """The share of eigenvalues below zero by more than rounding, with 95 % limits; zero for a semidefinite matrix."""
    if not measure.nodes.isfinite().all():
        return None
    if semidefinite:
        return Share(value=0.0, lower=0.0, upper=0.0)
    # Twice the rounding, since the limits of an exactly known measure leave that much room on either side.
    rounding = 2 * NOISE * measure.nodes.abs().max().item()
    band = cumulative(measure, np.nextafter([-rounding], -np.inf))
    return Share(value=band.value.item(), lower=band.lower.item(), upper=band.upper.item())


def outliers_of(measure: SpectralMeasure | None, classes: int | None) -> Outliers | None:
    """The outliers above and below the bulk, and the number of classes; None without finite nodes."""
    if measure is None or not measure.nodes.isfinite().all():
        return None
    found = outliers(measure)
    above, below = (End(**finite(vars(end))) for end in (found.above, found.below))
    return Outliers(classes=classes, above=above, below=below)


def damped(measure: SpectralMeasure, damping: float | None, semidefinite: bool) -> dict[str, Any]:
    """The fields for A + damping I, which are None unless that is positive definite."""
    if damping is None or not measure.nodes.isfinite().all():
        return {"damping": damping}
    dimension = effective_dimension(measure, damping, semidefinite)
    recorded = dimension and EffectiveDimension(**finite(dimension._asdict()))
    condition = condition_number(measure, damping, semidefinite)
    return {"damping": damping, "effective_dimension": recorded, "condition": condition}
