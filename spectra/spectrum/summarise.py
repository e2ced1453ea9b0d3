"""All summaries of a spectrum, computed from a spectral measure or a saved result, as in the record of `density`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from spectra.arguments import wrong
from spectra.errors import ArgumentError
from spectra.krylov.results import SpectralMeasure
from spectra.problem.input_problem import INPUTS
from spectra.records import summaries as records
from spectra.records.density import DensityResult
from spectra.records.files import finite
from spectra.records.record import Record
from spectra.records.summaries import Summaries
from spectra.spectrum import ranks
from spectra.spectrum.log_determinant import log_determinant, refuse_negative
from spectra.spectrum.marchenko_pastur import MarchenkoPastur, marchenko_pastur
from spectra.spectrum.outliers import leading_eigenvalues
from spectra.spectrum.power_law import PowerLaw, power_law
from spectra.spectrum.ranks import Summary

RANKS = ("effective_rank", "stable_rank", "participation_ratio", "entropy", "entropy_rank", "outlier_share")


def summarise(
    result: Record | DensityResult | SpectralMeasure, damping: float | None = None, *, semidefinite: bool | None = None
) -> Summaries:
    """Compute ranks, entropy, power law and Marchenko-Pastur edge of a spectral density, without further products.

    A number is None if it is undefined for the spectrum, or needs more nodes; `left_out` holds the reason.

    Args:
        result: what `spectra.density` returns; a saved record of it for one matrix, as `spectra.load_result` returns
            it; or a `SpectralMeasure`.
        damping: the number added to each eigenvalue for the log-determinant; None: no log-determinant.
        semidefinite: whether the matrix has no negative eigenvalue by its definition. None: as recorded in the result,
            and False for a measure.

    Returns:
        The summaries, each with its standard error over probes and the error of the quadrature.

    Raises:
        SpectraError: the result is of another kind, a node is not finite, or it is far below zero although
            `semidefinite` is True.
    """
    if isinstance(result, Record):
        if len(result.results) != 1:
            count = len(result.results)
            raise ArgumentError(f"`result`: expected one entry, got {count}; give one, such as `record.results[0]`")
        (result,) = result.results
    if isinstance(result, DensityResult):
        negative = vars(result).get("negative")
        semidefinite = bool(negative and not negative.upper) if semidefinite is None else semidefinite
        result = result.measure()
    if not isinstance(result, SpectralMeasure):
        raise wrong("result", type(result), "a result of spectra.density, or a SpectralMeasure")
    if not result.nodes.isfinite().all():
        raise ArgumentError("`result`: a node is not finite, as a product was not; check the matrix")
    if semidefinite:
        refuse_negative(result)
    return summaries_of(result, damping, bool(semidefinite))


def summaries_of(measure: SpectralMeasure, damping: float | None, semidefinite: bool) -> Summaries:
    """Compute the summaries of a measure with finite nodes."""
    left_out: dict[str, str] = {}

    def found(name: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except ArgumentError as error:
            left_out[name] = str(error).partition(": ")[2]
            return None

    numbers = {name: found(name, partial(getattr(ranks, name), measure, semidefinite)) for name in RANKS}
    law = found("power_law", lambda: power_law(leading_eigenvalues(measure)))
    bulk = found("marchenko_pastur", partial(marchenko_pastur, measure, semidefinite))
    determinant = None
    if damping is None:
        left_out["log_determinant"] = "no damping was given"
    else:
        determinant = found("log_determinant", partial(log_determinant, measure, damping, semidefinite=semidefinite))
    return Summaries(
        **{name: number and recorded(number) for name, number in numbers.items()},
        power_law=law and recorded_law(law),
        marchenko_pastur=bulk and recorded_bulk(bulk),
        damping=damping,
        log_determinant=determinant and recorded(Summary(*determinant)),
        left_out=left_out,
    )


def with_summaries(record: Record) -> Record:
    """Add summaries of all matrices to a record of `density`; files of older versions have none."""
    if record.problem.get("wrt") == INPUTS:  # the spectra of single examples
        return record
    return replace(record, results=[summarised(entry) for entry in record.results])


def summarised(entry: DensityResult) -> DensityResult:
    """Add summaries of its nodes and weights to a result, if they are finite."""
    if entry.summaries or not (np.isfinite(entry.nodes).all() and np.isfinite(entry.weights).all()):
        return entry
    return entry.changed(summaries=summarise(entry, entry.damping))


def recorded(number: Summary) -> records.Summary:
    """The record of a number with its errors."""
    return records.Summary(**finite(number._asdict()))


def recorded_law(law: PowerLaw) -> records.PowerLaw:
    """The record of a power law."""
    others = [records.Alternative(**vars(one)) for one in law.alternatives]
    return records.PowerLaw(**vars(law) | {"alternatives": others, "rejected": law.rejected})


def recorded_bulk(bulk: MarchenkoPastur) -> records.MarchenkoPastur:
    """The record of a Marchenko-Pastur fit."""
    return records.MarchenkoPastur(
        fits=bulk.fits,
        variance=recorded(bulk.variance),
        ratio=recorded(bulk.ratio),
        edge=recorded(bulk.edge),
        distance=bulk.distance,
        resolution=bulk.resolution,
        count=bulk.count,
        zeros=bulk.zeros,
    )
