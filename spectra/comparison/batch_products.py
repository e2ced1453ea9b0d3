"""The outer products of the gradients of whole batches, against the Fisher matrix that they are taken for.

For batches of b examples, split by chance, they are about g g' + covariance / b: small, and of the wrong shape.
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

USUAL = 128  # examples in a batch, where nobody says how many
TAKEN_FOR = ("fisher", "fisher-empirical")  # what people mean when they make it


def in_usual_batches(problem: Problem) -> Problem:
    """The problem with its examples in their order, in batches of `USUAL`; as it is where the loss takes whole ones."""
    if takes_whole_batches(problem):
        return problem
    batches = [b.part(slice(i, i + USUAL)) for b in problem.batches for i in range(0, len(b), USUAL)]
    return replace(problem, batches=batches)


@dataclass(frozen=True)
class BatchProducts:
    """Outer products of the gradients of whole batches, against matrices that they are taken for."""

    batch_size: int
    trace: Estimate
    predicted_trace: float | None  # |g|^2 + (tr EF - |g|^2) (N - b) / (b (N - 1)), of a split by chance; needs EF
    whole_trace: float  # |g|^2, what a single batch of all examples gives
    distances: dict[str, Estimate]  # |A - it|_F / |A|_F by the name of A
    scaled_distances: dict[str, Estimate]  # the same at the best scale


def batch_products(
    problem: Problem,
    comparison: Comparison,
    batches: SymmetricOperator,
    gradient: torch.Tensor,
    probes: int,
    generator: torch.Generator,
) -> BatchProducts:
    """Compare fisher-batch of the problem with the matrices that it is taken for.

    Args:
        problem: the problem on the batches that fisher-batch is made of.
        comparison: what is known of the other matrices.
        batches: the operator of fisher-batch, (n, n).
        gradient: the gradient of the mean loss, (n,).
        probes: the number of random vectors.
    """
    others = {name: comparison.portraits[name].operator for name in TAKEN_FOR if name in comparison.portraits}
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
