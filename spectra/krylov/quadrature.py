"""Stochastic Lanczos quadrature: nodes and weights of the spectral distribution, one row a probe.

For a unit vector v, Gauss quadrature of v'f(A)v has the Ritz values as nodes and the squared first components of the
eigenvectors of T as weights (Golub, Meurant 1994); over random v its mean is tr f(A) / n (Lin, Saad, Yang 2016;
Ghorbani, Krishnan, Xiao 2019). The weight of a single eigenvalue would have a relative error of sqrt(2 / probes), so
eigenpairs that converge in a first run are deflated and counted exactly (Bhattacharjee et al. 2025).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectra.arguments import chosen_generator, require_integer
from spectra.defaults import DENSITY_PROBES, DENSITY_STEPS
from spectra.given_operator import as_operator
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.deflation import CONVERGED
from spectra.krylov.lanczos import Lanczos, begin, extend_all, no_pairs, random_start
from spectra.krylov.placement import Placement, placement, refuse_basis
from spectra.krylov.results import Eigenpairs, Progress, SpectralMeasure
from spectra.operator import Counting, Shaped, checkpointed
from spectra.product_checks import noise_of
from spectra.vectors import on_device, without_autocast

BESIDES = 4  # vectors in memory besides the basis of a run, while a product is added to it


@without_autocast()
def spectral_measure(
    operator: Any,
    *,
    probes: int = DENSITY_PROBES,
    steps: int = DENSITY_STEPS,
    known: Eigenpairs | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    largest_basis: int | None = None,
    basis: str = "auto",
    progress: Progress | None = None,
) -> SpectralMeasure:
    """Estimate the distribution of eigenvalues by stochastic Lanczos quadrature (Lin, Saad, Yang 2016).

    Each of `probes` random vectors gives a quadrature of `steps` nodes. A first run of `steps` products finds
    eigenpairs that are then deflated. Probes advance together, as many at a time as memory holds.

    With products of lower precision, A v_j + e_j, each run is an exact Lanczos run of a nearby matrix A + D. With F the
    matrix with columns e_j, A V' = V'T + r e' - F holds exactly for the symmetric D = FV + V'F' - V'(VF)V, because VF
    is symmetric like T and V A V'. So |D| is about the noise |e_j|, and no eigenvalue is wrong by more than |D| (Weyl).
    The result holds |D| as `noise`.

    Args:
        operator: the matrix (n, n), in any form that `spectra.as_operator` takes.
        probes: the number of random vectors.
        steps: the number of Lanczos steps for each vector.
        known: eigenpairs to deflate from the start; the first run then searches for further ones.
        seed: the seed of the random vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        max_products: the largest number of products, by default (1 + probes) steps. If it is reached, the last probe is
            short or missing and `converged` is False.
        largest_basis: the number of vectors held at a time, by default what a quarter of the device's memory holds.
        basis: the memory that holds the Lanczos bases: device, host (for a matrix on a GPU), or auto, which is the host
            if a quarter of the device's memory is too little for one basis.
        progress: a function that is called as the runs advance.

    Returns:
        A `SpectralMeasure`.

    Raises:
        ArgumentError: an argument is wrong; it is a SpectraError and a ValueError.
        SpectraError: no memory holds the basis of one run.
    """
    operator = as_operator(operator)
    require_integer("probes", probes)
    require_integer("steps", steps)
    require_integer("max_products", max_products, optional=True)
    require_integer("largest_basis", largest_basis, least=0, optional=True)
    generator = chosen_generator(seed, generator)
    counted = Counting(operator)
    limit = (1 + probes) * steps if max_products is None else max_products
    place = basis_of(operator, steps, basis, refuse=largest_basis is None)
    largest = place.vectors if largest_basis is None else largest_basis
    n, noise = operator.shape[0], noise_of(counted, generator).norm

    def run(count: int, pairs: tuple[Tensor, Tensor], done: int) -> list[Lanczos]:
        """Make `count` runs with these pairs deflated, until they or the budget end, or a product is not finite."""
        how = {"known": pairs, "rows": steps + 1, "place": place.device}
        states = [begin(counted, random_start(counted, generator), **how) for _ in range(count)]
        going = states
        while going and counted.products < limit and all(state.finite for state in states):
            extend_all(going, counted)
            going = [state for state in going if state.size < steps and len(state.pending)]
            if progress:
                progress(products=counted.products, converged=done, wanted=probes)
        return states

    def quadratures(count: int, pairs: tuple[Tensor, Tensor], done: int) -> tuple[list, bool]:
        """The nodes and weights of `count` runs, and whether each took all its steps."""
        states = run(count, pairs, done)
        complete = all(state.finite and (state.size == steps or not len(state.pending)) for state in states)
        return [gauss_quadrature(state) for state in states], complete

    pairs = (known.values, on_device(known.vectors, place.device)) if known else no_pairs(operator, place.device)
    if len(pairs[0]) < n:
        (first,) = run(1, pairs, 0)
        if counted.products >= limit or not first.finite:  # no budget for probes, so the first run is the result
            alone = pack([gauss_quadrature(first)], pairs[0], n, counted.products, converged=False)
            return replace(alone, noise=noise)
        pairs = converged_pairs(first)
        del first  # a basis may take all memory
    atoms = pairs[0]
    rows = [(atoms[:0], atoms[:0])] * (probes if len(atoms) == n else 0)
    widest = columns(largest - len(atoms), min(steps + 1, n - len(atoms)) + BESIDES)
    if place.device.type != operator.device.type:  # which holds only inputs and products
        widest = min(widest, columns(fitting_vectors(operator), BESIDES))
    complete = True
    while len(rows) < probes and counted.products < limit and complete:
        finishing = max(1, (limit - counted.products) // steps)
        step = partial(quadratures, min(probes - len(rows), finishing, widest), pairs, len(rows))
        found, complete = checkpointed(counted, step, generator)
        rows += found
    measure = pack(rows, atoms, n, counted.products, converged=complete and len(rows) == probes)
    return replace(measure, noise=noise)


def basis_of(operator: Shaped, steps: int, choice: str = "auto", refuse: bool = True) -> Placement:
    """Choose the memory for the basis of one run of `steps` steps. Raises SpectraError if it does not fit."""
    wanted = min(steps + 1, operator.shape[0]) + BESIDES
    place = placement(operator, wanted, choice)
    if refuse:
        refuse_basis(
            operator, place, wanted, f"`steps` {steps}", "take fewer, or choose fewer parameters with `params`"
        )
    return replace(place, vectors=max(place.vectors, wanted), usual=wanted)


def converged_pairs(state: Lanczos) -> tuple[Tensor, Tensor]:
    """Values (k,) and vectors (k, n) of a run's known pairs, and of its Ritz pairs with small relative residuals."""
    values, coordinates, residuals = state.ritz()
    good = residuals <= CONVERGED * values.abs()
    vectors = state.vectors(coordinates[:, good])
    return torch.cat([state.known_values, values[good]]), torch.cat([state.known, vectors])


def gauss_quadrature(state: Lanczos) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the measure of the start vector (Golub, Welsch 1969)."""
    values, coordinates, _ = state.ritz()
    weights = coordinates[0].square()
    return values, weights / weights.sum()


def pack(rows: list, atoms: Tensor, n: int, products: int, converged: bool) -> SpectralMeasure:
    """Combine rows into one measure: atoms of weight 1/n first, the rest scaled to (n - k) / n.

    Short rows are padded with weight zero.
    """
    longest = max(len(nodes) for nodes, _ in rows)
    rest = 1 - len(atoms) / n
    all_nodes, all_weights = [], []
    for nodes, weights in rows:
        padding = longest - len(nodes)
        tail = nodes[-1:].expand(padding) if len(nodes) else nodes.new_zeros(padding)
        all_nodes.append(torch.cat([atoms, nodes, tail]))
        all_weights.append(torch.cat([torch.full_like(atoms, 1 / n), rest * weights, weights.new_zeros(padding)]))
    return SpectralMeasure(
        nodes=torch.stack(all_nodes),
        weights=torch.stack(all_weights),
        dimension=n,
        deflated=len(atoms),
        products=products,
        converged=converged,
    )
