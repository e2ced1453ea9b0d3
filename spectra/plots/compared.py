"""The figures of `spectra compare` again from its record: of a comparison, what they read of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from spectra.krylov.results import SpectralMeasure
from spectra.plots.comparison import comparison_figure
from spectra.plots.examples import held_out_figure, subsample_figure
from spectra.spectrum.estimates import Estimate

Entry = dict[str, Any]


def compare_figures(record: Entry) -> dict[str, Figure]:
    """By the names of their files; without those that had no finite numbers to show.

    Raises KeyError, TypeError or ValueError where the record is not whole.
    """
    own = [entry for entry in record["results"] if not entry["curvature"].endswith(", held out")]
    names = [entry["curvature"] for entry in own]
    again = {name: comparison(record, two) for name in names if len(two := both(record, name)) == 2}
    figures = {
        "compare": comparison_figure(comparison(record, own)),
        "compare-held-out": held_out_figure(again),
        "compare-subsample": subsample_figure([subsample(entry) for entry in record.get("subsample", [])]),
    }
    return {name: figure for name, figure in figures.items() if figure}


def both(record: Entry, name: str) -> list[Entry]:
    """A matrix on the data, and on those held out."""
    return [entry for entry in record["results"] if entry["curvature"] in (name, f"{name}, held out")]


def comparison(record: Entry, entries: Sequence[Entry]) -> SimpleNamespace:
    """What a figure reads of an `analysis.comparison.Comparison` of these matrices."""
    names = [entry["curvature"] for entry in entries]
    return SimpleNamespace(
        k=int(record["problem"]["options"]["k"]),
        dimension=int(record["problem"]["parameters"]),
        portraits={entry["curvature"]: portrait(entry) for entry in entries},
        pairs=[pair(found) for found in record["pairs"] if found["first"] in names and found["second"] in names],
    )


def portrait(entry: Entry) -> SimpleNamespace:
    values, residuals = (torch.from_numpy(numbers(entry[key], 1)) for key in ("eigenvalues", "residuals"))
    if values.shape != residuals.shape:
        raise ValueError(f"{len(values)} eigenvalues, {len(residuals)} residuals")
    return SimpleNamespace(eigenpairs=SimpleNamespace(values=values, residuals=residuals), measure=measure(entry))


def measure(entry: Entry) -> SpectralMeasure | None:
    if entry["nodes"] is None:
        return None
    nodes, weights = (torch.from_numpy(numbers(entry[key], 2)) for key in ("nodes", "weights"))
    if nodes.shape != weights.shape:
        raise ValueError("nodes and weights differ in number")
    return SpectralMeasure(nodes, weights, int(entry["dimension"]), int(entry["deflated"]))


def pair(entry: Entry) -> SimpleNamespace:
    return SimpleNamespace(
        first=str(entry["first"]),
        second=str(entry["second"]),
        distance=estimate(entry["distance"]),
        scaled_distance=estimate(entry["scaled_distance"]),
        agreements=[agreement(spaces) for spaces in entry["overlaps"]],
        first_by_second=numbers(entry["first_by_second"], 1),
    )


def agreement(spaces: Entry) -> SimpleNamespace:
    overlap, error = (number(spaces[key]) for key in ("overlap", "error"))
    return SimpleNamespace(j=int(spaces["j"]), overlap=overlap, error=error, told=bool(spaces["told"]))


def subsample(entry: Entry) -> Entry:
    """With nan for errors that are not known."""
    trends = [
        {key: estimate(trend[key])._asdict() for key in ("limit", "at_all")}
        | {"means": [estimate(mean)._asdict() for mean in trend["means"]]}
        for trend in entry["trends"]
    ]
    return entry | {"trends": trends}


def estimate(found: Entry) -> Estimate:
    return Estimate(number(found["value"]), number(found["standard_error"]))


def number(found: float | None) -> float:
    """Null is what is not finite, or not known."""
    return math.nan if found is None else float(found)


def numbers(found: Any, dimensions: int) -> np.ndarray:
    array = np.array(found, dtype=np.float64)
    if array.ndim != dimensions:
        raise ValueError(f"{array.ndim} dimensions of numbers, not {dimensions}")
    return array
