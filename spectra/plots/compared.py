"""The figures of `spectra compare`, drawn from its saved record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure

from spectra.plots.comparison import comparison_figure
from spectra.plots.examples import held_out_figure, subsample_figure
from spectra.plots.names import settable
from spectra.plots.style import PAGE
from spectra.records.compare import CompareResult, Pair, on_held_out_data
from spectra.records.entry import Estimate
from spectra.records.record import Record


def compare_figures(record: Record, width: float = PAGE) -> dict[str, Figure]:
    """The figures of a record by the names of their files, `width` inches wide; without finite numbers there is none.

    Raises AttributeError or ValueError where the record is not complete.
    """
    own = [entry for entry in record.results if not entry.held_out]
    names = [entry.curvature for entry in own]
    again = {name: comparison(record, two) for name in names if len(two := both(record, name)) == 2}
    figures = {
        "compare": comparison_figure(comparison(record, own), title_of(record), width),
        "compare-held-out": held_out_figure(again, width),
        "compare-subsample": subsample_figure(record.subsample or [], width),
    }
    return {name: figure for name, figure in figures.items() if figure}


def title_of(record: Record) -> str | None:
    """The title of a figure of preconditioned matrices; None for matrices as they are named."""
    found = record.problem.get("precondition")
    return f"preconditioned by {settable(found.optimizer or found.spec)}" if found else None


def both(record: Record, name: str) -> list[CompareResult]:
    """The entries of a matrix on the data and on held-out data."""
    return [entry for entry in record.results if entry.curvature in (name, on_held_out_data(name))]


def comparison(record: Record, entries: Sequence[CompareResult]) -> SimpleNamespace:
    """The part that figures read of a `comparison.comparison.Comparison`, made from a record of these matrices."""
    names = [entry.curvature for entry in entries]
    return SimpleNamespace(
        k=int(record.problem.option("k")),
        dimension=record.problem.parameters,
        summaries={entry.curvature: matrix_summary(entry) for entry in entries},
        pairs=[pair(found) for found in record.pairs or [] if found.first in names and found.second in names],
    )


def matrix_summary(entry: CompareResult) -> SimpleNamespace:
    """The part that figures read of a `comparison.matrix_summary.MatrixSummary`, made from a record."""
    values, residuals = torch.from_numpy(entry.values), torch.from_numpy(entry.residuals)
    if values.shape != residuals.shape:
        raise ValueError(f"{len(values)} eigenvalues, {len(residuals)} residuals")
    return SimpleNamespace(eigenpairs=SimpleNamespace(values=values, residuals=residuals), measure=entry.measure())


def pair(found: Pair) -> SimpleNamespace:
    """The part that figures read of a `comparison.pairs.Pair`, made from a record."""
    return SimpleNamespace(
        first=found.first,
        second=found.second,
        distance=estimate(found.distance),
        scaled_distance=estimate(found.scaled_distance),
        agreements=found.overlaps,
        first_by_second=found.first_by_second,
    )


def estimate(found: Estimate) -> SimpleNamespace:
    """An estimate with nan for an error that is not known."""
    error = found.standard_error
    return SimpleNamespace(value=found.value, standard_error=math.nan if error is None else error)
