"""Compare two matrices: the numbers of one pair, each with its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from spectra.comparison.agreement import Agreement, LeadingEigenpairs, agreements, rayleigh_quotients
from spectra.comparison.frobenius import FrobeniusProducts
from spectra.comparison.matrix_summary import MatrixSummary
from spectra.krylov.eigenpairs import eigenpairs_unchecked
from spectra.krylov.results import Progress
from spectra.operator import SymmetricOperator, Wrapper
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.transport import distances_of_spectra

ROUNDING = 100  # times epsilon: a relative distance below this is due to rounding of products
LOOSE = 1e-2  # relative residual at which the search for the ends of a difference stops


@dataclass
class Difference(Wrapper):
    """The operator A - B."""

    other: SymmetricOperator

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.operator @ vectors - self.other @ vectors


class Extreme(NamedTuple):
    """An eigenvalue at an end of a spectrum: a true one lies within `residual` of it."""

    value: float
    residual: float


@dataclass(frozen=True)
class Pair:
    """The comparison of A (`first`) with B (`second`); None for what was not requested or exceeded the budget."""

    first: str
    second: str
    distance: Estimate  # |A - B|_F / |A|_F
    cosine: Estimate  # <A, B> / (|A|_F |B|_F)
    scale: Estimate  # c* = <A, B> / |B|_F^2
    scaled_distance: Estimate  # |A - c* B|_F / |A|_F
    trace_difference: Estimate  # tr (A - B)
    rounding: bool  # the distance is within the rounding of products
    agreements: list[Agreement]
    first_by_second: np.ndarray  # u'B u (k,) for the eigenvectors u of A
    second_by_first: np.ndarray  # u'A u (k,) for the eigenvectors u of B
    largest: Extreme | None  # eigenvalue of A - B
    smallest: Extreme | None
    wasserstein: Estimate | None  # W1 of the spectra, the mean |difference| of eigenvalues by rank
    wasserstein_share: Estimate | None  # over the mean |eigenvalue| of A


class Ends(NamedTuple):
    """The settings of the search for the extreme eigenvalues of a difference; with 0 steps there is no search."""

    steps: int
    limit: float
    generator: torch.Generator
    progress: Progress | None


def compare_pair(
    names: tuple[str, str],
    summaries: tuple[MatrixSummary, MatrixSummary],
    products: FrobeniusProducts,
    leading: Mapping[str, LeadingEigenpairs],
    k: int,
    ends: Ends,
) -> Pair:
    """Compare two matrices by their Frobenius products, leading eigenspaces and spectra."""
    first, second = names
    distance = products.distance(first, second)
    norm = products.norm(first, second).value
    rounding = norm == 0 or distance.value <= ROUNDING * torch.finfo(summaries[0].operator.dtype).eps
    largest, smallest = extremes(*summaries, norm if rounding else None, ends)
    transport, share = distances_of_spectra(*(summary.measure for summary in summaries))
    return Pair(
        first,
        second,
        distance=distance,
        cosine=products.cosine(first, second),
        scale=products.scale(first, second),
        scaled_distance=products.scaled_distance(first, second),
        trace_difference=products.trace(first, second),
        rounding=rounding,
        agreements=agreements(leading[first], leading[second], k),
        first_by_second=rayleigh_quotients(leading[first], products.inside[second], k),
        second_by_first=rayleigh_quotients(leading[second], products.inside[first], k),
        largest=largest,
        smallest=smallest,
        wasserstein=transport,
        wasserstein_share=share,
    )


def extremes(
    first: MatrixSummary, second: MatrixSummary, rounding: float | None, ends: Ends
) -> tuple[Extreme | None, Extreme | None]:
    """The largest and the smallest eigenvalue of A - B.

    If A - B is rounding, with norm `rounding`, both are given as 0 with that norm as residual.
    """
    if not ends.steps:
        return None, None
    if rounding is not None:
        return Extreme(0.0, rounding), Extreme(0.0, rounding)
    difference = Difference(first.operator, second.operator)
    size = min(2, difference.shape[0])
    pairs = eigenpairs_unchecked(
        difference,
        size,
        which="BE",
        tolerance=LOOSE,
        generator=ends.generator,
        max_products=max(0, int(min(ends.steps, ends.limit - max(first.products, second.products)))),
        progress=ends.progress,
    )
    found = [Extreme(*numbers) for numbers in zip(pairs.values.tolist(), pairs.residuals.tolist(), strict=True)]
    return (found[0], found[-1]) if len(found) == size else (None, None)
