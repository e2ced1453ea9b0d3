"""A table of 80 columns with the main numbers of a sweep over its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectra.quoting import quoted
from spectra.records.density import Share
from spectra.records.precondition import number
from spectra.records.sweep import Evolution, Row
from spectra.tables.results import new_table, percentage, rendered
from spectra.wording import with_error

CERTAIN = 5e-4  # relative error below which three digits are shown without an error
MOST_LINES = 12  # rows of a table
MEANINGS = {  # of columns, by the quantities in them
    "eigenvalue": "λ1 ± residual",
    "trace": "trace ± standard error",
    "negative_share": "% < 0: share of negative eigenvalues, with 95 % interval",
    "overlap_next": "overlap: of the leading eigenspaces of a checkpoint and the next one",
}


def evolution_text(evolution: Evolution) -> str:
    """The evolution of a sweep as text of 80 columns."""
    return rendered(*evolution_parts(evolution))


def evolution_parts(evolution: Evolution) -> list[Any]:
    """A table for each matrix and seed, with a row for each checkpoint, or for the first and last of many."""
    known = {row.quantity for row in evolution.rows}
    meanings = [text for quantity, text in MEANINGS.items() if quantity in known]
    parts: list[Any] = ["; ".join(meanings), ""] if meanings else []
    seeds = len({seed for _, seed in evolution.series()}) > 1
    for curvature, seed in evolution.series():
        name = f"{quoted(curvature)}, seed {seed}" if seeds else quoted(curvature)
        parts += [f"{name}{threshold_text(evolution, curvature, seed)}", short_table(evolution, curvature, seed)]
    return parts


def threshold_text(evolution: Evolution, curvature: str, seed: int) -> str:
    """The end of a heading: the preconditioner and the threshold of stability, or the range of thresholds."""
    if not evolution.precondition:
        return ""
    rows = evolution.select("threshold", curvature=curvature, seed=seed)
    values = [row.value for row in rows if row.value is not None]
    ends = " to ".join(dict.fromkeys(map(number, (min(values), max(values))))) if values else "none"
    return f", preconditioned by {', '.join(map(quoted, evolution.precondition))}; threshold of stability: {ends}"


def short_table(evolution: Evolution, curvature: str, seed: int):
    """The table of the main numbers of one matrix over the checkpoints."""
    cells = {
        "λ1": one_of(evolution.select("eigenvalue", curvature=curvature, seed=seed, index=1)),
        "λ1 / threshold": one_of(evolution.select("over_threshold", curvature=curvature, seed=seed, index=1)),
        "trace": one_of(evolution.select("trace", curvature=curvature, seed=seed)),
        "% < 0": one_of(evolution.select("negative_share", curvature=curvature, seed=seed)),
        "overlap": one_of(evolution.select("overlap_next", curvature=curvature, seed=seed)),
    }
    cells = {name: rows for name, rows in cells.items() if rows}
    if k := next((row.index for row in cells.get("overlap", {}).values()), None):
        cells[f"overlap, k = {k}"] = cells.pop("overlap")
    loss = one_of(evolution.select("loss", seed=seed))
    names = list(dict.fromkeys(row.checkpoint for row in evolution.rows if row.curvature == curvature))
    table = new_table(evolution.axis, "loss", *cells)
    for name in abridged(names):
        if name is None:
            table.add_row("...")
            continue
        step = next(row.step for row in evolution.rows if row.checkpoint == name)
        table.add_row(str(step), *[cell(rows.get(name)) for rows in (loss, *cells.values())])
    return table


def one_of(rows: Sequence[Row]) -> dict[str, Row]:
    """One row for each checkpoint."""
    return {row.checkpoint: row for row in rows}


def abridged(names: Sequence[str]) -> list[str | None]:
    """The names, with None in place of the middle of a long list."""
    half = MOST_LINES // 2
    return [*names] if len(names) <= MOST_LINES else [*names[:half], None, *names[-half:]]


def cell(row: Row | None) -> str:
    """The value of a row with its error or its interval."""
    if row is None or row.value is None:
        return ""
    if row.quantity == "negative_share":
        return percentage(Share.known(value=row.value, lower=row.lower, upper=row.upper))
    if row.quantity == "overlap_next":
        return f"{row.value:.3f}" if row.converged else f"{row.value:.3f} (no gap)"
    if row.quantity == "over_threshold" and row.error is not None and row.error < CERTAIN * abs(row.value):
        return f"{row.value:.3g}"
    return f"{row.value:.4g}" if row.error is None else with_error(row.value, row.error, most=6)
