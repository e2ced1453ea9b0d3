"""Power iteration with deflation: a cross-check of Lanczos, at several times its cost."""

from __future__ import annotations

import torch

from spectra.errors import SpectraError
from spectra.krylov.lanczos import random_start
from spectra.krylov.results import Eigenpairs, Progress
from spectra.operator import Counting, Deflated, SymmetricOperator, dot, norm


def power_iteration(
    operator: SymmetricOperator,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = 1e-3,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The `k` eigenvalues of largest magnitude, one after the other, each in the complement of those before.

    Stops on the residual |Au - lambda u| (not on the change of lambda, which says nothing of it). Two dominant
    eigenvalues of opposite sign never converge, and are reported so. `max_products` is 1000 k unless given.
    Raises SpectraError when k > n or `which` is not LM.
    """
    n = operator.shape[0]
    if k > n:
        raise SpectraError(f"-k: {k} eigenvalues of a matrix with {n} rows; ask for at most {n}")
    if which != "LM":
        raise SpectraError(f"--which {which}: power iteration finds the largest magnitudes alone; use --method lanczos")
    budget = 1000 * k if max_products is None else max_products
    counted = Counting(operator)
    basis = torch.zeros(0, n, dtype=operator.dtype, device=operator.device)
    values, residuals, largest = [], [], 0.0
    floor = torch.finfo(operator.dtype).eps ** (2 / 3)
    while len(values) < k and counted.products < budget:
        deflated = Deflated(counted, basis)
        vector = deflated.project(random_start(operator, generator))
        while True:
            vector = vector / norm(vector)
            # What deflation removes from A u belongs to the true residual, so only the iterate is projected.
            image = counted @ vector
            value = dot(vector, image)
            residual = norm(image - value * vector)
            largest = max(largest, abs(value))
            if progress:
                progress(products=counted.products, converged=len(values), wanted=k, residual=residual)
            if residual <= tolerance * max(abs(value), floor * largest) or counted.products >= budget:
                break
            following = deflated.project(image)
            if norm(following) == 0:
                break
            vector = following
        basis = torch.cat([basis, vector[None]])
        values.append(value)
        residuals.append(residual)
    found, errors = torch.tensor(values, dtype=torch.float64), torch.tensor(residuals, dtype=torch.float64)
    order = found.abs().argsort(descending=True, stable=True)
    allowed = tolerance * found.abs().clamp(min=floor * largest)
    return Eigenpairs(
        values=found[order],
        vectors=basis[order.to(basis.device)],
        residuals=errors[order],
        error_estimates=errors[order],
        products=counted.products,
        converged=len(values) == k and bool((errors <= allowed).all()),
    )
