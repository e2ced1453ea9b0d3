"""Extremal eigenpairs of a matrix by Lanczos: `spectra.krylov.eigensolver`, served with products."""

from __future__ import annotations

import torch

from spectra.arguments import chosen_generator, require_integer
from spectra.defaults import TOLERANCE
from spectra.krylov.blocks import fitting_vectors
from spectra.krylov.eigensolver import Asking, Search
from spectra.krylov.limits import refuse_search
from spectra.krylov.results import Eigenpairs, Progress
from spectra.operator import Shaped, SymmetricOperator
from spectra.vectors import without_autocast

LARGEST_BASIS = 300  # vectors; beyond it the projected problems cost more than restarts save


@without_autocast()
def eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    largest_basis: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """`k` eigenpairs at the end(s) of the spectrum that `which` names (LM, LA, SA, BE).

    A pair has converged when its residual |Au - lambda u| is at most tolerance * max(|lambda|, eps^(2/3) |A|), or at
    most 10 eps |A|, which is rounding.
    Residuals follow from the law of the Lanczos basis; one more product measures how far rounding has taken the
    basis from that law, and is added to them. `max_products` is 1000 + 20 k unless given: eigenvalues that crowd
    together may need more, and `converged` says so. The basis is restarted at `largest_basis` vectors, by default
    300 or what a quarter of the device's memory holds. Random starts come from `seed`, or from a CPU `generator`.
    Raises SpectraError (a ValueError) when k > n, and where another argument is not one of these.
    """
    refuse_search(operator, k, which, tolerance, max_products)
    require_integer("largest_basis", largest_basis, least=0, optional=True)
    generator = chosen_generator(seed, generator)
    return searched(operator, k, which, tolerance, generator, max_products, largest_basis, progress)


@without_autocast()
def searched(
    operator: SymmetricOperator,
    k: int,
    which: str,
    tolerance: float,
    generator: torch.Generator,
    max_products: int | None,
    largest_basis: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """`eigenpairs`, its arguments judged before; no pairs where `max_products` is 0."""
    largest_basis = fitting_basis(operator) if largest_basis is None else largest_basis
    max_products = 1000 + 20 * k if max_products is None else max_products
    search = Search(operator, k, which, tolerance, generator, max_products, largest_basis, progress)
    return answered(search.answer(), operator)


def answered(asking: Asking, operator: SymmetricOperator):
    """What a generator that asks for products comes to."""
    product = None
    while True:
        try:
            wanted = asking.send(product)
        except StopIteration as end:
            return end.value
        product = operator @ wanted


def fitting_basis(operator: Shaped) -> int:
    return min(LARGEST_BASIS, fitting_vectors(operator))
