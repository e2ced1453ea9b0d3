"""What is shown of an evolution: the table as CSV and JSON, a short one of 80 columns, the figure's files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from spectra.plots.evolution import evolution_figure
from spectra.plots.style import save_figure
from spectra.quoting import quoted
from spectra.records.files import SCHEMA, prepare_directory, to_json, write_atomically
from spectra.sweeps.evolution import Evolution
from spectra.sweeps.rows import Row
from spectra.tables.results import new_table, percentage, rendered
from spectra.wording import with_error

MOST_LINES = 12  # of a matrix in the short table


def evolution_record(evolution: Evolution) -> dict[str, Any]:
    """The table as one JSON object: `rows` is a list of objects with the columns as keys."""
    return {
        "schema": SCHEMA,
        "command": "collect",
        "axis": evolution.axis,
        "learning_rate": evolution.learning_rate,
        "unfinished": list(evolution.unfinished),
        "notes": list(evolution.notes),
        "rows": [asdict(row) for row in evolution.rows],
    }


def evolution_csv(evolution: Evolution) -> str:
    """The table with one line of names; what does not apply is empty, numbers are written in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    words = {True: "true", False: "false"}
    writer.writerows([words[v] if isinstance(v, bool) else v for v in astuple(row)] for row in evolution.rows)
    return text.getvalue()


def evolution_files(evolution: Evolution, directory: Path) -> list[Path]:
    """table.csv, table.json, evolution.png and evolution.pdf, each replaced whole. Raises SpectraError."""
    prepare_directory(directory)
    figure = evolution_figure(evolution)
    writers = {
        "table.csv": lambda file: file.write(evolution_csv(evolution).encode()),
        "table.json": lambda file: file.write(f"{to_json(evolution_record(evolution))}\n".encode()),
        "evolution.png": lambda file: save_figure(figure, file, "png"),
        "evolution.pdf": lambda file: save_figure(figure, file, "pdf"),
    }
    for name, write in writers.items():
        write_atomically(directory / name, write)
    return [directory / name for name in writers]


def evolution_text(evolution: Evolution) -> str:
    return rendered(*evolution_parts(evolution))


def evolution_parts(evolution: Evolution) -> list[Any]:
    """One short table a matrix and seed, a line a checkpoint; of many the first and the last."""
    parts: list[Any] = []
    seeds = len({seed for _, seed in evolution.series()}) > 1
    for curvature, seed in evolution.series():
        name = quoted(curvature)
        parts += [f"{name}, seed {seed}" if seeds else name, short_table(evolution, curvature, seed)]
    return parts


def short_table(evolution: Evolution, curvature: str, seed: int):
    cells = {
        "λ1": one_of(evolution.select("eigenvalue", curvature=curvature, seed=seed, index=1)),
        "trace": one_of(evolution.select("trace", curvature=curvature, seed=seed)),
        "% < 0": one_of(evolution.select("negative_share", curvature=curvature, seed=seed)),
        "overlap": one_of(evolution.select("overlap_next", curvature=curvature, seed=seed)),
    }
    cells = {name: rows for name, rows in cells.items() if rows}
    if k := next((row.index for row in cells.get("overlap", {}).values()), None):
        cells[f"overlap, k = {k}"] = cells.pop("overlap")
    loss = one_of(evolution.select("loss", seed=seed))
    names = list(dict.fromkeys(row.checkpoint for row in evolution.rows if row.curvature == curvature))
    table = new_table(evolution.axis, "loss", *cells)
    for name in abridged(names):
        if name is None:
            table.add_row("...")
            continue
        step = next(row.step for row in evolution.rows if row.checkpoint == name)
        table.add_row(str(step), *[cell(rows.get(name)) for rows in (loss, *cells.values())])
    return table


def one_of(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.checkpoint: row for row in rows}


def abridged(names: Sequence[str]) -> list[str | None]:
    """None stands for those left out."""
    half = MOST_LINES // 2
    return [*names] if len(names) <= MOST_LINES else [*names[:half], None, *names[-half:]]


def cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return ""
    if row.quantity == "negative_share":
        return percentage({"value": row.value, "lower": row.lower, "upper": row.upper})
    if row.quantity == "overlap_next":
        return f"{row.value:.3f}" if row.converged else f"{row.value:.3f} (no gap)"
    return f"{row.value:.4g}" if row.error is None else with_error(row.value, row.error, most=6)
