"""What is shown of a landscape: entries of the JSON record, arrays, tables of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectra.quoting import readable
from spectra.records.files import finite
from spectra.surfaces.quadratic import SHARE
from spectra.surfaces.spread import QUANTILES
from spectra.tables.results import cost_cells, figure_lines, heading, new_table, remarks, rendered
from spectra.vectors import norm
from spectra.wording import brief

Entry = dict[str, Any]
MEANING = f"holds for t in theta + t d: departure within {100 * SHARE:.0f} % of the quadratic term"
SPREAD = "d'A_i d of single examples i; s/n: |mean| over standard deviation"


def landscape_results(found: Sequence[Any]) -> list[Entry]:
    """An entry for each matrix, of measurements whose answers are landscapes."""
    return [
        {
            "curvature": m.curvature,
            "method": "landscape",
            "loss": m.answer.point.loss,
            "gradient_norm": norm(m.answer.point.gradient),
            "parameter_norm": m.answer.point.norm,
            "directions": direction_entries(m.answer),
            "lines": [line_entry(name, line) for name, line in m.answer.lines.items()],
            "planes": [plane_entry(names, plane) for names, plane in m.answer.planes.items()],
            "spread": [spread_entry(name, *both) for name, both in m.answer.spread.items()] or None,
            "without_spread": m.answer.without or None,
            "evaluations": m.answer.evaluations,
            **m.cost(),
        }
        for m in found
    ]


def direction_entries(landscape: Any) -> list[Entry]:
    """`slope` g'd, `curvature` d'Ad; the residual bounds how far the latter is from the eigenvalue."""
    places = {name: i for i, name in enumerate(landscape.used)}
    model, found = landscape.model, []
    for name, d in landscape.directions.items():
        i = places.get(name)
        found.append(
            {
                "name": name,
                "kind": d.kind,
                "from": d.source,
                "eigenvalue": d.eigenvalue,
                "residual": d.residual,
                "norm": norm(d.vector),
                "slope": None if i is None else float(model.slopes[i]),
                "curvature": None if i is None else float(model.curvatures[i, i]),
            }
        )
    return found


def line_entry(name: str, line: Any) -> Entry:
    """Losses that were not finite are null, and so is the departure there."""
    numbers = {key: finite(getattr(line, key).tolist()) for key in ("t", "loss", "prediction", "departure")}
    return {"along": name, **numbers, "holds": {"share": SHARE, **line.holds._asdict()}}


def plane_entry(names: Sequence[str], plane: Any) -> Entry:
    """`loss` and `prediction` are rows, one for each y."""
    numbers = {key: finite(getattr(plane, key).tolist()) for key in ("x", "y", "loss", "prediction")}
    return {"along": list(names), "cosine": plane.cosine, **numbers}


def spread_entry(name: str, curvature: Any, slope: Any) -> Entry:
    both = {"curvature": curvature, "slope": slope}
    told = {key: vars(found) | {"signal_to_noise": found.signal_to_noise} for key, found in both.items()}
    return {"along": name, "quantiles_at": list(QUANTILES), **told}


def landscape_arrays(record: Entry) -> dict[str, np.ndarray]:
    """Coordinates, losses and predictions, named `<what>_<matrix>_<direction>[_<direction>]`; nan is not finite."""
    arrays = {}
    for entry in record["results"]:
        for part, keys in (("lines", ("t", "loss", "prediction")), ("planes", ("x", "y", "loss", "prediction"))):
            for found in entry[part]:
                along = [found["along"]] if part == "lines" else found["along"]
                for key in keys:
                    name = "_".join([key, entry["curvature"], *along]).replace(" ", "-")
                    arrays[name] = np.array(found[key], dtype=np.float64)
    return arrays


def landscape_text(record: Entry) -> str:
    return rendered(*landscape_parts(readable(record)), *figure_lines(record))


def landscape_parts(record: Entry) -> list[Any]:
    """Texts and tables: for each matrix its directions, then how curvature spreads over examples; then the cost."""
    results = record["results"]
    parts = [heading(record), sizes(results[0])]
    if any(entry["lines"] for entry in results):
        parts += [MEANING]
    for entry in results:
        parts += [f"\n{entry['curvature']}, directions d", direction_table(entry)]
        if entry["spread"]:
            parts += [f"{entry['curvature']}: {SPREAD}", spread_table(entry)]
    parts += [entry["without_spread"] for entry in results if entry["without_spread"]]
    parts += [plane_line(entry, plane) for entry in results for plane in entry["planes"]]
    return [*parts, cost_table(results), *remarks(record)]


def sizes(entry: Entry) -> str:
    return f"|theta| {cell(entry['parameter_norm'])}, gradient norm {cell(entry['gradient_norm'])}"


def direction_table(entry: Entry) -> Any:
    reach = ["holds from", "to"] if entry["lines"] else []
    table = new_table("", "λ ± residual", "|d|", "slope g'd", "d'Ad", *reach)
    lines = {line["along"]: line for line in entry["lines"]}
    for d in entry["directions"]:
        value = "" if d["eigenvalue"] is None else brief(d["eigenvalue"], d["residual"])
        table.add_row(
            d["name"],
            value,
            *[cell(d[key]) for key in ("norm", "slope", "curvature")],
            *(range_cells(lines.get(d["name"])) if reach else []),
        )
    return table


def range_cells(line: Entry | None) -> list[str]:
    if line is None:
        return ["", ""]
    holds, first = line["holds"], line["t"][len(line["t"]) // 2 + 1]
    start, stop = (f"{holds[key]:.2g}" for key in ("start", "stop"))
    start = f"≤ {start}" if holds["to_the_start"] else start if holds["start"] else f"> {-first:.2g}"
    stop = f"≥ {stop}" if holds["to_the_end"] else stop if holds["stop"] else f"< {first:.2g}"
    return [start, stop]


def spread_table(entry: Entry) -> Any:
    table = new_table("", "mean ± s.e.", "s/n", "% < 0", "5 %", "median", "95 %", "slope s/n")
    for one in entry["spread"]:
        bend, slope = one["curvature"], one["slope"]
        at = dict(zip(one["quantiles_at"], bend["quantiles"], strict=True))
        table.add_row(
            one["along"],
            brief(bend["mean"], bend["standard_error"]),
            cell(bend["signal_to_noise"]),
            f"{100 * bend['negative']:.1f}",
            *[cell(at[q]) for q in (0.05, 0.5, 0.95)],
            cell(slope["signal_to_noise"]),
        )
    return table


def plane_line(entry: Entry, plane: Entry) -> str:
    """What a figure does not tell of a plane."""
    losses = [value for row in plane["loss"] for value in row if value is not None]
    lowest = f"{min(losses):.4g}" if losses else "none finite"
    first, second = plane["along"]
    return f"{entry['curvature']}, plane of {first} and {second}: cosine {plane['cosine']:.2g}, lowest loss {lowest}"


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def cost_table(results: Sequence[Entry]) -> Any:
    table = new_table("", "evaluations", "products", "s", "set-up s", "converged")
    for entry in results:
        table.add_row(entry["curvature"], str(entry["evaluations"]), *cost_cells(entry))
    return table
