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
from spectra.tables.results import corner, cost_cells, figure_lines, heading, new_table, remarks, rendered
from spectra.wording import brief, counted

MOST_OVERLAPS = 6  # columns of the short table
MOST_RANKS = 10  # rows of it
MOST_FITTED = 5  # eigenvalues of which fits are shown


def compare_text(record: Record) -> str:
    """The record of `compare` as text of 80 columns."""
    return rendered(*compare_parts(readable(record)), *figure_lines(record))


def compare_parts(record: Record) -> list[Any]:
    """Matrices, pairs by what is asked of them, causes; then what other data and fewer examples give; the cost."""
    results, pairs = record.results, record.pairs or []
    parts = [heading(record.problem), matrix_table(record)]
    if pairs:
        parts += ["A against B: distance |A - B| / |A|, best scale c* = <A, B> / |B|²", distance_table(pairs)]
        parts += [
            "A - B: trace, extreme eigenvalues ± residual; W1: Wasserstein distance of spectra",
            difference_table(pairs),
        ]
    if any(pair.overlaps for pair in pairs):
        parts += [
            "overlap of the leading j-dimensional eigenspaces of A and B; in brackets where no "
            "gap separates the eigenvalues j and j + 1",
            overlap_table(pairs),
        ]
        parts += [f"u'Bu of each matrix B, for the eigenvectors u of {results[0].curvature}", rayleigh_table(record)]
    parts += outlier_table(results) + (class_table(record.class_structure) if record.class_structure else [""])
    parts += [line for cause in record.causes or [] for line in (cause.sentence, "")]
    if other := record.held_out:
        accuracy = "" if other.accuracy is None else f", accuracy {100 * other.accuracy:.2f} %"
        told = f"{other.data}: {counted(other.examples, 'example')}, loss {other.loss_value:.4g}{accuracy}"
        parts += [
            f"held out {told}; λ on the data themselves, and u'Au of the same eigenvectors on the held-out data",
            held_out_table(record),
        ]
    for entry in record.subsample or []:
        parts += [
            f"{entry.curvature}: largest eigenvalues on N examples, and the line a + b / N fitted to them",
            subsample_table(entry),
        ]
    return [*parts, cost_table(results), *remarks(record)]


def held_out_table(record: Record):
    """Eigenvalues of every matrix beside what the other data make of its eigenvectors."""
    own = {entry.curvature: entry for entry in record.results}
    found = [pair for pair in record.pairs or [] if pair.held_out]
    table = new_table("", *[name for pair in found for name in (pair.first, "held out")])
    for i in range(max(len(pair.first_by_second) for pair in found)):
        cells = [(own[pair.first].values, pair.first_by_second) for pair in found]
        table.add_row(str(i + 1), *[f"{x[i]:.3g}" if i < len(x) else "" for two in cells for x in two])
    return table


def subsample_table(entry: Subsample):
    """The table of eigenvalues on fewer examples."""
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


def cost_table(results: Sequence[CompareResult]):
    """The table of costs."""
    table = new_table("", "products", "time (s)", "setup (s)", "converged")
    for r in results:
        table.add_row(r.curvature, *cost_cells(r))
    return table


def distance_table(pairs: Sequence[Pair]):
    """The table of distances and cosines of each pair."""
    keys = {"distance": "distance", "cosine": "cosine", "scale c*": "scale", "at that scale": "scaled_distance"}

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
    """The first matrix's eigenvalues beside what the others make of its eigenvectors."""
    first: CompareResult = record.results[0]
    others = [pair for pair in record.pairs or [] if pair.first == first.curvature and not pair.held_out]
    table = new_table("", first.curvature, *[pair.second for pair in others])
    columns = [first.values, *(pair.first_by_second for pair in others)]  # the latter short where not finite
    for i, numbers in enumerate(list(zip_longest(*columns))[:MOST_RANKS]):
        table.add_row(str(i + 1), *["" if number is None else f"{number:.4g}" for number in numbers])
    return table


def pair_table(pairs: Sequence[Pair], columns: Sequence[str], cells: Callable[[Pair], list[str]]):
    """A line for each pair, under one for its first matrix."""
    table = new_table("A / B", *columns)
    for first in dict.fromkeys(pair.first for pair in pairs):
        table.add_row(first)
        for pair in (pair for pair in pairs if pair.first == first):
            table.add_row(f" {'held out' if pair.held_out else pair.second}", *cells(pair))
    return table


def estimate(found: Estimate | None) -> str:
    """An estimate with its error, where that is known."""
    if found is None:
        return ""
    error = found.standard_error
    return brief(found.value, math.nan if error is None else error)
