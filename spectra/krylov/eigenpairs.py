"""Extremal eigenpairs of a matrix by the Lanczos solver of `spectra.krylov.eigensolver`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from spectra.arguments import chosen_generator, require_choice, require_integer
from spectra.defaults import TOLERANCE
from spectra.given_operator import as_operator
from spectra.krylov.eigensolver import Eigensolver, least_basis, usual_basis, vectors_held
from spectra.krylov.limits import refuse_search
from spectra.krylov.measured import with_measured_residuals
from spectra.krylov.placement import BASES, Placement, placement, refuse_basis
from spectra.krylov.polishing import Polishing
from spectra.krylov.results import Eigenpairs, Progress
from spectra.krylov.reverse_communication import serve_products
from spectra.operator import Counting, Shaped, SymmetricOperator, in_ieee
from spectra.product_checks import noise_of
from spectra.vectors import without_autocast

FLOOR = 0.3  # of the noise: the residual at which a search by noisy products stops
FEWEST_TIMES = 5  # basis vectors for each wanted pair, at least, for noisy products and their polishing
LARGEST_BASIS = 300  # vectors; beyond it the projected problems cost more than restarts save


@without_autocast()
@with_measured_residuals
def eigenpairs(
    operator: Any,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    largest_basis: int | None = None,
    basis: str = "auto",
    progress: Progress | None = None,
) -> Eigenpairs:
    """Compute `k` eigenpairs at the end or ends of the spectrum, by the thick-restart Lanczos method.

    A pair has converged when its residual |A u - lambda u| is at most tolerance * max(|lambda|, eps^(2/3) |A|), or at
    most 10 eps |A|, which is rounding error. Residuals follow from the Lanczos relation. One more product measures how
    far rounding has violated that relation, and this is added to them. Clustered eigenvalues may need more products
    than the default; then `converged` is False.

    Where the matrix has products of lower precision (a `Curvature` in tf32 or bf16), these find the pairs as far as
    their noise allows, and a few products in full precision then refine them: residuals and errors are those of full
    precision. The search for missed eigenpairs, which `complete` reports, allows for the measured noise. Where memory
    holds few vectors, all products are in full precision.

    Products have to be repeatable, and the matrix symmetric; otherwise `complete` has no meaning. This is not checked
    here: `spectra.check_operator` checks it by three products.

    The source of the thick restart is Wu and Simon (2000).

    Args:
        operator: the matrix (n, n), in any form that `spectra.as_operator` takes.
        k: the number of eigenpairs, 1 to n.
        which: LM (largest magnitudes), LA (largest), SA (smallest) or BE (half from either end).
        tolerance: the relative residual at which a pair has converged.
        seed: the seed of the random starting vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        max_products: the largest number of products, by default 1000 + 20 k.
        largest_basis: the number of basis vectors at which the method restarts; a small number is raised to one with
            which restarts cost little. By default 300, or what memory holds, down to k + 3.
        basis: the memory that holds the basis: device, host (for a matrix on a GPU), or auto, which is the host if a
            quarter of the device's memory is too little and the host's holds more. Eigenvectors found with a basis on
            the host stay there.
        progress: a function that is called after each test of convergence, with the products so far.

    Returns:
        `Eigenpairs`, in the order that `which` implies.

    Raises:
        ArgumentError: k > n, or another argument is wrong; it is a SpectraError and a ValueError.
        SpectraError: no memory holds the smallest basis.

    Examples:
        >>> import torch, spectra
        >>> pairs = spectra.eigenpairs(torch.diag(torch.arange(1.0, 101.0)), k=2)
        >>> [round(value, 1) for value in pairs.values.tolist()]
        [100.0, 99.0]
    """
    operator = as_operator(operator)
    refuse_search(operator.shape[0], k, which, tolerance, max_products)
    require_integer("largest_basis", largest_basis, least=0, optional=True)
    require_choice("basis", basis, BASES)
    generator = chosen_generator(seed, generator)
    return eigenpairs_unchecked(operator, k, which, tolerance, generator, max_products, largest_basis, progress, basis)


@without_autocast()
def eigenpairs_unchecked(
    operator: SymmetricOperator,
    k: int,
    which: str,
    tolerance: float,
    generator: torch.Generator,
    max_products: int | None,
    largest_basis: int | None = None,
    progress: Progress | None = None,
    basis: str = "auto",
) -> Eigenpairs:
    """Compute `eigenpairs` from arguments that have been checked; no pairs where `max_products` is 0."""
    max_products = 1000 + 20 * k if max_products is None else max_products
    place = basis_of(operator, k, largest_basis, basis)
    where = place.vectors, progress, place.device
    exact = in_ieee(operator)
    if exact is operator or place.vectors < min(FEWEST_TIMES * k, operator.shape[0]):
        search = Eigensolver(exact, k, which, tolerance, generator, max_products, *where)
        return serve_products(search.solve(), exact)
    matrix = Counting(operator)
    noise = noise_of(matrix, generator)
    noisy = max(1, max_products - k - 2)  # the rest is enough to check the answer
    search = Eigensolver(matrix, k, which, tolerance, generator, noisy, *where, floor=FLOOR * noise.norm)
    pairs = serve_products(search.solve(), matrix)
    if search.state.size == 0 or not search.state.finite:
        return replace(pairs, products=matrix.products)
    return Polishing(matrix, noise, search, tolerance, max_products, progress).run(pairs)


def basis_of(operator: Shaped, k: int, largest: int | None = None, choice: str = "auto") -> Placement:
    """Choose the memory for the basis of k eigenpairs, and the number of its vectors at which the method restarts.

    This number is `largest`, or by default what fits memory, at most LARGEST_BASIS. Raises SpectraError if not even the
    smallest basis fits.
    """
    n = operator.shape[0]
    k = min(k, n)
    usual, beside = min(usual_basis(k), n), vectors_held(k, 0)
    wanted = usual if largest is None else max(largest, usual)
    place = placement(operator, min(wanted, n) + beside, choice)
    if largest is None:
        least = min(least_basis(k), n) + beside
        refuse_basis(operator, place, least, f"`k` {k}", "ask for fewer, or choose fewer parameters with `params`")
        wanted = max(least_basis(k), min(LARGEST_BASIS, place.vectors - beside))
    return replace(place, vectors=wanted, usual=usual)
