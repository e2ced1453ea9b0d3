"""Tables of 80 columns from a record of `spectra landscape`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectra.quoting import readable
from spectra.records.directions import ShortNames
from spectra.records.landscape import Barrier, LandscapeResult, Line, Plane
from spectra.records.record import Record
from spectra.tables.results import cost_cells, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief, rounded, with_error

MEANING = (
    "The quadratic model of the loss at theta + t d is valid for t in the range shown: its error there is at most "
    "{:.0f} % of its second-order term."
)
BARRIER = (
    "Barrier: the largest height of the loss above the straight line between its values at t = 0 and t = 1, ± standard "
    "error over examples. Grid error: how much higher it may be between the grid points. Found: it exceeds its errors."
)
MOST, NAME = 16, 14  # rows of a trajectory; characters of a name
SPREAD = (
    "distribution of the curvature d'A_i d over the examples i. s/n is signal to noise, |mean| / standard deviation, "
    "of the curvature and of the slope g_i'd."
)
ROUNDING = 1e-6  # relative; below this, inner products of float32 vectors are rounding errors


def landscape_text(record: Record) -> str:
    """The record of `landscape` as text of 80 columns."""
    return rendered(*landscape_parts(readable(record)), *figure_lines(record))


def landscape_parts(record: Record) -> list[Any]:
    """Texts and tables: for each matrix its directions and the distribution of curvature over examples; the cost."""
    results: list[LandscapeResult] = record.results
    parts = [heading(record.problem)]
    if len({entry.checkpoint for entry in results}) == 1:
        parts.append(sizes(results[0]))
    held = [line.holds for entry in results for line in entry.lines if line.holds]
    parts += [MEANING.format(100 * one.share) for one in held[:1]]
    shown, called = None, ShortNames(results, tail)
    for entry in results:
        if entry.checkpoint and entry.checkpoint != shown:
            shown = entry.checkpoint
            parts.append(f"\n{called.file(shown)}: loss {entry.loss:.6g}, {sizes(entry)}")
        parts += [f"\n{entry.curvature}: slope and curvature along each direction d", direction_table(entry, called)]
        if entry.spread:
            parts += [f"{entry.curvature}: {SPREAD}", spread_table(entry, called)]
    parts += [entry.without_spread for entry in results if entry.without_spread]
    parts += barriers(results, called)
    parts += [plane_line(entry, plane, called) for entry in results for plane in entry.planes]
    parts += marks(results)
    return [*parts, cost_table(results, called), *remarks(record)]


def sizes(entry: LandscapeResult) -> str:
    """The line on |theta| and the norm of the gradient."""
    return f"|theta| {cell(entry.parameter_norm)}, gradient norm {cell(entry.gradient_norm)}"


def tail(name: str, most: int = NAME) -> str:
    """A name, or the end of a long one."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def first_of_each(results: Sequence[LandscapeResult]) -> list[LandscapeResult]:
    """The result of the first matrix at each checkpoint; parts that do not depend on the matrix are the same in all."""
    return list({entry.checkpoint: entry for entry in reversed(results)}.values())[::-1]


def direction_table(entry: LandscapeResult, called: ShortNames) -> Any:
    """The table of directions: eigenvalue, norm, slope, curvature, and the range of t where the model is valid."""
    reach = ["valid from", "to"] if any(line.holds for line in entry.lines) else []
    valued = ["λ ± residual"] if any(d.eigenvalue is not None for d in entry.directions) else []
    table = new_table("", *valued, "|d|", "slope g'd", "d'Ad", *reach)
    lines = {line.along: line for line in entry.lines}
    for d in entry.directions:
        value = "" if d.eigenvalue is None or d.residual is None else brief(d.eigenvalue, d.residual)
        table.add_row(
            called(d.name),
            *[value] * len(valued),
            cell(d.norm),
            product_cell(d.slope, entry.gradient_norm * d.norm),
            cell(d.curvature),
            *(range_cells(lines.get(d.name)) if reach else []),
        )
    return table


def range_cells(line: Line | None) -> list[str]:
    """The ends of the range in which the quadratic model is valid."""
    if line is None or line.holds is None:
        return ["", ""]
    holds, zero = line.holds, line.origin
    before, after = (f"{abs(line.t[min(max(i, 0), len(line.t) - 1)]):.2g}" for i in (zero - 1, zero + 1))
    start, stop = (f"{end:.2g}" for end in (holds.start, holds.stop))
    start = f"≤ {start}" if holds.to_the_start else start if holds.start else f"> -{before}"
    stop = f"≥ {stop}" if holds.to_the_end else stop if holds.stop else f"< {after}"
    return [start, stop]


def barriers(results: Sequence[LandscapeResult], called: ShortNames) -> list[Any]:
    """The table of barriers to other checkpoints, with its legend; nothing if there are none."""
    found = [(entry, line, line.barrier) for entry in first_of_each(results) for line in entry.lines if line.barrier]
    if not found:
        return []
    several = len({entry.checkpoint for entry, _, _ in found}) > 1
    ends = ("to", "barrier ± s.e.", "grid error", "at t", "loss at 0", "at 1", "found")
    table = new_table(*["from"] * several, *ends)
    for entry, line, one in found:
        table.add_row(
            *[called.file(entry.checkpoint)] * several,
            called.file(line.along),
            height(one),
            f"{one.grid_error:.0e}" if math.isfinite(one.grid_error) else "-",
            f"{one.t:.3f}",
            f"{one.start:.4g}",
            f"{one.end:.4g}",
            {True: "yes", False: "no", None: "not finite"}[one.present],
        )
    reasons = dict.fromkeys(one.without_error for _, _, one in found if one.without_error and one.present is not None)
    return [BARRIER, table, *[f"no standard error: {reason}" for reason in reasons]]


def height(barrier: Barrier) -> str:
    """The height of a barrier with its standard error; 0 if the loss is nowhere above the straight line."""
    if not math.isfinite(barrier.height):
        return "-"
    error = math.nan if barrier.standard_error is None else barrier.standard_error
    return with_error(barrier.height, error, most=4) if barrier.height else "0"


def marks(results: Sequence[LandscapeResult]) -> list[Any]:
    """The tables of trajectories: the places of their checkpoints, and their distances from the plane."""
    parts = []
    for entry in first_of_each(results):
        for plane in entry.planes:
            if not plane.trajectory or not plane.marks:
                continue
            path, steps = plane.trajectory, plane.trajectory.counts != "checkpoint"
            order = f"by {path.counts}" if steps else "by name"
            parts.append(
                f"{path.glob}, {order}: the plane captures {share(sum(path.shares))} of the squared distances from the "
                f"checkpoint ({share(path.shares[0])} and {share(path.shares[1])}); distance: from the plane"
            )
            table = new_table("", *[path.counts] * steps, "x", "y", "distance", "loss", "loss in plane")
            shown = plane.marks if len(plane.marks) <= MOST else [*plane.marks[: MOST - 2], None, plane.marks[-1]]
            for one in shown:
                if one is None:
                    table.add_row("...", *[""] * (5 + steps))
                    continue
                step = [f"{one.step:g}"] if steps else []
                numbers = (one.x, one.y, one.distance, one.loss, one.loss_in_plane)
                table.add_row(tail(one.name), *step, *map(cell, numbers))
            parts.append(table)
    return parts


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.3g} %"


def spread_table(entry: LandscapeResult, called: ShortNames) -> Any:
    """The table of the distributions of curvature and slope over examples."""
    table = new_table("", "mean ± s.e.", "s/n", "% < 0", "5 %", "median", "95 %", "slope s/n")
    for one in entry.spread or []:
        bend, slope = one.curvature, one.slope
        at = dict(zip(one.quantiles_at, bend.quantiles, strict=True))
        table.add_row(
            called(one.along),
            brief(bend.mean, bend.standard_error),
            cell(bend.signal_to_noise),
            f"{100 * bend.negative:.1f}",
            *[cell(at[q]) for q in (0.05, 0.5, 0.95)],
            cell(slope.signal_to_noise),
        )
    return table


def plane_line(entry: LandscapeResult, plane: Plane, called: ShortNames) -> str:
    """The line on a plane: the cosine of its two directions and the lowest loss."""
    losses = plane.loss[np.isfinite(plane.loss)]
    lowest = f"{losses.min():.4g}" if losses.size else "none finite"
    first, second = map(called, plane.along)
    made = ", so the second is made orthogonal to the first" if plane.orthogonal else ""
    of = f"{called.file(entry.checkpoint)}, " if entry.checkpoint else ""
    text = f"cosine of the two {product_cell(plane.cosine, 1.0)}{made}, lowest loss {lowest}"
    return f"{of}{entry.curvature}, plane of {first} and {second}: {text}"


def product_cell(value: float | None, scale: float) -> str:
    """An inner product in three digits, `~0` if it is rounding; `scale` is the product of the two norms."""
    return "~0" if value is not None and abs(value) <= ROUNDING * scale else cell(value)


def cell(value: float | None) -> str:
    """A number in three digits, or a dash."""
    return "-" if value is None else rounded(value)


def cost_table(results: Sequence[LandscapeResult], called: ShortNames) -> Any:
    """The table of costs."""
    several = any(entry.checkpoint for entry in results)
    table = new_table(*["checkpoint"] * several, "", "evaluations", "products", "time (s)", "setup (s)", "converged")
    for entry in results:
        table.add_row(
            *[called.file(entry.checkpoint)] * several, entry.curvature, str(entry.evaluations), *cost_cells(entry)
        )
    return table
