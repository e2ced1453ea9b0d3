"""Tables of 80 columns from a record of `spectra step`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spectra.quoting import readable
from spectra.records.record import Record
from spectra.records.step import StepAlong, StepDirection, StepFound, StepPoint, StepResult
from spectra.tables.landscape import cell
from spectra.tables.noise import noise_parts, worst_parts
from spectra.tables.results import cost_cells, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief, with_error

MOST_LAYERS = 12  # of which the table tells
MEANING = "best t: lowest loss at theta + t d; critical t: loss as at 0; cos of d and -g"
OF_MATRIX = "best t: -g'd / d'Ad; within %: the layers' own part of d'Ad"
OF_LAYERS = "own: d_l'A_l d_l, whole: d_l'(A d)_l, of d'Ad"


def step_text(record: Record) -> str:
    """The record of `step` as text of 80 columns."""
    return rendered(*step_parts(readable(record)), *figure_lines(record))


def step_parts(record: Record) -> list[Any]:
    """Texts and tables: the loss along each direction, then for each matrix its curvature and shares; then the cost."""
    point, results = record.point, record.results
    assert point  # of every record of this command
    parts = [heading(record.problem), sizes(point), f"{MEANING}\n{units(point.directions)}", line_table(point)]
    parts += reasons(point)
    for entry in results:
        parts += [f"\n{entry.curvature}: {OF_MATRIX}{shares_told(entry)}", matrix_table(entry)]
    if (entry := next((one for one in results if has_layers(one)), None)) is not None:
        one = entry.along[min(1, len(entry.along) - 1)]
        parts += [f"{entry.curvature} along {one.direction}, {OF_LAYERS}", layer_table(one)]
    parts += [*noise_parts(point, results), *worst_parts(point, results)]
    return [*parts, cost_table(results), *remarks(record)]


def sizes(point: StepPoint) -> str:
    """The line on |theta|, the norm of the gradient and those of directions."""
    lengths = ", ".join(f"{d.name} {cell(d.norm)}" for d in point.directions)
    return f"|theta| {cell(point.parameter_norm)}, gradient norm {cell(point.gradient_norm)}; |d|: {lengths}"


def units(directions: Sequence[StepDirection]) -> str:
    """What t is along each direction, in words."""
    by_unit: dict[str, list[str]] = {}
    for d in directions:
        by_unit.setdefault(d.unit, []).append(d.kind)
    told = [f"{unit} ({', '.join(dict.fromkeys(kinds))})" for unit, kinds in by_unit.items()]
    return f"t = 1 is a {', a '.join(told)}"


def line_table(point: StepPoint) -> Any:
    """The table of the loss along each direction."""
    table = new_table("", "cos", "slope g'd", "best t", "critical t", "at t = 1")
    for d in point.directions:
        slope = cell(d.slope) if d.slope_error is None else brief(d.slope, d.slope_error)
        found = (step_cell(one) for one in (d.best, d.critical))
        at_one = "" if d.loss_at_one is None else f"{d.loss_at_one:.5g}"
        table.add_row(d.name, cell(d.cosine), slope, *found, at_one)
    return table


def step_cell(found: StepFound) -> str:
    """A step with its error, or a dash."""
    if found.step is None or found.error is None:
        return "-"
    return brief(found.step, found.error)


def reasons(point: StepPoint) -> Iterator[str]:
    """Lines on steps and directions that there are not."""
    for d in point.directions:
        for what, found in (("best", d.best), ("critical", d.critical)):
            if found.reason and not (what == "critical" and found.reason == d.best.reason):
                yield f"{d.name}: no {what} step, {found.reason}{far(d, found)}"
    yield from (f"left out: {text}" for text in point.left_out)


def far(d: StepDirection, found: StepFound) -> str:
    """How far was looked, where that is why there is no step."""
    return f" (t up to {d.searched:.3g})" if "range" in (found.reason or "") else ""


def shares_told(entry: StepResult) -> str:
    """What the columns of shares are."""
    if not entry.k:
        return ""
    chance = 100 * entry.k / entry.parameters
    return f"\nshare: of d in {entry.k} leading eigenvectors, the rest in the bulk; by chance {chance:.2g} %"


def matrix_table(entry: StepResult) -> Any:
    """The table of curvatures along each direction, and of shares."""
    table = new_table("", "d'Ad/|d|²", "best t", "within %", *(["share % (bounds)"] if entry.k else []))
    for one in entry.along:
        best = "-" if one.best_step is None else cell(one.best_step)
        if one.best_step is not None and one.best_step_error is not None:
            best = brief(one.best_step, one.best_step_error)
        sharpness = brief(one.sharpness, one.sharpness_error)
        table.add_row(one.direction, sharpness, best, within_cell(one), *([share_cell(one)] if entry.k else []))
    return table


def within_cell(one: StepAlong) -> str:
    """The part of the curvature within layers, in per cent; a dash where it is not known, or the whole is rounding."""
    if one.within is None or one.split_error is None or abs(one.curvature) <= one.curvature_error:
        return "-"
    whole = abs(one.curvature)
    error = 100 * (one.split_error + one.curvature_error) / whole
    return with_error(100 * one.within / one.curvature, error, most=3, digits=1)


def share_cell(one: StepAlong) -> str:
    """`63.2 (62.9-63.5)`, the share in all the leading eigenvectors in per cent, with its bounds."""
    if not len(one.share):
        return "-"
    share, lower, upper = (100 * float(values[-1]) for values in (one.share, one.share_lower, one.share_upper))
    return f"{share:.3g} ({lower:.3g}-{upper:.3g})"


def has_layers(entry: StepResult) -> bool:
    """Whether there is a split over several layers to be told of."""
    return any(len(one.layers) > 1 and one.within is not None and one.curvature for one in entry.along)


def layer_table(one: StepAlong) -> Any:
    """The table of layers, those of the largest shares."""
    table = new_table("", "|d_l|² %", "own %", "whole %")
    for layer in sorted(one.layers, key=lambda layer: -layer.share)[:MOST_LAYERS]:
        parts = (f"{100 * part / one.curvature:.3g}" if part is not None else "-" for part in (layer.own, layer.part))
        table.add_row(layer.name, f"{100 * layer.share:.3g}", *parts)
    return table


def cost_table(results: Sequence[StepResult]) -> Any:
    """The table of costs."""
    table = new_table("", "products", "s", "set-up s", "converged")
    for entry in results:
        table.add_row(entry.curvature, *cost_cells(entry))
    return table
