"""Tables of 80 columns for eigenvalues, traces and densities, and the functions that all tables share."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Column, Table

from spectra.quoting import NAME, escaped, quoted, readable
from spectra.records.density import Share
from spectra.records.eig import EigResult
from spectra.records.entry import Entry
from spectra.records.precondition import titled
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record
from spectra.tables.input_blocks import EIGENVALUES, TRACES, mean_columns, mean_rows, of_either_sign, trace_cells
from spectra.tables.precondition import precondition_line, threshold_lines
from spectra.wording import counted, with_error

WIDTH = 80
FIRST = 60  # characters of a name in a first column, which leave room for numbers
NOISE_IN = {  # by command: how the noise of products of lower precision affects the result
    "eig": "eigenvalues and residuals are computed with products in ieee, and `complete` allows for the noise",
    "trace": "the trace is corrected with products in ieee, and its standard error includes what remains",
    "density": "eigenvalues may have this error, and shares allow for it",
    "layers": "traces are corrected with products in ieee; eigenvalues and spectra are computed with such products",
}
EXACT = ("gram", "dense")  # methods of densities that compute every eigenvalue
SAMPLED = "eigenvalue ± standard error from the sample that the matrix is estimated from"
MEASURED_IN = {  # by command: how the error of finite differences affects the result
    "eig": "residuals are computed with {}",
    "trace": "the standard error includes it",
    "density": "eigenvalues may have this error, and shares allow for it",
}
COMPLETE = "complete: no eigenvalue was missed, with 99 % confidence"
UNPROVEN = (
    "unproven: a short search of the remaining space found no missed eigenvalue (e.g. a second copy of one), but "
    "cannot exclude one with 99 % confidence"
)


def eig_parts(record: Record) -> list[str | Table]:
    """Texts and tables: the eigenvalues of all matrices side by side; below them cost and quality."""
    results: list[EigResult] = record.results
    single = any(r.spread is not None for r in results)  # matrices of single examples
    tables = []
    meaning = "eigenvalue ± residual |Au - λu|: up to rounding, a true eigenvalue lies in this interval"
    exact = all(r.exact for r in results)
    if not exact:
        meaning = "eigenvalue ± residual |Au - λu| of the matrix, which is itself an estimate"
    if single:
        meaning = EIGENVALUES
    for first in range(0, len(results), 2 if single else 3):  # as many matrices as fit 80 columns
        some = results[first : first + (2 if single else 3)]
        table = new_table("", *(mean_columns(some) if single else [title(record, r) for r in some]))
        rows = mean_rows(some) if single else eigenvalue_rows(some)
        for i, cells in enumerate(rows, start=1):
            table.add_row(str(i), *cells)
        tables.append(table)
    if not exact:
        tables += [SAMPLED, sampling_table([r for r in results if not r.exact])]
    costs = new_table("", "products", "time (s)", "setup (s)", "converged", "complete")
    for r in results:
        not_now = "-" if r.last_search is None else f"searched at step {r.last_search}"
        costs.add_row(r.curvature, *cost_cells(r), {True: "yes", False: "unproven", None: not_now}[r.complete])
    below = [COMPLETE] if any(r.complete is not None for r in results) else []
    below += [UNPROVEN] if any(r.complete is False for r in results) else []
    return [heading(record.problem), meaning, *tables, costs, *below, *remarks(record)]


def sampling_table(results: list[EigResult]) -> Table:
    """The table of eigenvalues with standard errors, for matrices that are estimated from samples."""
    table = new_table("", *[r.curvature for r in results])
    for i in range(max(len(r.values) for r in results)):
        table.add_row(str(i + 1), *[sampled_cell(r, i) for r in results])
    return table


def sampled_cell(result: EigResult, i: int) -> str:
    """Eigenvalue i with its standard error from the sample; empty if it is unknown."""
    errors = result.sampling_errors
    return with_error(result.values[i], errors[i], most=6) if errors is not None and i < len(errors) else ""


def percentage(share: Share | None) -> str:
    """A share with its interval in per cent, as `26 (13-69)`."""
    if share is None:
        return ""
    value, lower, upper = (100 * number for number in (share.value, share.lower, share.upper))
    return f"{value:.0f} ({lower:.0f}-{upper:.0f})" if upper else "0"


def eigenvalue_rows(results: Sequence[EigResult]) -> Iterator[list[str]]:
    """One row for each rank: the eigenvalue of each matrix with its residual."""
    for i in range(max(len(r.values) for r in results)):
        yield [eigenvalue_cell(r, i) for r in results]


def eigenvalue_cell(result: EigResult, i: int) -> str:
    """Eigenvalue i with its residual; empty if there is none."""
    return with_error(result.values[i], result.residuals[i]) if i < len(result.values) else ""


def trace_text(record: Record) -> str:
    """The record of `trace` as text of 80 columns."""
    return rendered(*trace_parts(readable(record)))


def trace_parts(record: Record) -> list[str | Table]:
    """Texts and tables of the record of `trace`."""
    if any(r.spread is not None for r in record.results):  # matrices of single examples
        table = new_table("", "trace", "spread")
        for r in record.results:
            table.add_row(r.curvature, *trace_cells(r))
        return [heading(record.problem), TRACES, table, cost_table(record.results), *remarks(record)]
    table = new_table(corner(record), "trace", "products", "time (s)", "setup (s)", "converged")
    for r in record.results:
        table.add_row(r.curvature, with_error(r.trace, r.standard_error), *cost_cells(r))
    return [heading(record.problem), "trace ± standard error", table, *remarks(record)]


def density_parts(record: Record, *more: str | Table) -> list[str | Table]:
    """Texts and tables: a summary of each spectrum, and below it the parts `more`."""
    table = new_table(corner(record), "min", "max", "mean", "% < 0", "products", "time (s)")
    for r in record.results:
        held = r.nodes[r.weights != 0]
        means = (r.weights * r.nodes).sum(1)
        table.add_row(
            r.curvature,
            f"{held.min():.2g}",
            f"{held.max():.3g}",
            with_error(means.mean(), standard_error(means), most=4, digits=1),
            percentage(r.negative),
            *cost_cells(r)[:2],
        )
    probes = max(len(r.nodes) for r in record.results)
    figure = record.results[0].figure or "no figure"
    sampled = (
        f"mean ± standard error over {counted(probes, 'probe')}; % < 0: share of negative eigenvalues, with 95 % "
        "interval; min, max: extremes found"
    )
    exact = all(r.method in EXACT for r in record.results)
    note = f"{figure}: {'mean, and % < 0, of all eigenvalues' if exact else sampled}"
    return [heading(record.problem), note, table, *more, *remarks(record)]


def heading(problem: ProblemRecord) -> str:
    """The first line of tables: checkpoint, data, sizes and loss; for operators a description of each."""
    if problem.operators:
        return "; ".join(f"{quoted(one.spec)}: {quoted(one.described())}" for one in problem.operators)
    model, checkpoint, data, loss = map(quoted, (problem.model, problem.checkpoint, problem.data, problem.loss))
    seed = "" if problem.model_holds_weights else f", as built with seed {problem.seed}"
    where = checkpoint if problem.checkpoint else f"{model}{seed}"
    if isinstance(several := problem.option("checkpoint"), list):  # of landscape
        where = f"{where} (and {counted(len(several) - 1, 'other')} below)"
    chosen, total = problem.parameters, problem.parameters_in_all or problem.parameters
    some = f"{chosen:,} of " if total > chosen else ""
    transform = f" ({quoted(problem.transform)})" if problem.transform else ""
    part = f", part {quoted(problem.loss_part)}:" if problem.loss_part else ""
    sizes = f"{some}{counted(total, 'parameter')}, {counted(problem.examples, 'example')}"
    if size := problem.get("input_size"):
        sizes = f"by inputs of {counted(size, 'number')}, {counted(problem.samples or problem.examples, 'example')}"
    line = f"{where} on {data}{transform}: {sizes}, {loss}{part} {problem.loss_value:.4g}"
    found = problem.get("precondition")
    return f"{line}\n{precondition_line(found)}" if found else line


def corner(record: Record) -> str:
    """The heading of the column of matrices, empty unless they are preconditioned."""
    return "preconditioned" if record.problem.get("precondition") else ""


def title(record: Record, entry: Entry) -> str:
    """The name of a matrix as the heading of its numbers."""
    return titled(entry.curvature, record.problem.get("precondition"))


def remarks(record: Record) -> list[str]:
    """The lines below the tables: thresholds, errors, and other notes on the numbers."""
    lines = [*threshold_lines(record)]
    lines += [
        f"{r.curvature}: {counted(r.projected_out, 'eigenpair')} of {r.projected_from} projected out"
        for r in record.results
        if r.projected_from
    ]
    lines += [
        f"{r.curvature}: the matrix is itself an estimate; the standard error includes {r.sampling_error:.2g} for that"
        for r in record.results
        if getattr(r, "sampling_error", None) is not None
    ]
    if any(r.curvature == "fisher-batch" for r in record.results):
        size, examples = record.problem.batch_size, counted(record.problem.examples, "example")
        split = f"batches of {size} of {examples}"
        lines.append(f"fisher-batch depends on the split: here {split} (--batch-size)")
    lines += [difference_line(record.command, r) for r in record.results if r.finite_difference]
    lines += [
        f"ntk: a matrix over {rows_of_kernel(record.problem)}, not divided by their number"
        for r in record.results
        if r.curvature == "ntk" and record.problem.get("operators") is None
    ]
    lines += [
        f"{r.curvature}: a row mixes positive and negative eigenvalues, by magnitude; --which LA or SA separates them"
        for r in record.results
        if record.command == "eig" and record.problem.option("which") == "LM" and of_either_sign(r)
    ]
    lines += [
        f"{r.curvature}: products in {r.precision} have a relative error of {r.noise:.0e}, those of unit vectors an "
        f"absolute one of {r.noise_norm:.1g}; {NOISE_IN[record.command]}"
        for r in record.results
        if r.noise_norm is not None and not r.finite_difference
    ]
    lines += [
        f"{r.curvature}: derivatives were not checked against finite differences: {r.derivative_check.not_checked}"
        for r in record.results
        if r.derivative_check and r.derivative_check.not_checked
    ]
    lines += record.problem.notes or []
    return ["", *lines] if lines else []


def rows_of_kernel(problem: ProblemRecord) -> str:
    """The rows of a kernel in words: examples, or inputs if each has several targets."""
    inputs, targets = problem.samples or 0, problem.examples
    if inputs == targets:
        return counted(inputs, "example")
    return f"{counted(inputs, 'input')} (with {counted(targets, 'target')} in all)"


def difference_line(command: str, result: Entry) -> str:
    """The line on the error of products by finite differences, and how it affects the numbers."""
    how = result.finite_difference
    assert how
    others = "differences with a longer step" if how.estimated else "exact products"
    reason = f" (there are no exact products: {quoted(how.not_exact, None)})" if how.estimated else ""
    return (
        f"{result.curvature}: {how.form} differences with step {how.step:.2g} have a relative error of {how.error:.1g} "
        f"for a random product, and an absolute one of up to {result.noise_norm:.1g} for unit vectors, measured with "
        f"{others}{reason}; {MEASURED_IN[command].format(others)}"
    )


def figure_lines(record: Record) -> list[str]:
    """The lines that say where the figures are."""
    return ["", *[quoted(path, None) for path in record.figures]] if record.figures else []


def cost_table(results: Sequence[Entry]) -> Table:
    """The table of the cost of each result, and whether it converged."""
    table = new_table("", "products", "time (s)", "setup (s)", "converged")
    for r in results:
        table.add_row(r.curvature, *cost_cells(r))
    return table


def cost_cells(result: Entry) -> list[str]:
    """The cells on the cost of a result, and whether it converged."""
    return [
        products_cell(result),
        f"{result.seconds:.2f}",
        f"{result.setup_seconds:.2f}",
        "yes" if result.converged else "no",
    ]


def products_cell(result: Entry) -> str:
    """The number of products, as `57`, or `57 (12 ieee)` or `57 (12 exact)` if the others are less exact."""
    if result.noise_norm is None:
        return str(result.products)
    how = result.finite_difference
    kind = "ieee" if how is None else "check" if how.estimated else "exact"
    return f"{result.products} ({result.ieee_products} {kind})"


def standard_error(samples: np.ndarray) -> float:
    """The standard error of the mean of samples (k,); nan for one."""
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.nan


def new_table(*columns: str) -> Table:
    """An empty table with these columns; all but the first are aligned to the right, for numbers."""
    table = Quoted(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for i, column in enumerate(columns):
        table.add_column(
            quoted(column), justify="right" if i else "left", no_wrap=not i, overflow="fold"
        )  # long cells wrap
    return table


def fit_width(table: Table, console: Console) -> list[Table]:
    """The table, or several of its columns that each fit the console if it is too wide; each repeats the first column.

    If a single column is too wide, or has words (aligned to the left), the table stays whole and its cells wrap.
    """
    first, *others = table.columns
    if width_of(table, console) <= console.width or any(column.justify == "left" for column in others):
        return [table]
    groups: list[list[Column]] = [[]]
    for column in others:
        if width_of(with_columns(table, [first, column]), console) > console.width:
            return [table]
        if width_of(with_columns(table, [first, *groups[-1], column]), console) > console.width:
            groups.append([])
        groups[-1].append(column)
    return [with_columns(table, [first, *some], empty=not place) for place, some in enumerate(groups)]


def width_of(table: Table, console: Console) -> int:
    """The width of a table whose cells do not wrap."""
    return Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum


def with_columns(table: Table, columns: Sequence[Column], empty: bool = True) -> Table:
    """A table with some columns of another; without `empty`, rows with nothing but a first cell are left out."""
    part = Table(box=table.box, pad_edge=table.pad_edge, padding=table.padding)
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow)
    for cells in zip(*(column.cells for column in columns), strict=True):
        if empty or any(cells[1:]):
            part.add_row(*cells)
    return part


class Quoted(Table):
    """A table that escapes and shortens its cells, which may hold names from files."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        quoted_cells = [quoted(cell, NAME if i else FIRST) for i, cell in enumerate(cells)]
        super().add_row(*quoted_cells, style=style, end_section=end_section)


def rendered(*parts: str | Table) -> str:
    """Texts and tables as one text of 80 columns, one part below the other."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            console.print("\n".join(map(escaped, part.split("\n"))))
        else:
            console.print(*fit_width(part, console))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())
