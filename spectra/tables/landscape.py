"""Tables of 80 columns from a record of `spectra landscape`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectra.quoting import readable
from spectra.records.landscape import LandscapeResult, Line, Plane
from spectra.records.record import Record
from spectra.tables.results import cost_cells, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief

MEANING = "holds for t in theta + t d: departure within {:.0f} % of the quadratic term"
SPREAD = "d'A_i d of single examples i; s/n: |mean| over standard deviation"


def landscape_text(record: Record) -> str:
    """The record of `landscape` as text of 80 columns."""
    return rendered(*landscape_parts(readable(record)), *figure_lines(record))


def landscape_parts(record: Record) -> list[Any]:
    """Texts and tables: for each matrix its directions, then how curvature spreads over examples; then the cost."""
    results: list[LandscapeResult] = record.results
    parts = [heading(record.problem), sizes(results[0])]
    parts += [MEANING.format(100 * line.holds.share) for entry in results for line in entry.lines][:1]
    for entry in results:
        parts += [f"\n{entry.curvature}, directions d", direction_table(entry)]
        if entry.spread:
            parts += [f"{entry.curvature}: {SPREAD}", spread_table(entry)]
    parts += [entry.without_spread for entry in results if entry.without_spread]
    parts += [plane_line(entry, plane) for entry in results for plane in entry.planes]
    return [*parts, cost_table(results), *remarks(record)]


def sizes(entry: LandscapeResult) -> str:
    """The line on |theta| and the norm of the gradient."""
    return f"|theta| {cell(entry.parameter_norm)}, gradient norm {cell(entry.gradient_norm)}"


def direction_table(entry: LandscapeResult) -> Any:
    """The table of directions: eigenvalue, norm, slope, curvature, and where the prediction holds."""
    reach = ["holds from", "to"] if entry.lines else []
    table = new_table("", "λ ± residual", "|d|", "slope g'd", "d'Ad", *reach)
    lines = {line.along: line for line in entry.lines}
    for d in entry.directions:
        value = "" if d.eigenvalue is None or d.residual is None else brief(d.eigenvalue, d.residual)
        table.add_row(
            d.name,
            value,
            *map(cell, (d.norm, d.slope, d.curvature)),
            *(range_cells(lines.get(d.name)) if reach else []),
        )
    return table


def range_cells(line: Line | None) -> list[str]:
    """The ends of the range in which the prediction holds."""
    if line is None:
        return ["", ""]
    holds, first = line.holds, line.t[len(line.t) // 2 + 1]
    start, stop = (f"{end:.2g}" for end in (holds.start, holds.stop))
    start = f"≤ {start}" if holds.to_the_start else start if holds.start else f"> {-first:.2g}"
    stop = f"≥ {stop}" if holds.to_the_end else stop if holds.stop else f"< {first:.2g}"
    return [start, stop]


def spread_table(entry: LandscapeResult) -> Any:
    """The table of how curvature and slope spread over examples."""
    table = new_table("", "mean ± s.e.", "s/n", "% < 0", "5 %", "median", "95 %", "slope s/n")
    for one in entry.spread or []:
        bend, slope = one.curvature, one.slope
        at = dict(zip(one.quantiles_at, bend.quantiles, strict=True))
        table.add_row(
            one.along,
            brief(bend.mean, bend.standard_error),
            cell(bend.signal_to_noise),
            f"{100 * bend.negative:.1f}",
            *[cell(at[q]) for q in (0.05, 0.5, 0.95)],
            cell(slope.signal_to_noise),
        )
    return table


def plane_line(entry: LandscapeResult, plane: Plane) -> str:
    """The line on a plane, with what its figure does not tell."""
    losses = plane.loss[np.isfinite(plane.loss)]
    lowest = f"{losses.min():.4g}" if losses.size else "none finite"
    first, second = plane.along
    return f"{entry.curvature}, plane of {first} and {second}: cosine {plane.cosine:.2g}, lowest loss {lowest}"


def cell(value: float | None) -> str:
    """A number in three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def cost_table(results: Sequence[LandscapeResult]) -> Any:
    """The table of costs."""
    table = new_table("", "evaluations", "products", "s", "set-up s", "converged")
    for entry in results:
        table.add_row(entry.curvature, str(entry.evaluations), *cost_cells(entry))
    return table
