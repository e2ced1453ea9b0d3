"""Ranks and related numbers of a spectrum: effective and stable rank, participation ratio, entropy, outlier share.

Each is a function of sums over eigenvalues, which follow from a spectral measure without further products. Gauss
quadrature with two nodes or more has no error in tr A and tr A^2. The standard error of a number that is not a sum
follows from its influence function (Jaeckel 1972, *The infinitesimal jackknife*).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spectra.errors import ArgumentError
from spectra.krylov.results import SpectralMeasure
from spectra.spectrum.curves import NOISE, known_exactly
from spectra.spectrum.log_determinant import Rule, other_rule, rules_of, sampling_error
from spectra.spectrum.outliers import outliers
from spectra.spectrum.summaries import lowest_node

Statistic = Callable[[Tensor, Tensor], Tensor]  # a number from nodes (m,) and weights (m,) that sum to n


class Summary(NamedTuple):
    """A number that is computed from a spectral measure, with its two errors."""

    value: float
    standard_error: float  # over probes; for a single probe, from the distribution of random vectors
    quadrature_error: float  # for the same probes: a bound or an estimate; inf if a probe has a single node


def effective_rank(measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """Compute the effective rank tr A / lambda_max, which is the rank if all non-zero eigenvalues are equal.

    It is the intrinsic dimension of Tropp 2015, *An introduction to matrix concentration inequalities*, section 7.1.
    The effective rank of Roy and Vetterli is `entropy_rank`. Raises ArgumentError for an indefinite or a zero matrix.
    """
    refuse_indefinite(measure, semidefinite)
    return over_largest(measure, semidefinite, power=1)


def stable_rank(measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """Compute the stable rank tr A^2 / lambda_max^2, with the largest |eigenvalue| (Rudelson, Vershynin 2007).

    *Sampling from large matrices: an approach through geometric functional analysis*. Raises ArgumentError for a zero
    matrix.
    """
    return over_largest(measure, semidefinite, power=2)


def participation_ratio(measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """Compute the participation ratio (tr A)^2 / tr A^2, which is n for n equal eigenvalues.

    Raises ArgumentError for an indefinite or a zero matrix.
    """
    refuse_indefinite(measure, semidefinite)
    refuse_zero(measure)
    return summary(lambda x, w: (w @ x) ** 2 / (w @ x**2), measure, semidefinite)


def entropy(measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """Compute the entropy of the shares |lambda| / sum |lambda| of eigenvalues, in nats; at most log n.

    For a `semidefinite` matrix, Gauss quadrature and Gauss-Radau quadrature with a node at zero bracket it, and the
    value is the middle. Raises ArgumentError for a zero matrix.
    """
    return with_quadrature_error(_entropy, measure, semidefinite)


def entropy_rank(measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """Compute the exponential of the entropy, Roy and Vetterli's effective rank.

    Roy, Vetterli 2007, *The effective rank: a measure of effective dimensionality*. Raises ArgumentError for a zero
    matrix.
    """
    return with_quadrature_error(lambda x, w: _entropy(x, w).exp(), measure, semidefinite)


def outlier_share(measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """Compute the share of the trace in the outliers above the bulk that the steps have resolved.

    Raises ArgumentError for an indefinite or a zero matrix, and if no outlier is resolved although some eigenvalue is
    unknown.
    """
    refuse_indefinite(measure, semidefinite)
    refuse_zero(measure)
    end = outliers(measure).above
    if end.smallest is None or end.gap is None:
        if known_exactly(measure):
            return Summary(0.0, 0.0, 0.0)
        raise ArgumentError(f"`measure`: no outlier is resolved; {unresolved_reason(measure)}")
    least = end.smallest - end.gap / 2
    return summary(lambda x, w: (w * (x > least)) @ x / (w @ x), measure, semidefinite)


def unresolved_reason(measure: SpectralMeasure) -> str:
    """The reason why outliers may be unresolved: the outermost node represents all eigenvalues around it."""
    if measure.probes == 1:
        return "one probe does not show whether nodes are converged; take two"
    shares = torch.where(measure.nodes >= measure.nodes.max(dim=1, keepdim=True).values, measure.weights, 0.0)
    most = (shares * measure.nodes).sum(dim=1) / (measure.weights * measure.nodes).sum(dim=1)
    return f"the outermost node of a probe has up to {100 * most.max().item():.2g} % of the trace"


def over_largest(measure: SpectralMeasure, semidefinite: bool, power: int) -> Summary:
    """The sum of a power of eigenvalue / largest |eigenvalue|; its error includes that of the largest node."""
    refuse_zero(measure)
    largest = measure.nodes[measure.weights > 0].abs().max().item()
    found = summary(lambda x, w: w @ (x / largest) ** power, measure, semidefinite)
    error = found.value * power * measure.noise / largest
    if measure.nodes[0, : measure.deflated].abs().numpy().max(initial=0.0) < largest:  # else it is an eigenvalue
        _, others = both_rules(measure, semidefinite, bracket=False)
        other = max(np.abs(x[w > 0]).max() for x, w in others)
        error += found.value * ((largest / other) ** power - 1)  # the error of half the steps
    return found._replace(quadrature_error=found.quadrature_error + float(error))


def with_quadrature_error(statistic: Statistic, measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """A statistic with all its errors; the quadrature error is the difference to other rules."""
    refuse_zero(measure)
    rules, others = both_rules(measure, semidefinite, bracket=semidefinite)
    one, other = (statistic(*pooled(some)).item() for some in (rules, others))
    found, apart = summary(statistic, measure, semidefinite), abs(other - one)
    if semidefinite:
        found, apart = found._replace(value=(one + other) / 2), apart / 2
    return found._replace(quadrature_error=found.quadrature_error + apart)


def summary(statistic: Statistic, measure: SpectralMeasure, semidefinite: bool) -> Summary:
    """A statistic with its errors; the quadrature error is complete only for functions of tr A and tr A^2."""
    nodes, weights = pooled(rules_of(measure, lowest_node(measure, semidefinite)))
    value, _, influence = derivatives(statistic, nodes, weights)
    influence = influence.nan_to_num(0.0).reshape(measure.nodes.shape)  # nan at zero weights
    each = weights.reshape(measure.nodes.shape) * measure.probes
    rest, rest_weights = (some[:, measure.deflated :].numpy() for some in (influence, each))
    spread = 0.0
    if rest_weights.sum():
        spread = np.average((rest - np.average(rest, weights=rest_weights)) ** 2, weights=rest_weights)
    error = math.inf if single(measure) else 0.0
    if measure.noise:
        least = measure.noise / math.e  # where x log x is as steep as it is on average up to the noise
        moved = torch.where(nodes.abs() < least, least, nodes)
        _, slopes, _ = derivatives(statistic, moved, weights)
        error += measure.noise * slopes.abs().sum().item()  # first order, if all move in the worst direction
    chances = sampling_error(measure, (each * influence).sum(dim=1).numpy(), float(spread))
    return Summary(value, chances, error)


def derivatives(statistic: Statistic, nodes: Tensor, weights: Tensor) -> tuple[float, Tensor, Tensor]:
    """A statistic, and its derivatives with respect to nodes (m,) and weights (m,)."""
    nodes, weights = nodes.detach().requires_grad_(), weights.detach().requires_grad_()
    with torch.enable_grad():
        value = statistic(nodes, weights)
    slopes, influence = torch.autograd.grad(value, (nodes, weights), allow_unused=True)
    assert slopes is not None
    assert influence is not None
    return value.item(), slopes, influence


def both_rules(measure: SpectralMeasure, semidefinite: bool, bracket: bool) -> tuple[list[Rule], list[Rule]]:
    """The rule of each probe, and a second one to compare it with; both are the same if quadrature has no error."""
    rules = rules_of(measure, lowest_node(measure, semidefinite))
    return rules, rules if known_exactly(measure) else [other_rule(*rule, measure.deflated, bracket) for rule in rules]


def pooled(rules: list[Rule]) -> tuple[Tensor, Tensor]:
    """The nodes and weights of all probes together; weights sum to n."""
    nodes, weights = (torch.from_numpy(np.concatenate([rule[i] for rule in rules])) for i in (0, 1))
    return nodes, weights / len(rules)


def single(measure: SpectralMeasure) -> bool:
    """Whether a probe has a single node that is not an eigenvalue, and gives only the mean."""
    held = (measure.weights[:, measure.deflated :] > 0).sum(dim=1).min().item()
    return held == 1 and not known_exactly(measure)


def rounding(measure: SpectralMeasure) -> float:
    """The possible error of eigenvalues by rounding of float32 and the noise of the products."""
    return 2 * NOISE * measure.nodes.abs().max().item() + measure.noise


def refuse_indefinite(measure: SpectralMeasure, semidefinite: bool) -> None:
    """Raise ArgumentError if a node is below zero by more than rounding."""
    lowest = lowest_node(measure, semidefinite)
    if lowest < -rounding(measure):
        raise ArgumentError(f"`measure`: the matrix is indefinite, with nodes down to {lowest:.2g}")


def refuse_zero(measure: SpectralMeasure) -> None:
    """Raise ArgumentError if no node is above the noise."""
    if measure.nodes[measure.weights > 0].abs().max().item() <= measure.noise:
        raise ArgumentError("`measure`: the matrix is zero, within the noise of its products")


def _entropy(nodes: Tensor, weights: Tensor) -> Tensor:
    shares = nodes.abs() / (weights @ nodes.abs())
    return weights @ torch.special.entr(shares.clamp(min=torch.finfo(shares.dtype).tiny))
