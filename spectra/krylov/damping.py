"""The damping that makes a symmetric matrix positive definite, from its extremal eigenvalues."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from spectra.arguments import require_number
from spectra.defaults import TOLERANCE
from spectra.given_operator import as_operator
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.results import Progress

CONDITION = 1e4  # of A + damping I: CG then takes at most some hundreds of products


@dataclass(frozen=True)
class Damping:
    """A damping with which A + damping I is positive definite, and the eigenvalues that it was computed from.

    Attributes:
        value: the damping; with it, the condition number of A + damping I is at most the one asked for.
        necessary: max(0, error - lowest): any damping above it makes the matrix positive definite.
        lowest: the lowest eigenvalue found.
        error: how far below `lowest` the true lowest eigenvalue may be: the residual, or more if the search for missed
            eigenvalues does not exclude a lower one.
        highest: the highest eigenvalue found, plus its residual.
        condition: the condition number of A + value I.
        products: the number of matrix-vector products.
        converged: whether both eigenvalues have met the tolerance.
        complete: whether the search excludes missed eigenvalues, with probability 0.99; None without a search.
    """

    value: float
    necessary: float
    lowest: float
    error: float
    highest: float
    condition: float
    products: int
    converged: bool
    complete: bool | None

    @property
    def lower_bound(self) -> float:
        """The lowest eigenvalue found less its error, which `solve` takes as `lowest` for its error bounds."""
        return self.lowest - self.error


def damping_for(
    operator: Any,
    *,
    condition: float = CONDITION,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Damping:
    """Find the least damping >= 0 with which A + damping I is positive definite and has a bounded condition number.

    For a matrix with eigenvalues from a to c, this is max(0, (c - condition a) / (condition - 1)). The value of a is
    the lowest eigenvalue found less its error, so that the damping errs on the safe side.

    Args:
        operator: the matrix A (n, n), in any form that `spectra.as_operator` takes.
        condition: the largest condition number of A + damping I, above 1. CG takes about its square root times
            log(2 / tolerance) / 2 products.
        tolerance: the relative residual of the lowest and the highest eigenvalue.
        seed: the seed of the random starting vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        max_products: the largest number of products, by default that of `eigenpairs`.
        progress: a function that is called after each test of convergence, with the products so far.

    Returns:
        A `Damping`; its numbers are nan if products are not finite, or too few to find both ends of the spectrum.

    Raises:
        ArgumentError: an argument is wrong; it is a SpectraError and a ValueError.
    """
    require_number("condition", condition, finite=True, above=1.0)
    operator = as_operator(operator)
    k = 2 if operator.shape[0] > 1 else 1
    pairs = eigenpairs(
        operator,
        k,
        which="BE",
        tolerance=tolerance,
        seed=seed,
        generator=generator,
        max_products=max_products,
        progress=progress,
    )
    if len(pairs.values) < k or not pairs.values.isfinite().all():
        unknown = [math.nan] * 5
        return Damping(*unknown, condition=condition, products=pairs.products, converged=False, complete=None)
    lowest, highest = pairs.values.min().item(), (pairs.values + pairs.residuals).max().item()
    least = (pairs.values - pairs.residuals).min().item()
    if pairs.complement is not None and not pairs.complete:
        least = min(least, pairs.complement[0])
    value = max(0.0, (highest - condition * least) / (condition - 1))
    if not least + value > 0:  # a multiple of the identity, whose condition number is 1 with any damping above -lowest
        eps = torch.finfo(operator.dtype).eps
        value = max(0.0, -least) + (abs(least) * eps**0.5 or eps)
    return Damping(
        value=value,
        necessary=max(0.0, -least),
        lowest=lowest,
        error=lowest - least,
        highest=highest,
        condition=condition,
        products=pairs.products,
        converged=pairs.converged,
        complete=pairs.complete,
    )
