"""Columns and rows of tables for matrices by the inputs, one for each example: means and spread over examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spectra.records.eig import EigResult
from spectra.records.trace import TraceResult
from spectra.wording import with_error

EIGENVALUES = "eigenvalue: mean ± standard deviation over examples; residual: the largest |Au - λu| of an example"
TRACES = "trace: mean over examples; spread: their standard deviation over examples; each ± its standard error"


def mean_columns(results: Sequence[EigResult]) -> list[str]:
    """The names of the columns."""
    return [name for r in results for name in (r.curvature, "residual")]


def mean_rows(results: Sequence[EigResult]) -> Iterator[list[str]]:
    """One row for each eigenvalue: the mean of each matrix with its spread, and its largest residual."""
    for i in range(max(len(r.values) for r in results)):
        yield [cell for r in results for cell in (mean_cell(r, i), f"{r.residuals[i]:.0e}")]


def mean_cell(result: EigResult, i: int) -> str:
    """The mean of eigenvalue i over examples ± its standard deviation."""
    assert result.spread is not None
    return with_error(result.values[i], max(result.spread[i], result.residuals[i]))


def trace_cells(result: TraceResult) -> list[str]:
    """The mean of the traces and their standard deviation, each with its standard error."""
    assert result.spread is not None
    error = result.spread_error
    return [with_error(result.trace, result.standard_error), with_error(result.spread, 0.0 if error is None else error)]


def of_either_sign(result: EigResult) -> bool:
    """Whether the i-th eigenvalue, for some i, is clearly positive for one example and negative for another."""
    values, residuals = result.values_by_example, result.residuals_by_example
    if values is None or residuals is None:
        return False
    clear = np.abs(values) > residuals
    return bool((((values > 0) & clear).any(axis=0) & ((values < 0) & clear).any(axis=0)).any())
