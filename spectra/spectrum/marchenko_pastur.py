"""Fit of the Marchenko-Pastur distribution to the bulk of a spectrum, and a test of the fit.

It is the eigenvalue distribution of XX'/m for large X (n, m) with independent entries of variance v, with q = n/m:
eigenvalues lie between v (1 - sqrt q)^2 and v (1 + sqrt q)^2, and for q > 1 a share 1 - 1/q of them is zero. The mean
is v, and tr A^2 / n is v^2 (1 + q). Quadrature has no error in these two, which determine v and q. The test uses the
third moment, v^3 (1 + 3 q + q^2), and the distribution, which must lie in the 95 % band.

A symmetric bulk has a third central moment of zero, and differs by q^2 v^3. If chance leaves more room than a part of
that, as with one or two probes, wrong bulks would often pass; then nothing is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spectra.errors import ArgumentError
from spectra.krylov.results import SpectralMeasure
from spectra.spectrum.curves import NOISE, cumulative
from spectra.spectrum.outliers import End, outliers
from spectra.spectrum.ranks import Summary, refuse_indefinite, refuse_zero, rounding, single, summary

POINTS = 2001  # at which distributions are compared
STRAY = 5.0  # eigenvalues by which those of a random matrix deviate from the distribution: at most 5.3 in 760 matrices
CHANCE = 3.0  # standard errors
FEWEST = 5  # eigenvalues above zero; there are n / q of them for q > 1
ALIKE = 0.02  # of the eigenvalues: a distribution this close fits, even if the difference is significant
CLOSE = 0.1  # of q^2: the same for the third moment; eigenvalues with K copies each deviate K times as far
POWER = 0.6  # of q^2: the largest tolerance for a test; 3 of 5 standard errors reject 97 % of wrong bulks


@dataclass(frozen=True)
class MarchenkoPastur:
    """The Marchenko-Pastur distribution with the bulk's mean and variance, and whether the bulk follows it."""

    fits: bool | None  # within chance and the resolution of the steps; None: too few probes or steps to tell
    variance: Summary  # v, of the entries
    ratio: Summary  # q
    edge: Summary  # v (1 + sqrt q)^2, above which there are only outliers
    distance: float  # the largest difference between its distribution function and the bulk's
    resolution: float  # half the width of the band, at its widest
    count: int  # of eigenvalues in the bulk
    zeros: int = 0  # eigenvalues that cannot be distinguished from zero and were left out of the bulk


def marchenko_pastur(measure: SpectralMeasure, semidefinite: bool) -> MarchenkoPastur:
    """Fit the Marchenko-Pastur distribution to a spectrum without its outliers above the bulk.

    If it does not fit, and zero is an eigenvalue, only the eigenvalues above zero are fitted: a network with more
    parameters than outputs on all examples has more zeros than the distribution allows.

    Raises:
        ArgumentError: the matrix is indefinite or zero, all eigenvalues of the bulk are the same, too few are above
            zero, or a probe has a single node.
    """
    refuse_indefinite(measure, semidefinite)
    above = without_zeros(measure)
    end = outliers(above).above
    found = fitted(without(measure, end), semidefinite)
    if found.fits is not False or above is measure:
        return found
    try:
        other = fitted(without(above, end), semidefinite)
    except ArgumentError:  # a single eigenvalue of many copies
        return found
    return found if other.fits is False else replace(other, zeros=measure.dimension - above.dimension)


def fitted(bulk: SpectralMeasure, semidefinite: bool) -> MarchenkoPastur:
    """Fit the distribution by the mean and variance of a bulk, and test the fit."""
    refuse_zero(bulk)
    if single(bulk):
        raise ArgumentError("`measure`: a probe has a single node, which gives only the mean; take more steps")
    variance, ratio = (summary(some, bulk, semidefinite) for some in (mean, ratio_of))
    if not ratio.value > NOISE:
        raise ArgumentError("`measure`: all eigenvalues of the bulk are the same")
    if bulk.dimension < FEWEST * ratio.value:
        raise ArgumentError(f"`measure`: fewer than {FEWEST} eigenvalues of the bulk are above zero")
    edge, third = (summary(some, bulk, semidefinite) for some in (edge_of, third_moment))
    inside, distance, resolution = compared(bulk, variance.value, ratio.value)
    chance = np.hypot(third.standard_error, third_moment_deviation(ratio.value, bulk.dimension))
    room = max(CHANCE * chance + third.quadrature_error, CLOSE * ratio.value**2)
    near = inside and bool(abs(third.value) <= room)
    return MarchenkoPastur(
        fits=None if near and room > POWER * ratio.value**2 else near,
        variance=variance,
        ratio=ratio,
        edge=edge,
        distance=distance,
        resolution=resolution,
        count=bulk.dimension,
    )


def third_moment_deviation(ratio: float, size: int) -> float:
    """The standard deviation of `third_moment` over random matrices: from theory for small q, else from simulations."""
    return 6**0.5 * ratio**1.5 * (1 + ratio**0.5 / 2) / size


def without_zeros(measure: SpectralMeasure) -> SpectralMeasure:
    """The measure without zero eigenvalues, which could be taken for the bulk; unchanged if there are no others."""
    held = measure.nodes > rounding(measure)
    size = round(torch.where(held, measure.weights, 0.0).sum(dim=1).mean().item() * measure.dimension)
    return measure if size in (0, measure.dimension) else restricted(measure, held, size)


def without(measure: SpectralMeasure, end: End) -> SpectralMeasure:
    """The measure of the eigenvalues below the outliers above the bulk."""
    if end.smallest is None or end.gap is None:
        return measure
    return restricted(measure, measure.nodes < end.smallest - end.gap / 2, measure.dimension - end.count)


def restricted(measure: SpectralMeasure, inside: Tensor, size: int) -> SpectralMeasure:
    """The measure of the `size` eigenvalues that the nodes `inside` (probes, steps) represent."""
    known = measure.deflated
    kept = int(inside[0, :known].sum())
    size = max(size, kept)
    rest = torch.where(inside, measure.weights, 0.0)[:, known:]
    rest = (rest / rest.sum(dim=1, keepdim=True)).nan_to_num(0.0) * (size - kept) / size
    nodes = torch.where(inside, measure.nodes, measure.nodes[inside].min())
    atoms = nodes[:, :known][:, inside[0, :known]]
    return replace(
        measure,
        nodes=torch.cat([atoms, nodes[:, known:]], dim=1),
        weights=torch.cat([torch.full_like(atoms, 1 / size), rest], dim=1),
        dimension=size,
        deflated=kept,
    )


def compared(bulk: SpectralMeasure, variance: float, ratio: float) -> tuple[bool, float, float]:
    """Whether the fit lies in the bulk's band, its largest difference from the bulk, and half the band's width."""
    nodes = bulk.nodes[bulk.weights > 0].numpy()
    top = max(nodes.max(), variance * (1 + ratio**0.5) ** 2)
    grid = np.union1d(np.linspace(0, top, POINTS)[1:], nodes[nodes > NOISE * top])
    band, law = cumulative(bulk, grid), distribution(grid, variance, ratio)
    room = max(STRAY / bulk.dimension, ALIKE)
    inside = bool((law >= band.lower - room).all() and (law <= band.upper + room).all())
    return inside, float(np.abs(law - band.value).max()), float((band.upper - band.lower).max() / 2)


def distribution(x: np.ndarray, variance: float, ratio: float) -> np.ndarray:
    """The share of eigenvalues up to `x` > 0 (any shape) in the Marchenko-Pastur distribution.

    With x = v (1 + q - 2 sqrt q cos t) its density is 2/pi sin^2 t / (1 + q - 2 sqrt q cos t) dt, which is smooth.
    """
    t = np.linspace(0, np.pi, 8193)
    inside = 1 + ratio - 2 * ratio**0.5 * np.cos(t)
    density = np.divide(2 / np.pi * np.sin(t) ** 2, inside, out=np.full_like(t, 2 / np.pi), where=inside > 0)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))])
    zeros = max(0.0, 1 - 1 / ratio)
    return zeros + np.interp(x, variance * inside, (1 - zeros) * mass / mass[-1])


def moment(nodes: Tensor, weights: Tensor, power: int) -> Tensor:
    """The mean of a power of the eigenvalues."""
    return weights @ nodes**power / weights.sum()


def mean(nodes: Tensor, weights: Tensor) -> Tensor:
    """The mean eigenvalue, v."""
    return moment(nodes, weights, 1)


def ratio_of(nodes: Tensor, weights: Tensor) -> Tensor:
    """The ratio q of the distribution with these first two moments."""
    return moment(nodes, weights, 2) / moment(nodes, weights, 1) ** 2 - 1


def edge_of(nodes: Tensor, weights: Tensor) -> Tensor:
    """The upper edge of the distribution with these first two moments."""
    return moment(nodes, weights, 1) * (1 + ratio_of(nodes, weights).sqrt()) ** 2


def third_moment(nodes: Tensor, weights: Tensor) -> Tensor:
    """The third moment, minus that of the distribution with the same first two, over v^3."""
    ratio = ratio_of(nodes, weights)
    return moment(nodes, weights, 3) / moment(nodes, weights, 1) ** 3 - (1 + 3 * ratio + ratio**2)
