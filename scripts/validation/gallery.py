"""The rows of the gallery as a table in the terminal, as files, and as a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np

from scripts.validation.row import Row
from spectra.plots.files import save_figure
from spectra.plots.style import COLOURS, STYLE, Figure
from spectra.wording import counted, with_error

TITLES = {  # by module, in the order in which they are shown
    "spiked": "Outliers of spiked random matrices",
    "regression": "Linear regression: Marchenko-Pastur",
    "softmax": "Softmax regression at zero weights",
    "deep_linear": "Ranks of deep linear Hessians",
    "wide_networks": "The Fisher of wide random networks",
    "mup": "Sharpness and width",
    "batch_norm": "BatchNorm and outliers",
    "tiny_subspace": "Training in a tiny subspace",
    "edge_of_stability": "Edges of stability",
    "noise_scale": "Noise scale of linear regression",
    "empirical_fisher": "Fisher and empirical Fisher",
    "tangent_kernel": "The neural tangent kernel of wide ReLU networks",
    "evidence": "Evidence of Bayesian linear regression",
    "leave_one_out": "Influence in ridge regression",
    "surgeon": "Optimal brain surgeon and damage",
    "boltzmann": "Boltzmann machines of independent units",
    "equilibrium": "Linear fixed points",
    "trace_estimators": "Errors of trace estimators",
    "finite_differences": "Errors of finite differences",
}


def published(row: Row) -> str:
    """The published value, with its relation: `6.25`, `< 1`."""
    return f"{row.relation.replace('=', '')} {row.expected:.7g}".strip()


def found(row: Row) -> str:
    """The value found, with its error."""
    if row.error:
        return with_error(row.found, row.error, most=7, digits=1)
    return f"{row.found:.6g}"


def notable(row: Row) -> bool:
    """Whether the error of the theory is more than rounding."""
    return row.finite > 1e-6 * abs(row.expected)


def verdict(row: Row) -> str:
    return "yes" if row.agrees else "no"


def text(rows: dict[str, Sequence[Row]]) -> str:
    """The table for the terminal."""
    lines = []
    for name, some in rows.items():
        lines += ["", TITLES[name]]
        for row in some:
            theory = f" (theory ± {row.finite:.2g})" if notable(row) else ""
            told = f"{published(row) + theory:<24} {found(row):<18} {verdict(row)}"
            lines += [f"  {row.name}", f"    {told}"] if len(row.name) > 34 else [f"  {row.name:<34} {told}"]
    every = [row for some in rows.values() for row in some]
    agreeing = sum(row.agrees for row in every)
    return "\n".join([*lines, "", f"{agreeing} of {counted(len(every), 'row')} agree"]).strip("\n")


def save(rows: dict[str, Sequence[Row]], made: dict[str, Any], out: Path) -> None:
    """Write table.csv, table.json, the figure and the page."""
    out.mkdir(parents=True, exist_ok=True)
    listed = [{"group": name} | asdict(row) | {"agrees": row.agrees} for name, some in rows.items() for row in some]
    (out / "table.json").write_text(json.dumps({"made": made, "rows": listed}, indent=1) + "\n")
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
    with (out / "validation.png").open("wb") as file:
        save_figure(figure(rows), file, "png")
    (out / "README.md").write_text(page(rows, made))


def page(rows: dict[str, Sequence[Row]], made: dict[str, Any]) -> str:
    """The page, in Markdown."""
    every = [row for some in rows.values() for row in some]
    agreeing = sum(row.agrees for row in every)
    head = Path(__file__).with_name("page.md").read_text()
    parts = [head.format(agreeing=agreeing, count=len(every), **made)]
    for name, some in rows.items():
        parts.append(f"## {TITLES[name]}\n")
        for source in dict.fromkeys(row.source for row in some):
            same = [row for row in some if row.source == source]
            notes = "; ".join(dict.fromkeys(row.note for row in same))
            parts.append(f"{source[:1].upper()}{source[1:]}: {notes}.\n")
            parts.append(
                "| number | published | theory at this size ± | found | agrees |\n| --- | --- | --- | --- | --- |"
            )
            for row in same:
                finite = f"{row.finite:.2g}" if notable(row) else ""
                parts.append(f"| {row.name} | {published(row)} | {finite} | {found(row)} | {verdict(row)} |")
            parts.append("")
    return "\n".join(parts)


LABEL = """found / published value ± 2 standard errors
(grey: range of the theory at this size;
hollow: the published value is a bound)"""


def figure(rows: dict[str, Sequence[Row]]) -> Figure:
    """Draw found / published values: dots with two errors, bars for the range of the theory, hollow dots for bounds."""
    flat = [(name, row) for name, some in rows.items() for row in some]
    places, marks, place, last = [], [], 0.0, None
    for name, _ in flat:
        place += 1.0 if name == last or last is None else 2.2
        if name != last:
            marks.append((place - 0.95, TITLES[name]))
        places.append(place)
        last = name
    with matplotlib.style.context(STYLE):
        drawn = Figure(figsize=(6.5, 0.17 * (place + 4)), layout="constrained")
        axes = drawn.subplots()
        axes.axvline(1.0, color="0.6", linewidth=0.8, zorder=1)
        for at, (_, row) in zip(places, flat, strict=True):
            ratio, scale = row.found / row.expected, abs(row.expected)
            colour = COLOURS[0] if row.agrees else COLOURS[1]
            if row.relation == "=" and row.finite:
                axes.barh(at, 2 * row.finite / scale, left=1 - row.finite / scale, height=0.62, color="0.87", zorder=0)
            filled = colour if row.relation == "=" else "white"
            axes.errorbar(
                ratio,
                at,
                xerr=2 * row.error / scale,
                fmt="o" if row.agrees else "X",
                color=colour,
                mfc=filled,
                ms=4,
                elinewidth=1.2,
                zorder=3,
            )
        axes.set_yticks(places, [row.name for _, row in flat], fontsize=6.5)
        axes.tick_params(axis="y", length=0)
        for at, title in marks:
            axes.text(
                -0.02,
                at,
                title,
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                fontsize=7.5,
                weight="bold",
            )
        axes.set_ylim(place + 1, -1)
        axes.set_xlim(-0.05, max(1.3, 1.05 * np.max([row.found / row.expected for _, row in flat])))
        axes.set_xlabel(LABEL)
    return drawn
