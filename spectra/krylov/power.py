"""Power iteration with deflation: a cross-check of Lanczos, at several times its cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectra.arguments import chosen_generator
from spectra.defaults import TOLERANCE
from spectra.given_operator import as_operator
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.lanczos import random_start
from spectra.krylov.limits import refuse_search, refuse_which
from spectra.krylov.measured import with_measured_residuals
from spectra.krylov.results import Eigenpairs, Progress, as_cpu_float64, no_eigenpairs, select
from spectra.operator import Counting, Deflated, SymmetricOperator, empty_rows, in_ieee
from spectra.vectors import dot, map_shards, norm, norms, sum_shards, without_autocast


@without_autocast()
@with_measured_residuals
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
    """Compute the `k` eigenvalues of largest magnitude by power iteration, each in the complement of those before.

    The iteration stops on the residual |Au - lambda u|, because a small change of lambda does not imply a small
    residual. A final Rayleigh-Ritz step on all vectors removes the error of each from the others. Two dominant
    eigenvalues of opposite sign never converge; `converged` is then False. All products are in full precision.

    Args:
        operator: the matrix (n, n).
        k: the number of eigenpairs.
        which: LM, the only end that power iteration finds.
        tolerance: the relative residual of a converged pair.
        seed: the seed of the random starting vectors, where no `generator` is given.
        generator: a CPU generator in place of the seed.
        max_products: the largest number of products, by default 1000 k.
        progress: called after each product.

    Raises:
        SpectraError: k > n, or `which` is not LM.
    """
    operator = as_operator(operator)
    refuse_search(operator.shape[0], k, which, tolerance, max_products)
    refuse_which(which)
    generator = chosen_generator(seed, generator)
    budget = 1000 * k if max_products is None else max_products
    counted = Counting(in_ieee(operator))
    basis = images = empty_rows(operator, 0)
    largest = 0.0
    while len(basis) < k and counted.products < budget:
        deflated = Deflated(counted, basis)
        following = deflated.project(random_start(operator, generator))
        while True:
            vector = following / norm(following)
            image = counted @ vector
            value = dot(vector, image)
            # Errors of earlier vectors prevent convergence along them; only the rest of A u belongs to this vector.
            following = deflated.project(image)
            residual = norm(following - value * vector)
            if not math.isfinite(residual):
                return no_eigenpairs(operator, k, counted.products)
            largest = max(largest, abs(value))
            if progress:
                progress(products=counted.products, converged=len(basis), wanted=k, residual=residual)
            # The final Rayleigh-Ritz step may combine the residuals of up to k equal eigenvalues in one.
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
    """Eigenvalues, eigenvectors and residuals |Au - lambda u| in the span of a basis (k, n), given its products A u."""
    projected = as_cpu_float64(sum_shards(lambda u, v: u @ v.T, basis, images))
    values, coordinates = torch.linalg.eigh((projected + projected.T) / 2)
    order = select(values, len(values), "LM")
    values, rows = values[order], coordinates.T[order].to(basis.device, basis.dtype)
    vectors, images = map_shards(rows.matmul, basis), map_shards(rows.matmul, images)
    scales = values.to(rows)[:, None]
    residuals = norms(map_shards(lambda image, part: image - scales * part, images, vectors))
    return values, vectors, residuals.cpu()
