"""The result of `spectra density` for one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra.records.entry import Entry
from spectra.records.fields import Matrix, Stored, stored, written
from spectra.records.summaries import Summaries

if TYPE_CHECKING:
    from spectra.krylov.results import SpectralMeasure

METHOD = "stochastic lanczos quadrature"
DEPTH = 10  # eigenvalues in a span: fewer vary too much by chance, more hide outliers near the bulk
CLEAR = 2.0  # spans: a larger gap is not due to chance in a heavy tail


@stored
class Share(Stored):
    """A share from 0 to 1, with its 95 % interval."""

    value: float
    lower: float
    upper: float


@stored
class End(Stored):
    """The outliers and the edge of the bulk at one end of a spectrum, from `spectrum.outliers`."""

    count: int  # of outliers
    count_error: float  # standard error over probes
    edge: float  # the bulk's outermost value
    edge_error: float
    smallest: float | None  # the outlier next to the bulk
    gap: float | None  # between the two
    span: float  # of the next DEPTH eigenvalues inside the edge
    ratio: float | None  # gap over span


@stored
class Outliers(Stored):
    """The eigenvalues that are separated from the bulk, at both ends of a spectrum."""

    classes: int | None  # of the loss, if it has classes
    above: End
    below: End


@stored
class EffectiveDimension(Stored):
    """The effective dimension tr A (A + damping I)^-1."""

    value: float
    standard_error: float | None  # over probes; None for one
    quadrature_error: float | None  # None for an indefinite matrix


def undamped(entry: DensityResult) -> bool:
    """Whether there is no damping; its fields are then left out."""
    return entry.damping is None


@stored
class DensityResult(Entry):
    """The spectral density of one matrix, as nodes and weights of each random vector (probe).

    Attributes:
        method: the method, stochastic Lanczos quadrature.
        nodes: the nodes (probes, steps), in units of the eigenvalues.
        weights: the weights of the nodes (probes, steps); those of a probe sum to 1.
        dimension: the number of rows n of the matrix.
        deflated: the number of leading nodes of every probe that are eigenvalues computed beforehand.
        negative: the share of eigenvalues below zero; None if a node is not finite.
        figure: the path of the figure; None if none was written.
        outliers: the eigenvalues that are separated from the bulk; None if a node is not finite.
        summaries: ranks, entropy, power law and Marchenko-Pastur edge, from `spectra.summarise`; None if a node is
            not finite, and for matrices of single examples.
        damping: the damping X, in units of the eigenvalues; None without damping.
        effective_dimension: the effective dimension tr A (A + X I)^-1; None without damping.
        condition: the condition number of A + X I; None without damping.

    The fields of all results, such as `converged`, `products` and `seconds`, are described in the base class
    `spectra.records.entry.Entry`.
    """

    method: str
    nodes: Matrix = field(metadata=written(array="nodes"))
    weights: Matrix = field(metadata=written(array="weights"))
    dimension: int
    deflated: int
    negative: Share | None
    figure: str | None
    outliers: Outliers | None = None
    summaries: Summaries | None = field(default=None, metadata=written(omitted=lambda entry: entry.summaries is None))
    damping: float | None = field(default=None, metadata=written(omitted=undamped))
    effective_dimension: EffectiveDimension | None = field(default=None, metadata=written(omitted=undamped))
    condition: float | None = field(default=None, metadata=written(omitted=undamped))

    def measure(self) -> SpectralMeasure:
        """Return these nodes and weights as a `SpectralMeasure`, as `spectra.summarise` takes it."""
        return measure_of(self)

    def summary(self) -> str:
        held = self.nodes[self.weights != 0]
        return f"{len(self.nodes)} probes, nodes from {held.min():.4g} to {held.max():.4g}"

    def table(self) -> list[dict[str, str]]:
        numbers = {"parameters": f"{self.dimension:,}", "probes": str(len(self.nodes)), "deflated": str(self.deflated)}
        if self.negative:
            low, high = self.negative.lower, self.negative.upper
            numbers["below zero"] = f"{self.negative.value:.1%} ({low:.1%} to {high:.1%})"
        if self.outliers:
            numbers["outliers"] = f"{self.outliers.above.count} above, {self.outliers.below.count} below"
        return [numbers]

    def png(self) -> bytes | None:
        if not (np.isfinite(self.nodes).all() and np.isfinite(self.weights).all()):
            return None
        # Figures are in a layer above this one, so they are imported by name, and only when one is shown.
        figure = resolve_name("spectra.plots.density:density_figure")({self.curvature: self.measure()})
        return figure._repr_png_()

    def _repr_png_(self) -> bytes | None:
        return self.png()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over the nodes of the quadrature with their weights, as dictionaries; probes count from 1."""
        for probe, pairs in enumerate(zip(self.nodes, self.weights, strict=True), start=1):
            for node, weight in zip(*(row.tolist() for row in pairs), strict=True):
                yield {"probe": probe, "node": node, "weight": weight}


def measure_of(entry: Any) -> SpectralMeasure:
    """The spectral measure of an entry with `nodes`, `weights`, `dimension` and `deflated`. Raises ValueError."""
    import torch

    from spectra.krylov.results import SpectralMeasure

    nodes, weights = entry.nodes, entry.weights
    if nodes.shape != weights.shape:
        raise ValueError("nodes and weights differ in number")
    return SpectralMeasure(
        torch.from_numpy(np.ascontiguousarray(nodes)),
        torch.from_numpy(np.ascontiguousarray(weights)),
        entry.dimension,
        entry.deflated,
        products=vars(entry).get("products", 0),
        noise=vars(entry).get("noise_norm") or 0.0,
        converged=vars(entry).get("converged", True),
    )


def measure_fields(measure: SpectralMeasure | None) -> dict[str, Any]:
    """The four fields that store a spectral measure."""
    if measure is None:
        return {"nodes": None, "weights": None, "dimension": None, "deflated": None}
    numbers = {"nodes": measure.nodes.numpy(), "weights": measure.weights.numpy()}
    return numbers | {"dimension": measure.dimension, "deflated": measure.deflated}
