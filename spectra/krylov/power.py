"""Power iteration with deflation: a cross-check of Lanczos, at several times its cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectra.arguments import chosen_generator
from spectra.defaults import TOLERANCE
from spectra.krylov.bounds import allowed_residuals
from spectra.krylov.lanczos import random_start
from spectra.krylov.limits import refuse_search, refuse_which
from spectra.krylov.results import Eigenpairs, Progress, as_cpu_float64, no_eigenpairs, select
from spectra.operator import Counting, Deflated, SymmetricOperator, empty_rows
from spectra.vectors import dot, mapped, norm, norms, summed, without_autocast


@without_autocast()
def power_iteration(
    operator: SymmetricOperator,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The `k` eigenvalues of largest magnitude, one after the other, each in the complement of those before.

    Stops on the residual |Au - lambda u| (not on the change of lambda, which says nothing of it); at the end the
    vectors are rotated among themselves (Rayleigh, Ritz), which takes the error of one out of the others. Two
    dominant eigenvalues of opposite sign never converge, and are reported so. `max_products` is 1000 k unless given.
    Raises SpectraError when k > n or `which` is not LM.
    """
    refuse_search(operator, k, which, tolerance, max_products)
    refuse_which(which)
    generator = chosen_generator(seed, generator)
    budget = 1000 * k if max_products is None else max_products
    counted = Counting(operator)
    basis = images = empty_rows(operator, 0)
    largest = 0.0
    while len(basis) < k and counted.products < budget:
        deflated = Deflated(counted, basis)
        following = deflated.project(random_start(operator, generator))
        while True:
            vector = following / norm(following)
            image = counted @ vector
            value = dot(vector, image)
            # The error of earlier vectors keeps A u from settling along them; only the rest of it tells of this one.
            following = deflated.project(image)
            residual = norm(following - value * vector)
            if not math.isfinite(residual):
                return no_eigenpairs(operator, k, counted.products)
            largest = max(largest, abs(value))
            if progress:
                progress(products=counted.products, converged=len(basis), wanted=k, residual=residual)
            # The rotation at the end may gather the residuals of up to k equal eigenvalues in one.
            allowed = allowed_residuals(as_cpu_float64([value]), largest, tolerance, operator.dtype).item()
            settled = residual <= allowed / k**0.5 or norm(following) == 0
            if settled or counted.products >= budget:
                break
        basis, images = torch.cat([basis, vector[None]]), torch.cat([images, image[None]])
    values, vectors, residuals = rayleigh_ritz(basis, images)
    allowed = allowed_residuals(values, largest, tolerance, operator.dtype)
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        error_estimates=residuals,
        products=counted.products,
        converged=len(values) == k and bool((residuals <= allowed).all()),
    )


def rayleigh_ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, vectors and residuals |Au - lambda u| from the span of a basis (k, n), given its images under A."""
    projected = as_cpu_float64(summed(lambda u, v: u @ v.T, basis, images))
    values, coordinates = torch.linalg.eigh((projected + projected.T) / 2)
    order = select(values, len(values), "LM")
    values, rows = values[order], coordinates.T[order].to(basis.device, basis.dtype)
    vectors, images = mapped(rows.matmul, basis), mapped(rows.matmul, images)
    scales = values.to(rows)[:, None]
    residuals = norms(mapped(lambda image, part: image - scales * part, images, vectors))
    return values, vectors, residuals.cpu()
