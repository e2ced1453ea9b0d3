"""The threshold of stability of an optimizer, drawn as a line among eigenvalues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.lines import Line2D

from spectra.records.precondition import number

NEAR = 2.0  # times the largest eigenvalue: a threshold beyond would compress the rest of the figure
LOOK: dict[str, Any] = {"color": "0.3", "linestyle": (0, (4, 2)), "linewidth": 1.0, "zorder": 2}


def near(thresholds: Iterable[float | None], largest: float) -> list[float]:
    """The distinct thresholds that lie among eigenvalues up to `largest`, or not far above."""
    return sorted({value for value in thresholds if value is not None and 0 < value <= NEAR * largest})


def entries(thresholds: Iterable[float]) -> tuple[list[Line2D], list[str]]:
    """The handles and labels of a legend for these thresholds."""
    labels = [f"threshold of stability {number(value)}" for value in thresholds]
    return [Line2D([], [], **LOOK) for _ in labels], labels
