"""Tables as rows: their files, which rows, their spread over seeds, and the slopes of power laws."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Row = dict[str, Any]


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def spread(rows: Iterable[Row], by: str, number: Callable[[Row], float]) -> tuple[list, list, list, list]:
    """Values of `by`, rising, and for each the least, the median and the largest number."""
    found = defaultdict(list)
    for row in rows:
        found[row[by]].append(number(row))
    values = sorted(found)
    return values, [min(found[v]) for v in values], [median(found[v]) for v in values], [max(found[v]) for v in values]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through (log x, log y)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def write(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)


def read(path: Path) -> list[Row]:
    """Rows of a table, numbers as numbers; empty fields are left out."""
    with path.open(newline="") as file:
        return [{name: value(text) for name, text in row.items() if text} for row in csv.DictReader(file)]


def value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
