"""Tables of 80 columns from a record of `spectra compare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from spectra.quoting import readable
from spectra.records.compare import Agreement, CompareResult, Pair, Subsample
from spectra.records.entry import Estimate
from spectra.records.record import Record
from spectra.tables.outliers import class_table, outlier_table
from spectra.tables.results import corner, cost_table, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief, counted

MOST_OVERLAPS = 6  # columns of the table of overlaps
MOST_RANKS = 10  # rows of the table of Rayleigh quotients
MOST_FITTED = 5  # eigenvalues for which fits are shown
ERRORS = (
    "|A| is the Frobenius norm. ± is the standard error of norms, traces and distances, and the residual |Au - λu| of "
    "eigenvalues λ."
)
DISTANCE = (
    "Distance |A - B| / |A| and cosine <A, B> / (|A| |B|). The scale c* = <A, B> / |B|² makes |A - c B| smallest; the "
    "last column is |A - c* B| / |A|."
)
DIFFERENCE = (
    "Trace and extreme eigenvalues of A - B. W1 is the Wasserstein distance of the spectra of A and B, relative to the "
    "mean |λ| of A."
)
ROUNDING = "rounding: A and B are equal up to rounding errors."
OVERLAP = (
    "Overlap of the spaces of the j leading eigenvectors of A and of B: 1 if they are the same, 0 if they are "
    "orthogonal. It is unreliable in parentheses, where no gap separates eigenvalues j and j + 1."
)
RAYLEIGH = "Eigenvalues of {0}, and u'Bu of the other matrices B for the eigenvectors u of {0}"
HELD_OUT = "held out {}. Eigenvalues on the data, and u'Au of their eigenvectors u on the held-out data:"
SUBSAMPLE = (
    "{}: mean of each largest eigenvalue λ over random subsets of N examples, and the line a + b / N fitted to it, ± "
    "standard error"
)


def compare_text(record: Record) -> str:
    """The record of `compare` as text of 80 columns."""
    return rendered(*compare_parts(readable(record)), *figure_lines(record))


def compare_parts(record: Record) -> list[Any]:
    """Texts and tables: matrices, pairs, causes of differences, held-out data, subsets of examples, and the cost."""
    results, pairs = record.results, record.pairs or []
    parts = [heading(record.problem), ERRORS, matrix_table(record)]
    if pairs:
        parts += [DISTANCE, distance_table(pairs), DIFFERENCE, difference_table(pairs)]
        parts += [ROUNDING, ""] if any(pair.rounding for pair in pairs) else []
    if any(pair.overlaps for pair in pairs):
        parts += [OVERLAP, overlap_table(pairs), RAYLEIGH.format(results[0].curvature), rayleigh_table(record)]
    parts += outlier_table(results) + (class_table(record.class_structure) if record.class_structure else [""])
    parts += [line for cause in record.causes or [] for line in (cause.sentence, "")]
    if other := record.held_out:
        accuracy = "" if other.accuracy is None else f", accuracy {100 * other.accuracy:.2f} %"
        description = f"{other.data}: {counted(other.examples, 'example')}, loss {other.loss_value:.4g}{accuracy}"
        parts += [HELD_OUT.format(description), held_out_table(record)]
    for entry in record.subsample or []:
        parts += [SUBSAMPLE.format(entry.curvature), subsample_table(entry)]
    return [*parts, cost_table(results), *remarks(record)]


def held_out_table(record: Record):
    """The table of eigenvalues beside the Rayleigh quotients of their eigenvectors on the held-out data."""
    own = {entry.curvature: entry for entry in record.results}
    found = [pair for pair in record.pairs or [] if pair.held_out]
    table = new_table("", *[name for pair in found for name in (pair.first, "held out")])
    for i in range(max(len(pair.first_by_second) for pair in found)):
        cells = [(own[pair.first].values, pair.first_by_second) for pair in found]
        table.add_row(str(i + 1), *[f"{x[i]:.3g}" if i < len(x) else "" for two in cells for x in two])
    return table


def subsample_table(entry: Subsample):
    """The table of eigenvalues on subsets of examples."""
    total = f"{entry.examples:,}"
    sizes = [f"{size:,}" for size in entry.sizes]
    table = new_table("", *sizes, f"line at {total}", f"λ at {total}", "line at ∞")
    for i, (trend, measured) in enumerate(zip_longest(entry.trends[:MOST_FITTED], entry.measured[:MOST_FITTED])):
        if trend:
            means = [f"{mean.value:.4g}" for mean in trend.means]
            there = "" if measured is None else f"{measured:.4g}"
            table.add_row(str(i + 1), *means, estimate(trend.at_all), there, estimate(trend.limit))
    return table


def matrix_table(record: Record):
    """The table of norms, traces and leading eigenvalues."""
    table = new_table(corner(record), "|A|", "trace", "leading λ ± residual")
    for r in record.results:
        leading = brief(r.values[0], r.residuals[0]) if len(r.values) else ""
        table.add_row(r.curvature, estimate(r.norm), estimate(r.trace), leading)
    return table


def distance_table(pairs: Sequence[Pair]):
    """The table of distances and cosines of each pair."""
    keys = {"distance": "distance", "cosine": "cosine", "scale c*": "scale", "distance at c*": "scaled_distance"}

    def cells(pair: Pair) -> list[str]:
        found = [getattr(pair, key) for key in keys.values()]
        return [f"{e.value:.2g}" for e in found] if pair.rounding else [*map(estimate, found)]

    return pair_table(pairs, list(keys), cells)


def difference_table(pairs: Sequence[Pair]):
    """The table of the traces and extreme eigenvalues of differences."""

    def cells(pair: Pair) -> list[str]:
        if pair.rounding:
            return ["rounding"]
        ends = ["" if e is None else brief(e.value, e.residual) for e in (pair.largest, pair.smallest)]
        return [estimate(pair.trace_difference), *ends, estimate(pair.wasserstein_share)]

    return pair_table(pairs, ["trace", "largest λ", "smallest λ", "W1 / mean |λ|"], cells)


def overlap_table(pairs: Sequence[Pair]):
    """The table of overlaps of leading eigenspaces."""
    k = max(len(pair.overlaps) for pair in pairs)
    shown = [*[j for j in (1, 2, 3, 5, 10, 20, 50, 100) if j < k][: MOST_OVERLAPS - 1], k]

    def cells(pair: Pair) -> list[str]:
        found = {spaces.j: spaces for spaces in pair.overlaps}
        return [overlap_cell(found.get(j)) for j in shown]

    return pair_table(pairs, [f"j = {j}" for j in shown], cells)


def overlap_cell(spaces: Agreement | None) -> str:
    """An overlap, in parentheses where no gap makes it reliable."""
    if spaces is None:
        return ""
    return f"{spaces.overlap:.3f} " if spaces.reliable else f"({spaces.overlap:.3f})"


def rayleigh_table(record: Record):
    """The table of the first matrix's eigenvalues beside the Rayleigh quotients of its eigenvectors for the others."""
    first: CompareResult = record.results[0]
    others = [pair for pair in record.pairs or [] if pair.first == first.curvature and not pair.held_out]
    table = new_table("", first.curvature, *[pair.second for pair in others])
    columns = [first.values, *(pair.first_by_second for pair in others)]  # of products that are not finite, empty
    for i, numbers in enumerate(list(zip_longest(*columns))[:MOST_RANKS]):
        table.add_row(str(i + 1), *["" if number is None else f"{number:.4g}" for number in numbers])
    return table


def pair_table(pairs: Sequence[Pair], columns: Sequence[str], cells: Callable[[Pair], list[str]]):
    """A table with a row for each pair, below a row with its first matrix."""
    table = new_table("A / B", *columns)
    for first in dict.fromkeys(pair.first for pair in pairs):
        table.add_row(first)
        for pair in (pair for pair in pairs if pair.first == first):
            table.add_row(f" {'held out' if pair.held_out else pair.second}", *cells(pair))
    return table


def estimate(found: Estimate | None) -> str:
    """An estimate with its error, if that is known; empty for None."""
    if found is None:
        return ""
    error = found.standard_error
    return brief(found.value, math.nan if error is None else error)
