"""Compare the mean outer product of batch gradients with the Fisher matrix, for which it is often mistaken.

For random batches of b examples it is about g g' + covariance / b, which is much smaller and has another shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from spectra.comparison.comparison import Comparison
from spectra.comparison.frobenius import frobenius_products
from spectra.curvature.checks.loss_checks import takes_whole_batches
from spectra.operator import SymmetricOperator, placed
from spectra.problem.problem import Problem
from spectra.spectrum.estimates import Estimate
from spectra.vectors import norm, orthonormal

USUAL = 128  # examples in a batch, unless the user gives a number
TAKEN_FOR = ("fisher", "fisher-empirical")  # the matrices for which it is mistaken


def in_usual_batches(problem: Problem) -> Problem:
    """The problem with the same examples in batches of `USUAL`; unchanged if the loss takes whole batches."""
    if takes_whole_batches(problem):
        return problem
    batches = [b.part(slice(i, i + USUAL)) for b in problem.batches for i in range(0, len(b), USUAL)]
    return replace(problem, batches=batches)


@dataclass(frozen=True)
class BatchProducts:
    """The trace of fisher-batch, and its distances from the matrices for which it is mistaken."""

    batch_size: int
    trace: Estimate
    predicted_trace: float | None  # |g|^2 + (tr EF - |g|^2) (N - b) / (b (N - 1)), for a random split; needs EF
    whole_trace: float  # |g|^2, for a single batch of all examples
    distances: dict[str, Estimate]  # |A - B|_F / |A|_F by the name of A, with B = fisher-batch
    scaled_distances: dict[str, Estimate]  # |A - c* B|_F / |A|_F, with the best scale c*


def batch_products(
    problem: Problem,
    comparison: Comparison,
    batches: SymmetricOperator,
    gradient: torch.Tensor,
    probes: int,
    generator: torch.Generator,
) -> BatchProducts:
    """Compare fisher-batch of a problem with the matrices for which it is mistaken.

    Args:
        problem: the problem, with the batches of fisher-batch.
        comparison: the comparison of the other matrices.
        batches: the operator of fisher-batch, (n, n).
        gradient: the gradient of the mean loss, (n,).
        probes: the number of random vectors.
        generator: the source of random vectors, on the CPU.
    """
    others = {name: comparison.summaries[name].operator for name in TAKEN_FOR if name in comparison.summaries}
    rows = torch.cat([comparison.basis, placed(gradient[None], batches)]) if norm(gradient) else comparison.basis
    basis = orthonormal(rows)[0].contiguous()
    found = frobenius_products({**others, "fisher-batch": batches}, basis, probes, generator)
    square, n = norm(gradient) ** 2, problem.examples
    size = max(problem.examples_of(batch) for batch in problem.batches)
    predicted = None
    if "fisher-empirical" in others and n > 1:
        spread = found.trace("fisher-empirical").value - square
        predicted = square + spread * (n - size) / (size * (n - 1))
    return BatchProducts(
        batch_size=size,
        trace=found.trace("fisher-batch"),
        predicted_trace=predicted,
        whole_trace=square,
        distances={name: found.distance(name, "fisher-batch") for name in others},
        scaled_distances={name: found.scaled_distance(name, "fisher-batch") for name in others},
    )
