"""What is shown: measurements as entries of the JSON record and as tables of 80 columns."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from spectra.quoting import NAME, escaped, quoted, readable
from spectra.spectrum.curves import NOISE, cumulative
from spectra.wording import counted, with_error

WIDTH = 80
FIRST = 60  # characters of a name that leave room for the numbers behind it
UNPROVEN = (
    "unproven: a short search of the rest of the space found no eigenvalue that was missed, as a second copy of one "
    "would be, but cannot exclude it with 99 %"
)
LARGEST_VECTORS = 2**30  # bytes of eigenvectors written without being asked for


def eig_results(found: Sequence[Any], method: str) -> list[dict[str, Any]]:
    return [
        {
            "curvature": m.curvature,
            "method": method,
            "eigenvalues": m.answer.values.tolist(),
            "residuals": m.answer.residuals.tolist(),
            "error_estimates": m.answer.error_estimates.tolist(),
            "complete": m.answer.complete,
            **m.cost(),
        }
        for m in found
    ]


def eig_arrays(found: Sequence[Any], save_vectors: bool) -> dict[str, np.ndarray]:
    """Values, residuals and, up to 1 GiB or when asked, eigenvectors (k, n), named `<what>_<matrix>`."""
    arrays = {}
    for m in found:
        arrays[f"eigenvalues_{m.curvature}"] = m.answer.values.numpy()
        arrays[f"residuals_{m.curvature}"] = m.answer.residuals.numpy()
    if save_vectors or sum(m.answer.vectors.nbytes for m in found) <= LARGEST_VECTORS:
        arrays |= {f"eigenvectors_{m.curvature}": m.answer.vectors.cpu().numpy() for m in found}
    return arrays


def trace_results(found: Sequence[Any], method: str) -> list[dict[str, Any]]:
    return [
        {
            "curvature": m.curvature,
            "method": method,
            "trace": m.answer.value,
            "standard_error": m.answer.standard_error,
            **m.cost(),
        }
        for m in found
    ]


def density_results(found: Sequence[Any], figure: Path | None) -> list[dict[str, Any]]:
    return [
        {
            "curvature": m.curvature,
            "method": "stochastic lanczos quadrature",
            "nodes": m.answer.nodes.tolist(),
            "weights": m.answer.weights.tolist(),
            "dimension": m.answer.dimension,
            "deflated": m.answer.deflated,
            "negative": negative_share(m.answer, m.semidefinite),
            "figure": str(figure) if figure else None,
            **m.cost(),
        }
        for m in found
    ]


def negative_share(measure: Any, semidefinite: bool) -> dict[str, float] | None:
    """The share of eigenvalues below zero by more than rounding, between its 95 % limits; zero by definition, if so."""
    if not measure.nodes.isfinite().all():
        return None
    if semidefinite:
        return {"value": 0.0, "lower": 0.0, "upper": 0.0}
    # Beyond rounding, and the rounding that the limits of a measure known exactly leave to either side.
    rounding = 2 * NOISE * measure.nodes.abs().max().item()
    band = cumulative(measure, np.nextafter([-rounding], -np.inf))
    return {"value": band.value.item(), "lower": band.lower.item(), "upper": band.upper.item()}


def density_arrays(found: Sequence[Any]) -> dict[str, np.ndarray]:
    nodes = {f"nodes_{m.curvature}": m.answer.nodes.numpy() for m in found}
    return nodes | {f"weights_{m.curvature}": m.answer.weights.numpy() for m in found}


def eig_text(record: dict[str, Any]) -> str:
    return rendered(*eig_parts(readable(record)))


def eig_parts(record: dict[str, Any]) -> list[str | Table]:
    """Eigenvalues of all matrices side by side; below them cost and quality."""
    results = record["results"]
    tables = []
    for first in range(0, len(results), 3):  # as many matrices as fit 80 columns
        some = results[first : first + 3]
        table = new_table("", *[r["curvature"] for r in some])
        for i in range(max(len(r["eigenvalues"]) for r in some)):
            table.add_row(str(i + 1), *[eigenvalue_cell(r, i) for r in some])
        tables.append(table)
    notes = new_table("", "products", "s", "set-up s", "converged", "nothing missed")
    for r in results:
        notes.add_row(r["curvature"], *cost_cells(r), {True: "yes (99 %)", False: "unproven", None: "-"}[r["complete"]])
    meaning = "eigenvalue ± residual |Au - λu|: a true eigenvalue lies within, but for rounding"
    unproven = any(r["complete"] is False for r in results)
    return [heading(record), meaning, *tables, notes, *([UNPROVEN] if unproven else []), *remarks(record)]


def percentage(share: dict[str, float] | None) -> str:
    """`26 (13-69)`, in per cent."""
    if share is None:
        return ""
    value, lower, upper = (100 * share[key] for key in ("value", "lower", "upper"))
    return f"{value:.0f} ({lower:.0f}-{upper:.0f})" if upper else "0"


def eigenvalue_cell(result: dict[str, Any], i: int) -> str:
    values = result["eigenvalues"]
    return with_error(values[i], result["residuals"][i]) if i < len(values) else ""


def trace_text(record: dict[str, Any]) -> str:
    return rendered(*trace_parts(readable(record)))


def trace_parts(record: dict[str, Any]) -> list[str | Table]:
    table = new_table("", "trace", "products", "s", "set-up s", "converged")
    for r in record["results"]:
        table.add_row(r["curvature"], with_error(r["trace"], r["standard_error"]), *cost_cells(r))
    return [heading(record), "trace ± standard error", table, *remarks(record)]


def density_parts(record: dict[str, Any], *more: str | Table) -> list[str | Table]:
    """The distribution of each matrix; below it `more`, of the same measures."""
    table = new_table("", "min", "max", "mean", "% < 0", "products")
    for r in record["results"]:
        nodes, weights = np.array(r["nodes"]), np.array(r["weights"])
        held = nodes[weights != 0]
        means = (weights * nodes).sum(1)
        table.add_row(
            r["curvature"],
            f"{held.min():.2g}",
            f"{held.max():.3g}",
            with_error(means.mean(), standard_error(means), most=4, digits=1),
            percentage(r["negative"]),
            str(r["products"]),
        )
    probes = len(record["results"][0]["nodes"])
    figure = record["results"][0]["figure"] or "no figure"
    note = f"{figure}: {counted(probes, 'probe')}; mean ± standard error; share below 0 (95 %)"
    return [heading(record), note, table, *more, *remarks(record)]


def heading(record: dict[str, Any]) -> str:
    problem = record["problem"]
    model, checkpoint, data, loss = (quoted(problem[name]) for name in ("model", "checkpoint", "data", "loss"))
    where = checkpoint if problem["checkpoint"] else f"{model}, as built with seed {problem['seed']}"
    chosen, total = problem["parameters"], problem.get("parameters_in_all", problem["parameters"])
    some = f"{chosen:,} of " if total > chosen else ""
    transform = f" ({quoted(problem['transform'])})" if problem["transform"] else ""
    return (
        f"{where} on {data}{transform}: "
        f"{some}{counted(total, 'parameter')}, {counted(problem['examples'], 'example')}, "
        f"{loss} {problem['loss_value']:.4g}"
    )


def remarks(record: dict[str, Any]) -> list[str]:
    """What a reader of the numbers has to know besides."""
    problem = record["problem"]
    size, examples = problem["batch_size"], problem["examples"]
    lines = [
        f"{r['curvature']}: {counted(r['projected_out'], 'eigenpair')} of {r['projected_from']} projected out"
        for r in record["results"]
        if "projected_out" in r
    ]
    if any(r["curvature"] == "fisher-batch" for r in record["results"]):
        split = f"batches of {size} of {counted(examples, 'example')}"
        lines.append(f"fisher-batch depends on the split: here {split} (--batch-size)")
    lines += [
        f"{r['curvature']}: derivatives are not compared with differences: {check['not_checked']}"
        for r in record["results"]
        if (check := r.get("derivative_check")) and check["not_checked"]
    ]
    lines += problem.get("notes", [])
    return ["", *lines] if lines else []


def figure_lines(record: dict[str, Any]) -> list[str]:
    """Where the figures are, below all else."""
    return ["", *[quoted(path, None) for path in record["figures"]]] if record["figures"] else []


def cost_cells(result: dict[str, Any]) -> list[str]:
    return [
        str(result["products"]),
        f"{result['seconds']:.2f}",
        f"{result['setup_seconds']:.2f}",
        "yes" if result["converged"] else "no",
    ]


def standard_error(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.nan


def new_table(*columns: str) -> Table:
    table = Quoted(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for i, column in enumerate(columns):
        table.add_column(
            quoted(column), justify="right" if i else "left", no_wrap=not i, overflow="fold"
        )  # wraps, uncut
    return table


class Quoted(Table):
    """A table whose cells may hold what others call things."""

    def add_row(self, *cells: str) -> None:
        super().add_row(*[quoted(cell, NAME if i else FIRST) for i, cell in enumerate(cells)])


def rendered(*parts: str | Table) -> str:
    """Parts one below the other, without trailing spaces."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print("\n".join(map(escaped, part.split("\n"))) if isinstance(part, str) else part)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
