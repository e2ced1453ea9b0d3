"""Tables of 80 columns on the outliers and the class structure of a spectrum, and the parts of `spectra density`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from spectra.records.compare import ClassStructure, CompareResult
from spectra.records.density import CLEAR, DEPTH, DensityResult, End
from spectra.records.record import Record
from spectra.tables.results import density_parts as distribution_parts
from spectra.tables.results import new_table
from spectra.tables.summaries import damped_table, summary_table

RULE = (
    "Outliers: number of eigenvalues above and below the bulk. Edge: the outermost value of the bulk. gap/span: the "
    f"gap at the edge, relative to the span of the next {DEPTH} eigenvalues inside."
)
INSIDE = (
    "Shares of the GGN's trace and eigenvalues from class means, cross-class means and within classes. Inside: |Pu|² "
    "of the eigenvector u in the span of the class means, and of both kinds of means (Papyan 2020)."
)


def outlier_table(results: Sequence[DensityResult | CompareResult]) -> list[Any]:
    """The table of outliers at both ends of each spectrum, and lines that compare their number with that of classes."""
    known = [(r.curvature, r.outliers) for r in results if r.outliers]
    table = new_table("", "above", "edge", "gap/span", "below", "edge", "gap/span")
    for name, found in known:
        table.add_row(name, *end_cells(found.above), *end_cells(found.below))
    lines = [
        f"{name}: {count} above, {beside_classes(count, classes)} (C = {classes} classes)"
        + (
            ""
            if found.above.ratio is None or found.above.ratio > CLEAR
            else f"; uncertain, as gap/span is below {CLEAR:g}"
        )
        for name, found in known
        if (classes := found.classes) and (count := found.above.count)
    ]
    return [RULE, table, *lines] if known else []


def beside_classes(count: int, classes: int) -> str:
    """A number of outliers compared with theory for C classes: `that is C - 1`, `between C and C (C - 1)`."""
    names = {classes**2: "C^2", classes * (classes - 1): "C (C - 1)", classes: "C", classes - 1: "C - 1"}
    if count in names:
        return f"that is {names[count]}"
    fewer = [number for number in names if number < count]
    more = [number for number in names if number > count]
    if not fewer:
        return f"fewer than {names[min(more)]}"
    return f"between {names[max(fewer)]} and {names[min(more)]}" if more else f"more than {names[max(fewer)]}"


def density_parts(record: Record) -> list[Any]:
    """Texts and tables of `spectra density`: distributions, outliers, summaries, and numbers of the damped matrix."""
    results = record.results
    return distribution_parts(record, *outlier_table(results), *summary_table(results), *damped_table(results))


def end_cells(end: End) -> list[str]:
    """The cells for one end of a spectrum."""
    ratio = end.ratio
    return [
        f"{end.count}" + (f" ± {end.count_error:.1g}" if end.count_error else ""),
        f"{end.edge:.2g}",
        "-" if ratio is None else f"{ratio:.2g}" if ratio < 1000 else ">1000",
    ]


def class_table(found: ClassStructure) -> list[Any]:
    """The table of the shares of the GGN's trace and leading eigenvalues that come from class means."""
    table = new_table("ggn", "eigenvalue", "class", "cross-class", "within", "inside class", "inside both")
    total, levels = found.trace, (found.class_trace, found.cross_trace, found.within_trace)
    shares = [100 * level / total if total else 0.0 for level in levels]
    table.add_row("trace", f"{total:.4g}", *[f"{share:.0f} %" for share in shares], "", "")
    for i, (value, parts, overlaps) in enumerate(
        zip(found.eigenvalues, found.attribution, found.overlaps, strict=True)
    ):
        percent = ["" if math.isnan(part) else f"{100 * part:.0f} %" for part in parts]  # nan for an eigenvalue of zero
        inside = ["" if math.isnan(overlap) else f"{overlap:.2f}" for overlap in overlaps]
        table.add_row(str(i + 1), f"{value:.4g}", *percent, *inside)
    return ["", INSIDE, table]
