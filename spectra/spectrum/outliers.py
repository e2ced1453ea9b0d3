"""Eigenvalues that stand apart from the bulk, read from a spectral measure, with the gap as evidence.

No bulk ends sharply, because its outermost eigenvalues are themselves some distance apart. So a gap counts if it is
wider than the span of the next `DEPTH` eigenvalues inside it. Going outwards from the bulk, everything beyond the first
such gap is an outlier. Onatski 2010, *Determining the number of factors from empirical distribution of eigenvalues*,
measures gaps by the edge law of random matrices, b - c j^(2/3); this rule assumes no law. At such an edge the outermost
gap takes at most a third of the span, and no gap counted in 900 random matrices of 150 to 300 rows. Of 2,000 samples of
2,000 independent eigenvalues, 3.5 % had a gap that counts for a uniform distribution, and 40 % for an exponential one;
0.05 % and 5 % had a gap above `CLEAR` spans. A heavy tail has no edge: if each eigenvalue is less than half of the one
before, all are outliers; if they fall as 1/j, only the first is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from spectra.krylov.results import SpectralMeasure, as_cpu_float64
from spectra.records.density import DEPTH
from spectra.spectrum.curves import NOISE

# Nodes of independent probes that differ by less than both are one converged eigenvalue.
AGREED = 8 * NOISE  # of the largest |eigenvalue|
SHARP = 0.01  # of the distance to the next node


@dataclass(frozen=True)
class End:
    """One end of a spectrum, in units of the eigenvalues."""

    count: int  # of outliers
    count_error: float  # standard error over probes; 0.0 if each outlier was deflated
    edge: float  # the bulk's outermost value
    edge_error: float  # the range of the edge over probes; 0.0 if it is a converged eigenvalue
    smallest: float | None  # the outlier next to the bulk; None if there is none
    gap: float | None  # between the two, positive
    span: float  # of the next DEPTH eigenvalues inside the edge; no less than the local spacing of nodes
    ratio: float | None  # (gap - edge_error) / span, above 1; without outliers the largest one found, or None


@dataclass(frozen=True)
class Outliers:
    """The outliers above and those below the bulk."""

    above: End
    below: End

    @property
    def count(self) -> int:
        """The number of outliers at both ends together."""
        return self.above.count + self.below.count


def outliers(measure: SpectralMeasure) -> Outliers:
    """Count the eigenvalues that are separated from the bulk at either end, without further products.

    Outliers are converged eigenvalues: those deflated beforehand, and nodes on which all probes agree, which count by
    their weight, as copies of a multiple eigenvalue do. Nodes agree if they differ by no more than the noise of the
    products, and a gap as narrow as that does not count. Eigenvalues that the steps do not resolve are counted as bulk,
    so take several times as many steps as there may be outliers. Raises ValueError if nodes are not finite.
    """
    if not measure.nodes.isfinite().all():
        raise ValueError("the nodes of the measure are not finite, so its outliers are unknown")
    below = _end(measure, -1)
    return Outliers(_end(measure, 1), replace(below, edge=-below.edge, smallest=below.smallest and -below.smallest))


def leading_eigenvalues(measure: SpectralMeasure) -> np.ndarray:
    """The converged eigenvalues above rounding and above all unconverged nodes, falling, with copies repeated."""
    points = _points(measure, 1)
    edge = max((row[0] for row in points.rest if len(row)), default=-math.inf)
    beyond = points.resolved > max(edge, points.noise)
    return np.repeat(points.resolved[beyond], points.counts[beyond].astype(int))[::-1]


class _Points(NamedTuple):
    """The single eigenvalues that a measure resolves, seen from the upper end."""

    resolved: np.ndarray  # (r,) converged eigenvalues, rising
    counts: np.ndarray  # (r,) the multiplicity of each
    variances: np.ndarray  # (r,) of the counts
    rest: list[np.ndarray]  # the other nodes of each probe, falling
    weights: list[np.ndarray]  # their weights, as numbers of eigenvalues
    noise: float  # differences below it mean nothing


def _end(measure: SpectralMeasure, sign: int) -> End:
    """The upper end of the spectrum of `sign` times the matrix."""
    points = _points(measure, sign)
    edge, error = _edge(points)
    met = []
    for value in points.resolved[points.resolved > edge]:  # from the bulk outwards
        gap, span = float(value) - edge, max(_span(points, edge), points.noise)
        beyond = points.resolved >= value
        count = int(points.counts[beyond].sum())
        if gap > points.noise and 2 * count < measure.dimension:  # else the bulk is beyond the gap
            met.append((gap - error) / span)
            if met[-1] > 1:
                count_error = float(points.variances[beyond].sum() ** 0.5)
                return End(count, count_error, edge, error, float(value), gap, span, met[-1])
        edge, error = float(value), 0.0
    return End(0, 0.0, edge, error, None, None, _span(points, edge), max(met, default=None))


def _points(measure: SpectralMeasure, sign: int) -> _Points:
    nodes = sign * as_cpu_float64(measure.nodes).numpy()
    weights = measure.dimension * as_cpu_float64(measure.weights).numpy()
    known, noise = measure.deflated, max(AGREED * np.abs(nodes).max(), measure.noise)
    rows = [_merged(*row, noise) for row in zip(nodes[:, known:], weights[:, known:], strict=True)]
    agreed = _agreed([row for row, _ in rows], noise)
    copies = np.array([mass[:agreed] for _, mass in rows])
    resolved = np.concatenate([nodes[0, :known], rows[0][0][:agreed]])
    counts = np.concatenate([np.ones(known), copies.mean(axis=0).round().clip(min=1)])
    order = np.argsort(resolved, kind="stable")
    single = counts == 1  # these counts have no error
    variances = np.concatenate([np.zeros(known), copies.var(axis=0) / max(1, len(rows) - 1)]) * ~single
    rest, left = ([row[i][agreed:] for row in rows] for i in (0, 1))
    return _Points(resolved[order], counts[order], variances[order], rest, left, noise)


def _merged(nodes: np.ndarray, weights: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of one probe, falling, with nodes that differ only by rounding merged; and their weights."""
    order = np.argsort(-nodes, kind="stable")
    order = order[weights[order] > 0]
    firsts = np.flatnonzero(np.diff(nodes[order], prepend=math.inf) < -noise)
    return nodes[order][firsts], np.add.reduceat(weights[order], firsts) if len(firsts) else weights[order]


def _agreed(rows: list[np.ndarray], noise: float) -> int:
    """The number of first nodes on which all probes agree; 0 for a single probe, which proves nothing."""
    if len(rows) < 2:
        return 0
    shortest = min(map(len, rows))
    firsts = np.stack([row[:shortest] for row in rows])
    spread, nexts = np.ptp(firsts, axis=0), -np.diff(firsts.max(axis=0), append=-math.inf)
    differing = np.flatnonzero((spread > noise) | (spread > SHARP * nexts))
    return int(differing[0]) if len(differing) else shortest


def _edge(points: _Points) -> tuple[float, float]:
    """The first edge to try, with its range over probes: the outermost unconverged node, or the median without one."""
    ends = [row[0] for row in points.rest if len(row)]
    if ends:
        return float(max(ends)), float(max(ends) - min(ends))
    below = np.cumsum(points.counts)
    return float(points.resolved[np.searchsorted(below, below[-1] / 2)]), 0.0


def _span(points: _Points, edge: float) -> float:
    """The width of the next DEPTH eigenvalues inside the edge, over all probes, and at least the spacing of nodes."""
    probes = len(points.rest)
    values = np.concatenate([points.resolved, *points.rest])
    counts = np.concatenate([points.counts, *(mass / probes for mass in points.weights)])
    order = np.argsort(-values, kind="stable")
    order = order[values[order] <= edge]
    passed = np.cumsum(counts[order]) - 1  # without the edge itself
    reached = values[order][min(np.searchsorted(passed, DEPTH), len(order) - 1)]
    return float(max(edge - reached, _spacing(points, edge)))


def _spacing(points: _Points, edge: float) -> float:
    """The distance to the next node inside the edge, averaged over probes; zero if everything inside is converged."""
    nearest = max(points.resolved[points.resolved < edge], default=-math.inf)
    nexts = [max(nearest, row[row < edge].max(initial=-math.inf)) for row in points.rest if (row < edge).any()]
    return edge - float(np.mean(nexts)) if nexts else 0.0
