"""Closed forms of the Fisher information of families of distributions in their parameters.

The parameters are tensors of one shape, with an entry for each element of a distribution's batch; the information
couples parameters of one element only. For labels of C classes the parameters are log-probabilities, and their
information is diag(p).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as ds

from spectra.errors import SpectraError


@dataclass(frozen=True)
class Information:
    """Parameters of a distribution, and their Fisher information, entry by entry."""

    parameters: tuple[Tensor, ...]
    blocks: tuple[tuple[Tensor | float, ...], ...]  # row i, column j: E[d(-log p)/di d(-log p)/dj]

    def times(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the information by vectors, one per parameter and of its shape."""
        return [
            sum((block * vector for block, vector in zip(row, vectors, strict=True)), torch.zeros_like(vectors[0]))
            for row in self.blocks
        ]


def diagonal(*pairs: tuple[Tensor, Tensor]) -> Information:
    """The diagonal information of uncoupled parameters, from pairs of a parameter and its information."""
    count = len(pairs)
    blocks = [tuple(pairs[i][1] if i == j else 0.0 for j in range(count)) for i in range(count)]
    return Information(tuple(parameter for parameter, _ in pairs), tuple(blocks))


def gamma(d: ds.Gamma) -> Information:
    """The information of a gamma distribution in its shape and rate."""
    a, b = d.concentration, d.rate
    tied = -1 / b
    return Information((a, b), ((torch.polygamma(1, a), tied), (tied, a / b**2)))


def beta(d: ds.Beta) -> Information:
    """The information of a beta distribution in its two concentrations."""
    a, b = d.concentration1, d.concentration0
    both = -torch.polygamma(1, a + b)
    return Information((a, b), ((torch.polygamma(1, a) + both, both), (both, torch.polygamma(1, b) + both)))


def binomial(d: ds.Binomial) -> Information:
    """The information of a binomial distribution in its logits."""
    refuse_learnt_count(d)
    return diagonal((d.logits, d.total_count * odds_spread(d.logits)))


def negative_binomial(d: ds.NegativeBinomial) -> Information:
    """The information of a negative binomial distribution in its logits."""
    refuse_learnt_count(d)
    return diagonal((d.logits, d.total_count * d.logits.sigmoid()))


def refuse_learnt_count(d: ds.Binomial | ds.NegativeBinomial) -> None:
    """Raise SpectraError if the count depends on the output: its information has no closed form."""
    if d.total_count.requires_grad:
        raise unknown(f"{type(d).__name__} whose total_count depends on the output")


def odds_spread(logits: Tensor) -> Tensor:
    """p (1 - p)."""
    return logits.sigmoid() * logits.neg().sigmoid()


def location_scale(location: float, scale: float) -> Callable[..., Information]:
    """The information of a symmetric location-scale family: these numbers divided by the square of the scale."""
    return lambda d: diagonal((d.loc, location / d.scale**2), (d.scale, scale / d.scale**2))


FAMILIES: dict[type[ds.Distribution], Callable[..., Information]] = {
    ds.Normal: location_scale(1, 2),
    ds.Laplace: location_scale(1, 1),
    ds.Cauchy: location_scale(0.5, 0.5),
    ds.LogNormal: location_scale(1, 2),
    ds.Poisson: lambda d: diagonal((d.rate, 1 / d.rate)),
    ds.Exponential: lambda d: diagonal((d.rate, 1 / d.rate**2)),
    ds.Gamma: gamma,
    ds.Beta: beta,
    ds.Bernoulli: lambda d: diagonal((d.logits, odds_spread(d.logits))),
    ds.Geometric: lambda d: diagonal((d.logits, d.logits.neg().sigmoid())),
    ds.Binomial: binomial,
    ds.NegativeBinomial: negative_binomial,
    ds.Categorical: lambda d: diagonal((d.logits, d.probs)),
    ds.OneHotCategorical: lambda d: diagonal((d.logits, d.probs)),
}


def information(density: ds.Distribution) -> Information:
    """The Fisher information of a distribution in its parameters.

    Raises SpectraError if it has no closed form here.
    """
    while isinstance(density, ds.Independent):
        density = density.base_dist
    if type(density) not in FAMILIES:
        raise unknown(type(density).__name__)
    return FAMILIES[type(density)](density)


def unknown(what: str) -> SpectraError:
    """The error for a distribution without a closed form here."""
    names = ", ".join(family.__name__ for family in FAMILIES)
    return SpectraError(
        f"`curvature` fisher: there is no closed form for the Fisher information of {what} (available: {names} and "
        "Independent of these); use fisher-mc, if it has an icdf, or fisher-empirical"
    )
