"""Curves of a spectral measure: the cumulative distribution, which needs no bandwidth, and the smoothed density.

Only nodes and weights are used. Every length is relative to the spectrum itself, so that scaling a matrix by c scales
grids by c, densities by 1/c, and changes no fraction.

For probes that are uniform on the sphere of R^n, the squared coordinates of a probe in the eigenbasis are
Dirichlet(1/2, ..., 1/2), whatever the matrix. Hence v'f(A)v has mean tr f(A) / n and variance
2/(n+2) * (mean f^2 - (mean f)^2) over the eigenvalues. The bands below use this together with the spread of the probes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from spectra.krylov.results import SpectralMeasure, as_cpu_float64

# Kernel width over node spacing. On even nodes a Gaussian sum ripples by 2 exp(-2 pi^2 width^2) (Poisson
# summation): 5e-9 at 1, 1.4 % at 0.5; quadrature resolves nothing finer.
WIDTH = 1.0
NORMAL = 1.959964  # 97.5 % point of the normal distribution
KOLMOGOROV = 1.358099  # 95 % point of sup |Brownian bridge| (Smirnov 1948)
EPSILON = 1e-12  # of the mass of a probe: rounding of the sum of its weights
NOISE = float(np.finfo(np.float32).eps)  # of the largest |eigenvalue|; products are float32 by default
TAIL = 4.5  # kernel widths that a grid leaves beyond the outermost nodes: a mass of 7e-6 is cut


@dataclass(frozen=True)
class Band:
    """A curve on a grid with its 95 % limits; three arrays of the grid's shape."""

    grid: np.ndarray
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Fraction(NamedTuple):
    """A fraction of the eigenvalues with its 95 % limits."""

    value: float
    lower: float
    upper: float


def cms_bounds(nodes: np.ndarray, weights: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute rigorous bounds on mu((-inf, x]) for all measures mu with this Gauss quadrature: two arrays of x's shape.

    These are the Chebyshev-Markov-Stieltjes bounds (Szego 1939, section 3.41): the mass strictly before the node left
    of x, and the mass up to and including the node right of x. The mass beyond the outermost nodes (m,) falls fast:
    with p(y) = prod_{k>1} (y - x_k) / (x - x_k), p^2 >= 1 left of x < x_1, and its integral is the quadrature's,
    weight_1 p(x_1)^2. Weights of zero are padding.
    """
    held = weights > 0
    order = np.argsort(nodes[held], kind="stable")
    nodes, weights = nodes[held][order], weights[held][order]
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    lower = mass[np.maximum(np.searchsorted(nodes, x, side="right") - 1, 0)]
    upper = mass[np.minimum(np.searchsorted(nodes, x, side="left") + 1, nodes.size)]
    left, right = x < nodes[0], x > nodes[-1]
    upper[left] = weights[0] * _decay(nodes[0], nodes[1:], x[left])
    lower[right] = mass[-1] - weights[-1] * _decay(nodes[-1], nodes[:-1], x[right])
    return lower, upper


def _decay(end: float, others: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.prod(((end - others) / (x[:, None] - others)) ** 2, axis=1)


def cumulative(measure: SpectralMeasure, grid: np.ndarray) -> Band:
    """Compute the fraction of eigenvalues <= x, for x on `grid`, with a 95 % band for the whole curve.

    The mean of the probes' own distributions always lies between the means of their Chebyshev-Markov-Stieltjes bounds.
    Its deviation from the truth is random with a known law: sums of Dirichlet(1/2) coordinates have the covariance of
    a Brownian bridge in F, 2/(n+2) F(x)(1-F(y)), so with P probes sup |mean F_v - F| stays below Kolmogorov's
    1.358 * sqrt(2 / (P (n+2))) in 95 % of runs. This needs no bootstrap, and holds for a single probe and for all x at
    once. Deflated eigenvalues are exact, and so are the fractions 0 and 1 beyond the ends of a spectrum if every
    distinct eigenvalue is known. If noise of the products may have moved eigenvalues by e, the band at x includes those
    at x - e and x + e.
    """
    if measure.noise:
        exact = replace(measure, noise=0.0)
        lower, upper = cumulative(exact, grid - measure.noise).lower, cumulative(exact, grid + measure.noise).upper
        return Band(grid, cumulative(exact, grid).value, lower, upper)
    parts = _split(measure)
    atoms = np.searchsorted(np.sort(parts.atoms), grid, side="right") / measure.dimension
    bounds = _probe_bounds(parts, grid).mean(axis=0)
    lower, value, upper = atoms + bounds
    chance = np.full(len(grid), KOLMOGOROV * parts.share * parts.deviation)
    if parts.exact:  # no probe has any mass beyond, so that no eigenvalue lies there
        chance[(bounds[2] == 0) | (bounds[0] >= parts.share * (1 - EPSILON))] = 0
    most = np.minimum(atoms + parts.share, 1)
    return Band(grid, value, np.maximum(lower - chance, atoms), np.minimum(upper + chance, most))


def mass_near_zero(measure: SpectralMeasure, scale: float) -> Fraction:
    """Compute the fraction of eigenvalues in [-scale, scale]; its limits combine quadrature bounds and 95 % chance."""
    if measure.noise:
        exact = replace(measure, noise=0.0)
        inner, outer = (mass_near_zero(exact, scale + shift) for shift in (-measure.noise, measure.noise))
        least = inner.lower if scale > measure.noise else 0.0
        return Fraction(mass_near_zero(exact, scale).value, least, outer.upper)
    parts = _split(measure)
    atoms = np.count_nonzero(np.abs(parts.atoms) <= scale) / measure.dimension
    ends = np.array([np.nextafter(-scale, -np.inf), scale])
    (low_a, low_b), (a, b), (high_a, high_b) = _probe_bounds(parts, ends).mean(axis=0)
    lower, upper = max(0.0, low_b - high_a), min(parts.share, high_b - low_a)
    # An indicator's variance is that of a fraction; the bounds admit any between them, so take the largest.
    fraction = np.clip(0.5, lower / parts.share, upper / parts.share)
    chance = NORMAL * parts.share * parts.deviation * np.sqrt(fraction * (1 - fraction))
    limits = np.clip([atoms + lower - chance, atoms + upper + chance], 0, 1)
    return Fraction(float(atoms + b - a), float(limits[0]), float(limits[1]))


def density(measure: SpectralMeasure, grid: np.ndarray, width: float = WIDTH) -> Band:
    """Density (fraction of eigenvalues per unit of x) on an increasing `grid`, with a pointwise 95 % band.

    Each node becomes a Gaussian of `width` local node spacings (see `node_spacings`); deflated eigenvalues,
    which are exact, become Gaussians of one local grid step. No Gaussian is narrower than that, so that the
    curve integrates to one on its grid, whether that is even in x or in asinh x.

    The band is the mean over probes +- the larger of Student's interval from the probes and the normal interval from
    the a-priori variance (see the head of this file), which stabilises few probes and is the only one for a single
    probe. The band includes chance only, not what smoothing hides; for that, see `cumulative`.
    """
    parts = _split(measure)
    widths = width * node_spacings(parts.nodes, parts.weights)
    curves, squares = np.zeros((2, len(parts.nodes), grid.size))
    for probe, weights in enumerate(parts.weights):
        kernels = _gaussians(grid, parts.nodes[probe], widths[probe])
        curves[probe], squares[probe] = weights @ kernels, weights @ kernels**2
    mean = curves.mean(axis=0)
    variance = parts.share * squares.mean(axis=0) - mean**2
    chance = NORMAL * parts.deviation * np.sqrt(np.maximum(variance, 0))
    if (probes := len(curves)) > 1:
        spread = curves.std(axis=0, ddof=1) / probes**0.5
        chance = np.maximum(chance, student_quantile(probes - 1) * spread)
    atoms = _gaussians(grid, parts.atoms, np.zeros(parts.atoms.size)).sum(axis=0) / measure.dimension
    value = mean + atoms
    return Band(grid, value, np.maximum(value - chance, 0), value + chance)


def node_spacings(nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The distance between neighbouring Gauss nodes around each of `nodes` (probes, steps), in the same shape.

    m nodes on centre +- half tend to the arcsine law (zeros of orthogonal polynomials): with
    t = (x - centre) / half they lie half * pi sqrt(1 - t^2) / m apart, and half * (pi/m)^2 at the two ends.
    Where mass is concentrated, as around zero in a network's spectrum, nodes are denser than this law says, so the
    spacing is at most the mean distance to the two neighbours in the same row.
    """
    held = weights > 0
    low, high = nodes[held].min(), nodes[held].max()
    centre, half = (low + high) / 2, (high - low) / 2
    t = (nodes - centre) / half if half > 0 else np.zeros_like(nodes)
    step = np.minimum(np.pi / held.sum(axis=1, keepdims=True), 1)
    spacings = half * step * np.maximum(np.sqrt(np.clip(1 - t**2, 0, 1)), step)
    for row, row_held in enumerate(held):
        if row_held.sum() > 2:
            order = np.flatnonzero(row_held)[np.argsort(nodes[row, row_held])]
            gaps = np.pad(np.gradient(nodes[row, order])[1:-1], 1, mode="edge")
            spacings[row, order] = np.minimum(spacings[row, order], gaps)
    return spacings


def linear_grid(measures: Iterable[SpectralMeasure], points: int = 1001) -> np.ndarray:
    """Make an even grid that covers the densities of all `measures`, with room around a spectrum of one point."""
    return _even(*_reach(measures), points)


def asinh_grid(measures: Iterable[SpectralMeasure], scale: float, points: int = 1001) -> np.ndarray:
    """Make a grid that is even in asinh(x / scale): linear within `scale` of zero, logarithmic beyond."""
    low, high = np.arcsinh(np.array(_reach(measures)) / scale)
    return scale * np.sinh(_even(low, high, points))


def asinh_scale(measures: Iterable[SpectralMeasure]) -> float:
    """The scale below which a logarithmic axis is linear: the 10 % quantile of |node|, within limits.

    The quantile is over the bulk nodes of all measures, each counted once. Quadrature resolves little below the nodes
    nearest to zero, so a smaller scale would spread a few nodes over many decades. The limits are float32's epsilon
    times the largest |eigenvalue|, below which signs mean nothing, and a tenth of that eigenvalue, so that there is a
    decade to show. The scale of a zero matrix is 1.
    """
    splits = [_split(measure) for measure in measures]
    bulk = np.abs(np.concatenate([parts.nodes[parts.weights > 0] for parts in splits]))
    largest = max(bulk.max(), *(np.abs(parts.atoms).max(initial=0) for parts in splits))
    return float(np.clip(np.quantile(bulk, 0.1), NOISE * largest, 0.1 * largest)) or 1.0


def wasserstein(nodes_a: np.ndarray, weights_a: np.ndarray, nodes_b: np.ndarray, weights_b: np.ndarray) -> float:
    """Compute the Wasserstein-1 distance, the integral of |F_a - F_b|, of discrete measures, in units of the nodes.

    Arrays may have any shape, such as (probes, steps); each measure is scaled to mass 1.
    """
    nodes_a, weights_a, nodes_b, weights_b = (
        np.asarray(values, dtype=np.float64).ravel() for values in (nodes_a, weights_a, nodes_b, weights_b)
    )
    nodes = np.concatenate([nodes_a, nodes_b])
    signed = np.concatenate([weights_a / weights_a.sum(), -weights_b / weights_b.sum()])
    order = np.argsort(nodes, kind="stable")
    return float(np.abs(np.cumsum(signed[order])[:-1]) @ np.diff(nodes[order]))


def student_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution."""
    from scipy.special import stdtrit  # takes 0.3 s to import, which tables do not need

    return float(stdtrit(freedom, 0.975))


def known_exactly(measure: SpectralMeasure) -> bool:
    """Whether nodes and weights are the exact distribution of each probe, and not a quadrature of it."""
    return _split(measure).exact


class _Parts(NamedTuple):
    atoms: np.ndarray  # (k,) deflated eigenvalues, each of weight 1/n
    nodes: np.ndarray  # (probes, steps) of the rest; padding repeats a node that has weight
    weights: np.ndarray  # (probes, steps), each row summing to `share`
    share: float  # (n - k) / n
    deviation: float  # sqrt(2 / (P (n-k+2))), see the head of this file
    exact: bool  # each row is its probe's exact distribution, not a quadrature of it
    noise: float  # below this, differences of eigenvalues mean nothing


def _split(measure: SpectralMeasure) -> _Parts:
    nodes, weights = as_cpu_float64(measure.nodes).numpy(), as_cpu_float64(measure.weights).numpy()
    known, remaining = measure.deflated, measure.dimension - measure.deflated
    atoms, bulk, weights = nodes[0, :known], nodes[:, known:], weights[:, known:]
    if remaining == 0:  # the whole spectrum is known: one probe without chance
        every = np.full((1, known), 1 / known)
        return _Parts(atoms[:0], atoms[None], every, share=1.0, deviation=0.0, exact=True, noise=0.0)
    heaviest = np.take_along_axis(bulk, weights.argmax(axis=1, keepdims=True), axis=1)
    bulk = np.where(weights > 0, bulk, heaviest)
    deviation = (2 / (measure.probes * (remaining + 2))) ** 0.5
    noise = NOISE * np.abs(np.append(bulk, atoms)).max()
    exact = _ended_exactly(bulk, weights > 0, noise)
    return _Parts(atoms, bulk, weights, remaining / measure.dimension, deviation, exact, noise)


def _ended_exactly(nodes: np.ndarray, held: np.ndarray, noise: float) -> bool:
    """Whether the quadrature has no error, which is seen from independent probes that share all their nodes.

    A node that two random probes agree on has converged to an eigenvalue; where all have, the Krylov space is
    invariant (low rank, as many steps as dimensions) and nodes and weights are the measure. One probe is enough
    for a zero matrix.
    """
    if not nodes.any():
        return True
    if len(nodes) < 2 or (held != held[0]).any():
        return False
    return bool((np.ptp(np.sort(nodes, axis=1), axis=0) <= noise).all())


def _probe_bounds(parts: _Parts, x: np.ndarray) -> np.ndarray:
    """Lower bound, value and upper bound of each probe's own distribution at x: (probes, 3, points)."""
    return np.stack([_bounds(*row, x, parts) for row in zip(parts.nodes, parts.weights, strict=True)])


def _bounds(nodes: np.ndarray, weights: np.ndarray, x: np.ndarray, parts: _Parts) -> np.ndarray:
    value = _steps(nodes, weights, x)
    if parts.exact:
        lower, upper = (_steps(nodes, weights, x + shift) for shift in (-parts.noise, parts.noise))
    else:
        lower, upper = cms_bounds(nodes, weights, x)
    return np.stack([lower, value, upper])


def _steps(nodes: np.ndarray, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    order = np.argsort(nodes, kind="stable")
    mass = np.concatenate([[0.0], np.cumsum(weights[order])])
    return mass[np.searchsorted(nodes[order], x, side="right")]


def _gaussians(grid: np.ndarray, centres: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Normal densities on `grid`, one row a centre, none narrower than the grid's own step there."""
    widths = np.maximum(widths, np.interp(centres, grid, np.gradient(grid)))[:, None]
    return np.exp(-0.5 * ((grid - centres[:, None]) / widths) ** 2) / (widths * (2 * np.pi) ** 0.5)


def _reach(measures: Iterable[SpectralMeasure]) -> tuple[float, float]:
    """The interval that contains all eigenvalues and kernels of the measures; never empty."""
    ends = []
    for parts in map(_split, measures):
        reach = TAIL * WIDTH * node_spacings(parts.nodes, parts.weights)
        ends += [parts.nodes - reach, parts.nodes + reach, parts.atoms]
    ends = np.concatenate([values.ravel() for values in ends])
    low, high, largest = ends.min(), ends.max(), np.abs(ends).max()
    if high - low > NOISE * largest:
        return low, high
    return low - (largest or 1.0), high + (largest or 1.0)


def _even(low: float, high: float, points: int) -> np.ndarray:
    room = max(0.06, (TAIL + 1) / points) * (high - low)
    return np.linspace(low - room, high + room, points)
