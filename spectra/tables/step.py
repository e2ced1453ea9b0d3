"""Tables of 80 columns from a record of `spectra step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spectra.quoting import readable
from spectra.records.record import Record
from spectra.records.step import StepAlong, StepDirection, StepFound, StepPoint, StepResult
from spectra.tables.landscape import cell, tail
from spectra.tables.noise import noise_parts, worst_parts
from spectra.tables.results import cost_table, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief, with_error

NOTHING_KNOWN = 99.0  # per cent between bounds, for example of eigenvectors that are not converged
MOST_LAYERS, MOST_NAME = 12, 16  # rows of the table of layers; characters of the name of a direction
ALONG = (
    "cos is the cosine between d and -g. The loss is lowest at the best t. At the critical t it is back at its value "
    "at t = 0."
)
UNITS = {
    "gradient": "t is a learning rate",
    "momentum": "t is a learning rate",
    "update": "t = 1 is the optimizer's step",
    "checkpoint": "t = 1 is the other checkpoint",
}
WITHIN = "Within layers: the percentage of d'Ad from the layers' own diagonal blocks."
OF_LOSS = "Here the best t is where the quadratic model of the loss is lowest, -g'd / d'Ad."
SHARES = (
    "Share of |d|² in the {} leading eigenvectors in per cent, with bounds in parentheses. A random direction would "
    "have {:.2g} %."
)
LAYERS = (
    "Shares of the layers l along {} for {}, in per cent: of |d|², and of d'Ad by the layer's own block (own, "
    "d_l'A_ll d_l) or with the terms between layers (whole, d_l'(A d)_l)."
)


def step_text(record: Record) -> str:
    """The record of `step` as text of 80 columns."""
    return rendered(*step_parts(readable(record)), *figure_lines(record))


def step_parts(record: Record) -> list[Any]:
    """Texts and tables: the loss along each direction, the curvature and shares for each matrix, noise and the cost."""
    point, results = record.point, record.results
    assert point  # every record of this command has it
    called = {name: tail(short, MOST_NAME) for name, short in point.called().items()}
    parts = [heading(record.problem), sizes(point, called)]
    parts += [f"\nLoss at theta + t d along each direction d. {units(point.directions)}. {ALONG}"]
    parts += [line_table(point, called), *at_one(point, called), *reasons(point, called)]
    of_loss = f" {OF_LOSS}" if any(entry.of_the_loss for entry in results) else ""
    parts.append(f"\nCurvature d'Ad along each direction d, for each matrix A. {WITHIN}{of_loss}")
    for entry in results:
        parts += [f"\n{entry.curvature}", matrix_table(entry, called)]
    parts += share_parts(results, called)
    if (entry := next((one for one in results if has_layers(one)), None)) is not None:
        one = entry.along[min(1, len(entry.along) - 1)]
        parts += [f"\n{LAYERS.format(called[one.direction], entry.curvature)}", layer_table(one)]
    parts += [*noise_parts(point, results), *worst_parts(point, results)]
    return [*parts, cost_table(results), *remarks(record)]


def sizes(point: StepPoint, called: Mapping[str, str]) -> str:
    """The line on |theta|, the norm of the gradient and those of directions."""
    lengths = ", ".join(f"{called[d.name]} {cell(d.norm)}" for d in point.directions)
    return f"|theta| {cell(point.parameter_norm)}, gradient norm {cell(point.gradient_norm)}; |d|: {lengths}"


def units(directions: Sequence[StepDirection]) -> str:
    """The meaning of t along each direction, in words."""
    by_unit: dict[str, list[str]] = {}
    for kind in dict.fromkeys(d.kind for d in directions):
        by_unit.setdefault(UNITS[kind], []).append(kind)
    return "; ".join(f"{unit} ({', '.join(kinds)})" for unit, kinds in by_unit.items())


def line_table(point: StepPoint, called: Mapping[str, str]) -> Any:
    """The table of the loss along each direction."""
    table = new_table("", "cos", "slope g'd", "best t", "critical t")
    for d in point.directions:
        slope = cell(d.slope) if d.slope_error is None else brief(d.slope, d.slope_error)
        found = (step_cell(one) for one in (d.best, d.critical))
        table.add_row(called[d.name], cell(d.cosine), slope, *found)
    return table


def at_one(point: StepPoint, called: Mapping[str, str]) -> Iterator[str]:
    """The line on the losses at t = 1, for directions where that is a point of interest."""
    losses = [f"{called[d.name]} {d.loss_at_one:.5g}" for d in point.directions if d.loss_at_one is not None]
    if losses:
        yield f"loss at t = 1: {', '.join(losses)}"


def step_cell(found: StepFound) -> str:
    """A step with its error, or a dash."""
    if found.step is None or found.error is None:
        return "-"
    return brief(found.step, found.error)


def reasons(point: StepPoint, called: Mapping[str, str]) -> Iterator[str]:
    """Lines on why steps are missing and directions are left out."""
    for d in point.directions:
        for what, found in (("best", d.best), ("critical", d.critical)):
            if found.reason and not (what == "critical" and found.reason == d.best.reason):
                yield f"{called[d.name]}: no {what} step, {found.reason}{far(d, found)}"
    yield from (f"left out: {text}" for text in point.left_out)


def far(d: StepDirection, found: StepFound) -> str:
    """The range that was searched, if it is the reason why there is no step."""
    return f" (t up to {d.searched:.3g})" if "range" in (found.reason or "") else ""


def matrix_table(entry: StepResult, called: Mapping[str, str]) -> Any:
    """The table of curvatures along each direction."""
    table = new_table("", "d'Ad / |d|²", *["best t"] * entry.of_the_loss, "within layers %")
    for one in entry.along:
        best = "-" if one.best_step is None else cell(one.best_step)
        if one.best_step is not None and one.best_step_error is not None:
            best = brief(one.best_step, one.best_step_error)
        sharpness = brief(one.sharpness, one.sharpness_error)
        table.add_row(called[one.direction], sharpness, *[best] * entry.of_the_loss, within_cell(one))
    return table


def share_parts(results: Sequence[StepResult], called: Mapping[str, str]) -> list[Any]:
    """Text and table of the shares in leading eigenvectors of each matrix; nothing if they were not computed."""
    held = [entry for entry in results if entry.k]
    if not held:
        return []
    k, n = held[0].k, held[0].parameters
    table = new_table("", *[entry.curvature for entry in held])
    shares = [{one.direction: share_cell(one) for one in entry.along} for entry in held]
    for name in dict.fromkeys(name for some in shares for name in some):
        table.add_row(called[name], *[some.get(name, "-") for some in shares])
    return [f"\n{SHARES.format(k, 100 * k / n)}", table]


def within_cell(one: StepAlong) -> str:
    """The part of the curvature within layers, in per cent; a dash if it is unknown or the curvature is rounding."""
    if one.within is None or one.split_error is None or abs(one.curvature) <= one.curvature_error:
        return "-"
    whole = abs(one.curvature)
    error = 100 * (one.split_error + one.curvature_error) / whole
    return with_error(100 * one.within / one.curvature, error, most=3, digits=1)


def share_cell(one: StepAlong) -> str:
    """The share in all leading eigenvectors in per cent with its bounds, as `63.2 (62.9 to 63.5)`; or a dash."""
    if not len(one.share):
        return "-"
    share, lower, upper = (100 * float(values[-1]) for values in (one.share, one.share_lower, one.share_upper))
    if upper - lower > NOTHING_KNOWN:
        return "-"
    return f"{cell(share)} ({cell(lower)} to {cell(upper)})"


def has_layers(entry: StepResult) -> bool:
    """Whether the curvature is known for each of several layers."""
    return any(len(one.layers) > 1 and one.within is not None and one.curvature for one in entry.along)


def layer_table(one: StepAlong) -> Any:
    """The table of the layers with the largest shares."""
    table = new_table("", "|d_l|² %", "own %", "whole %")
    for layer in sorted(one.layers, key=lambda layer: -layer.share)[:MOST_LAYERS]:
        parts = (f"{100 * part / one.curvature:.3g}" if part is not None else "-" for part in (layer.own, layer.part))
        table.add_row(layer.name, f"{100 * layer.share:.3g}", *parts)
    return table
