"""The log-determinant of a damped matrix A + damping I, from a spectral measure of A, without further products."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from spectra.arguments import require_number, wrong
from spectra.errors import ArgumentError
from spectra.krylov.correction import student
from spectra.krylov.results import SpectralMeasure, as_cpu_float64
from spectra.spectrum.curves import NOISE, known_exactly
from spectra.spectrum.summaries import lowest_node, with_zero
from spectra.spectrum.transport import halved

Rule = tuple[np.ndarray, np.ndarray]  # nodes and weights of one probe
FAR_BELOW = 1e-3  # of the largest |node|: more than the rounding of products in single precision
ROUNDING = 10 * float(np.finfo(np.float64).eps)  # of the largest |node|: smaller nodes may be rounding of zero


class LogDeterminant(NamedTuple):
    """A log-determinant with two errors: 95 % of true values lie within 2 standard errors plus the quadrature error."""

    value: float
    standard_error: float  # over probes; for a single probe, from the distribution of random vectors
    quadrature_error: float  # for the same probes: a bound for semidefinite matrices, else estimated


def log_determinant(measure: SpectralMeasure, damping: float = 0.0, *, semidefinite: bool = False) -> LogDeterminant:
    """Estimate log det(A + damping I), the sum of log(eigenvalue + damping), by stochastic Lanczos quadrature.

    One measure serves every damping (Ubaru, Chen, Saad 2017, *Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature*). Small eigenvalues of A matter most; those that `spectral_measure` gets as `known` are exact.

    Gauss quadrature overestimates a logarithm. For a `semidefinite` matrix with a damping above zero, Gauss-Radau
    quadrature with a node at zero underestimates it (Golub, Meurant 1994); the value is the middle of the two, and
    `quadrature_error` is half their distance. For other matrices it is the difference between Gauss quadratures of all
    and of half the steps. `standard_error` is the larger of the spread between probes, widened where they are few, and
    the theoretical one for random vectors (see `spectra.spectrum.curves`).

    Args:
        measure: the spectral measure of A, from `spectra.spectral_measure` or from the result of `spectra.density`.
        damping: the number added to each eigenvalue.
        semidefinite: whether A has no negative eigenvalue by its definition, such as a GGN or a covariance; nodes below
            zero are then treated as rounding errors.

    Returns:
        The value with its two errors. These are absolute, in units of the natural logarithm.

    Raises:
        SpectraError: nodes show that A + damping I is not positive definite, a node is not finite, or `semidefinite` is
            True and a node is far below zero. Note that nodes lie inside the spectrum: positive nodes do not prove that
            the matrix is positive definite.
    """
    require_number("damping", damping, least=-math.inf, finite=True)
    if not isinstance(measure, SpectralMeasure):
        raise wrong("measure", type(measure), "a SpectralMeasure, as spectra.spectral_measure returns")
    if not measure.nodes.isfinite().all():
        raise ArgumentError("`measure`: a node is not finite, as a product was not; check the matrix")
    lowest = lowest_node(measure, semidefinite)
    if semidefinite:
        refuse_negative(measure)
    refuse_singular(measure, damping, lowest, semidefinite)
    known, exact, bracket = measure.deflated, known_exactly(measure), semidefinite and damping > 0
    rules = rules_of(measure, lowest)
    others = rules if exact else [other_rule(*rule, known, bracket) for rule in rules]
    (largest, spread), (other, other_spread) = (sums(some, known, damping) for some in (rules, others))
    values = (largest + other) / 2 if bracket else largest
    error = float(np.abs(other - values).mean())
    if not exact and min(np.count_nonzero(weights[known:]) for _, weights in rules) < 2:
        error = math.inf  # a single node cannot be compared with half the steps
    if measure.noise:
        error += noise_error(rules, measure.noise, damping, semidefinite)
    return LogDeterminant(float(values.mean()), sampling_error(measure, values, max(spread, other_spread)), error)


def refuse_negative(measure: SpectralMeasure) -> None:
    """Raise ArgumentError if a node is further below zero than rounding explains for a semidefinite matrix."""
    lowest = lowest_node(measure, False)
    if lowest < -measure.noise - FAR_BELOW * measure.nodes.abs().max().item():
        raise ArgumentError(
            f"`semidefinite` True: the lowest node is {lowest:.2g}, below zero by more than rounding; give False"
        )


def refuse_singular(measure: SpectralMeasure, damping: float, lowest: float, semidefinite: bool) -> None:
    """Raise ArgumentError if nodes show that A + damping I is not positive definite beyond rounding."""
    least = measure.noise + ROUNDING * measure.nodes.abs().max().item() - lowest
    if damping > least or (semidefinite and damping > 0):
        return
    raise ArgumentError(
        f"`damping` {damping:g}: A + damping I is not positive definite, with nodes down to {lowest + damping:.2g}; "
        f"take a damping above {0 if semidefinite else least:.2g}"
    )


def rules_of(measure: SpectralMeasure, lowest: float) -> list[Rule]:
    """The quadrature rule of each probe, with nodes clipped at `lowest` and weights that sum to n."""
    nodes, weights = as_cpu_float64(measure.nodes).numpy(), as_cpu_float64(measure.weights).numpy()
    return list(zip(nodes.clip(min=lowest), measure.dimension * weights, strict=True))


def other_rule(nodes: np.ndarray, weights: np.ndarray, known: int, bracket: bool) -> Rule:
    """The rule to compare Gauss quadrature with: Gauss-Radau with a node at zero for a `bracket`, else half the steps.

    Nodes that are zero within rounding become zero.
    """
    if not bracket:
        return halved(nodes, weights, known)
    least, weights = with_zero(nodes, weights, known)
    return np.where(least <= NOISE * nodes.max(), 0.0, least), weights


def sums(rules: list[Rule], known: int, damping: float) -> tuple[np.ndarray, float]:
    """The sum of logarithms by each rule (probes,), and their variance over the eigenvalues that are not known."""
    logs, weights = ([np.log(nodes + damping) for nodes, _ in rules], [weights for _, weights in rules])
    values = np.array([w @ x for w, x in zip(weights, logs, strict=True)])
    rest, rest_weights = (np.concatenate([row[known:] for row in some]) for some in (logs, weights))
    if not rest_weights.sum():
        return values, 0.0
    mean = np.average(rest, weights=rest_weights)
    return values, float(np.average((rest - mean) ** 2, weights=rest_weights))


def sampling_error(measure: SpectralMeasure, values: np.ndarray, spread: float) -> float:
    """The standard error of the mean of `values` (probes,), if the logarithms have the variance `spread`."""
    rest = measure.dimension - measure.deflated
    law = rest * math.sqrt(2 * spread / (measure.probes * (rest + 2)))
    return law if measure.probes == 1 else max(law, student(values.tolist()))


def noise_error(rules: list[Rule], noise: float, damping: float, semidefinite: bool) -> float:
    """Half the difference of the log-determinants of A + noise I and A - noise I, by Weyl's inequality."""
    floor = 0.0 if semidefinite else -math.inf
    apart = [
        weights @ (np.log(nodes + noise + damping) - np.log(np.maximum(nodes - noise, floor) + damping))
        for nodes, weights in rules
    ]
    return float(np.mean(apart)) / 2
