"""What is shown of outliers, of class structure and of a damped matrix: entries of the JSON record, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from spectra.krylov.results import SpectralMeasure
from spectra.records.files import finite
from spectra.spectrum.classes import ClassStructure
from spectra.spectrum.outliers import CLEAR, DEPTH, beside_classes, outliers
from spectra.spectrum.summaries import condition_number, effective_dimension
from spectra.tables.results import density_parts as distribution_parts
from spectra.tables.results import new_table
from spectra.wording import with_error

Entry = dict[str, Any]
RULE = f"outliers, by the gap against the span of the next {DEPTH} eigenvalues inside"


def outlier_entry(measure: SpectralMeasure | None, classes: int | None) -> Entry:
    """`outliers` `above` and `below` the bulk, and how many classes there are; None without finite nodes."""
    if measure is None or not measure.nodes.isfinite().all():
        return {"outliers": None}
    return {"outliers": {"classes": classes, **finite(asdict(outliers(measure)))}}


def damped_entry(measure: SpectralMeasure, damping: float | None, semidefinite: bool) -> Entry:
    """What tells of A + damping I: None unless that is positive definite; nothing without a damping."""
    if damping is None:
        return {}
    dimension = condition = None
    if measure.nodes.isfinite().all():
        dimension = effective_dimension(measure, damping, semidefinite)
        condition = condition_number(measure, damping, semidefinite)
    return {
        "damping": damping,
        "effective_dimension": finite(dimension._asdict()) if dimension else None,
        "condition": condition,
    }


def outlier_table(results: Sequence[Entry]) -> list[Any]:
    """Both ends of every matrix, and how their numbers compare with that of classes."""
    told = [(r["curvature"], r["outliers"]) for r in results if r.get("outliers")]
    table = new_table("", "above", "edge", "gap/span", "below", "edge", "gap/span")
    for name, found in told:
        table.add_row(name, *end_cells(found["above"]), *end_cells(found["below"]))
    lines = [
        f"{name}: {count} above, {beside_classes(count, classes)} (C = {classes} classes)"
        + ("" if found["above"]["ratio"] > CLEAR else f"; not clear: below {CLEAR:g} spans")
        for name, found in told
        if (classes := found["classes"]) and (count := found["above"]["count"])
    ]
    return [RULE, table, *lines] if told else []


def density_parts(record: Entry) -> list[Any]:
    """All that is shown of densities: distributions, outliers, and what a damping makes of them."""
    results = record["results"]
    return distribution_parts(record, *outlier_table(results), *damped_table(results))


def end_cells(end: Entry) -> list[str]:
    ratio = end["ratio"]
    return [
        f"{end['count']}" + (f" ± {end['count_error']:.1g}" if end["count_error"] else ""),
        f"{end['edge']:.2g}",
        "-" if ratio is None else f"{ratio:.2g}" if ratio < 1000 else ">1000",
    ]


def damped_table(results: Sequence[Entry]) -> list[Any]:
    """Effective dimension and condition number, where a damping was given."""
    told = [r for r in results if "damping" in r]
    if not told:
        return []
    table = new_table("", "effective dimension", "quadrature ±", "condition number")
    for r in told:
        found, condition = r["effective_dimension"], r["condition"]
        if found is None:
            table.add_row(r["curvature"], "-", "-", "-")
            continue
        error, rest = found["standard_error"], found["quadrature_error"]
        value = found["value"] if error is None else with_error(found["value"], error)
        table.add_row(
            r["curvature"],
            f"{value:.4g}" if error is None else value,
            "unknown" if rest is None else f"{rest:.1g}",
            f"{condition:.3g}",
        )
    lines = [
        f"{r['curvature']}: not positive definite with this damping; raise --damping"
        for r in told
        if r["effective_dimension"] is None
    ]
    return ["", f"with damping {told[0]['damping']:g}; ± standard error", table, *lines]


def class_entry(structure: ClassStructure) -> Entry:
    """`class_structure`: levels' traces, what means predict, and what each leading eigenvalue consists of."""
    found = {
        name: getattr(structure, name) for name in ("classes", "trace", "class_trace", "cross_trace", "within_trace")
    }
    arrays = ("class_eigenvalues", "mean_eigenvalues", "eigenvalues", "attribution", "overlaps")
    return {"class_structure": finite(found | {name: getattr(structure, name).tolist() for name in arrays})}


def class_table(entry: Entry) -> list[Any]:
    """How much of the trace and of each leading eigenvalue of the GGN comes from means of classes."""
    found = entry["class_structure"]
    table = new_table("ggn", "eigenvalue", "class", "cross-class", "within", "inside class", "inside both")
    total = found["trace"]
    shares = [100 * found[f"{level}_trace"] / total if total else 0.0 for level in ("class", "cross", "within")]
    table.add_row("trace", f"{total:.4g}", *[f"{share:.0f} %" for share in shares], "", "")
    for i, (value, parts, overlaps) in enumerate(
        zip(found["eigenvalues"], found["attribution"], found["overlaps"], strict=True)
    ):
        percent = ["" if part is None else f"{100 * part:.0f} %" for part in parts]  # of zero there are no parts
        inside = ["" if overlap is None else f"{overlap:.2f}" for overlap in overlaps]
        table.add_row(str(i + 1), f"{value:.4g}", *percent, *inside)
    note = "what class and cross-class means give; |Pu|² inside their spans (Papyan 2020)"
    return ["", note, table]
