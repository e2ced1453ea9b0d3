"""Tables of 80 columns that summarise a spectrum and the damped matrix, from a density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectra.records.density import DensityResult
from spectra.records.summaries import MarchenkoPastur, PowerLaw, Summaries, Summary
from spectra.tables.results import new_table
from spectra.wording import brief, with_error

RULE = (
    "Effective rank: tr A / λ1. Stable rank: tr A² / λ1². Participation ratio: (tr A)² / tr A². Entropy rank: "
    "exp(entropy). ± is the standard error plus the quadrature error."
)
RANKS = ("effective_rank", "stable_rank", "participation_ratio", "entropy_rank")
NAMES = {name: name.replace("_", " ") for name in (*RANKS, "outlier_share", "power_law")} | {
    "marchenko_pastur": "Marchenko-Pastur"
}


def summary_table(results: Sequence[DensityResult]) -> list[Any]:
    """The table of ranks, with lines on the outliers' share of the trace, on fitted laws, and on what is left out."""
    known = [(r.curvature, r.summaries) for r in results if r.summaries]
    if not known:
        return []
    table = new_table("", "effective rank", "stable rank", "participation", "entropy rank")
    for name, found in known:
        table.add_row(name, *[cell(getattr(found, rank)) for rank in RANKS])
    lines = [f"{name}: {line}" for name, found in known for line in [*shares(found), *laws(found), *reasons(found)]]
    return ["", RULE, table, *lines]


def cell(number: Summary | None, scale: float = 1) -> str:
    """A number with the sum of its errors, or with ? if one of them is unknown."""
    if number is None:
        return "-"
    if number.quadrature_error is None:
        return f"{scale * number.value:.2g} ± ?"
    return brief(scale * number.value, scale * (number.standard_error + number.quadrature_error))


def shares(found: Summaries) -> list[str]:
    """The line on the outliers' share of the trace, if there are any."""
    share = found.outlier_share
    return [f"outliers above the bulk make up {cell(share, 100)} % of the trace"] if share and share.value else []


def laws(found: Summaries) -> list[str]:
    """The lines on the fits of a power law to the leading eigenvalues, and of the Marchenko-Pastur law to the bulk."""
    lines = [power_law_line(found.power_law)] if found.power_law else []
    return [*lines, marchenko_pastur_line(found.marchenko_pastur)] if found.marchenko_pastur else lines


def power_law_line(law: PowerLaw) -> str:
    """The line on the fit of a power law, and its tests."""
    others = [one.name for one in law.alternatives if one.p_value >= 0.1]
    verdict = (
        "rejected" if law.rejected else f"not distinguishable from {' or '.join(others)}" if others else "fits best"
    )
    fitted = f"exponent {brief(law.exponent, law.standard_error)} for eigenvalues from {law.smallest:.2g} up"
    numbers = f"{law.count} of {law.of} leading eigenvalues, KS {law.distance:.2f}, p = {law.p_value:.2f}"
    return f"power law {verdict}: {fitted} ({numbers})"


def marchenko_pastur_line(law: MarchenkoPastur) -> str:
    """The line on whether the Marchenko-Pastur law fits the bulk, and on its edge if so."""
    distance = f"distance {law.distance:.2f}, resolution {law.resolution:.2f}"
    if law.fits is None:
        return f"Marchenko-Pastur not tested: too few probes or steps ({distance})"
    if not law.fits:
        return f"Marchenko-Pastur does not fit the bulk ({distance})"
    bulk = f"the bulk of {law.count:,} beside {law.zeros:,} at zero" if law.zeros else "the bulk"
    return f"Marchenko-Pastur fits {bulk}: edge {cell(law.edge)}, ratio {cell(law.ratio)} ({distance})"


def reasons(found: Summaries) -> list[str]:
    """The lines on numbers that are left out, one for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, words in NAMES.items():
        if reason := found.left_out.get(name):
            by_reason.setdefault(reason, []).append(words)
    return [f"{', '.join(names)} left out: {reason}" for reason, names in by_reason.items()]


def damped_table(results: Sequence[DensityResult]) -> list[Any]:
    """The tables of effective dimension, condition number and log-determinant, if a damping was given."""
    damped = [r for r in results if r.damping is not None]
    if not damped:
        return []
    table = new_table("", "effective dimension", "quadrature error", "condition number")
    determinants = new_table("", "log-determinant", "quadrature error")
    for r in damped:
        table.add_row(r.curvature, *damped_cells(r))
        if r.summaries and (found := r.summaries.log_determinant):
            value = with_error(found.value, found.standard_error)
            determinants.add_row(r.curvature, value, quadrature_cell(found.quadrature_error))
    lines = [
        f"{r.curvature}: not positive definite with this damping; raise --damping"
        for r in damped
        if r.effective_dimension is None
    ]
    lines += [
        f"{r.curvature}: log-determinant left out: {reason}"
        for r in damped
        if r.effective_dimension and r.summaries and (reason := r.summaries.left_out.get("log_determinant"))
    ]
    tables = [table, determinants] if determinants.rows else [table]
    return ["", f"For A + {damped[0].damping:g} I; ± is the standard error.", *tables, *lines]


def damped_cells(r: DensityResult) -> list[str]:
    """The cells on effective dimension and condition number."""
    found, condition = r.effective_dimension, r.condition
    if found is None:
        return ["-"] * 3
    error = found.standard_error
    value = f"{found.value:.4g}" if error is None else with_error(found.value, error)
    return [value, quadrature_cell(found.quadrature_error), f"{condition:.3g}"]


def quadrature_cell(error: float | None) -> str:
    """The error of a quadrature; `unknown` for None."""
    return "unknown" if error is None else f"{error:.1g}"
