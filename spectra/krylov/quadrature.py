"""Stochastic Lanczos quadrature: nodes and weights of the spectral distribution, one row a probe.

For a unit vector v, Gauss quadrature of v'f(A)v has the Ritz values for nodes and the squared first components of
the eigenvectors of T for weights (Golub, Meurant 1994); over random v its mean is tr f(A) / n (Lin, Saad, Yang
2016; Ghorbani, Krishnan, Xiao 2019). A lone eigenvalue's weight would vary by sqrt(2 / probes) of itself, so what a
first run finds to convergence is projected out and counted exactly (explicit deflation: Bhattacharjee et al. 2025).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectra.krylov.deflation import CONVERGED
from spectra.krylov.lanczos import Lanczos, beside, random_start
from spectra.krylov.results import Eigenpairs, Progress, SpectralMeasure
from spectra.operator import Counting, SymmetricOperator


def spectral_measure(
    operator: SymmetricOperator,
    *,
    probes: int = 10,
    steps: int = 80,
    known: Eigenpairs | None = None,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> SpectralMeasure:
    """`probes` quadratures of `steps` nodes each, after a first run of `steps` products for deflation.

    `known` pairs are deflated from the start, and the first run looks for others beside them.
    Where `max_products` ends it early, the last probe is short or missing and `converged` is False.
    """
    counted = Counting(operator)
    limit = math.inf if max_products is None else max_products
    n = operator.shape[0]

    def run(state: Lanczos, done: int) -> Lanczos:
        last = state.size + steps
        while state.size < last and len(state.pending) and state.finite and counted.products < limit:
            state.extend(counted)
            if progress:
                progress(products=counted.products, converged=done, wanted=probes)
        return state

    values, vectors = (known.values, known.vectors) if known else no_pairs(operator)
    storage = with_room(vectors, steps)
    if len(values) < n:
        first = run(beside(values, storage, random_start(counted, generator)), 0)
        if counted.products >= limit or not first.finite:  # no probes can follow: the first run is the one there is
            row = gauss_quadrature(first, len(values))
            return pack([row], values, n, counted.products, converged=False)
        values, vectors = converged_pairs(first)
        del first, storage  # at their largest, bases are all the memory there is
        storage = with_room(vectors, steps)
    del vectors
    rows, complete = [], True
    for probe in range(probes):
        if len(values) == n:
            rows.append((values[:0], values[:0]))
            continue
        state = run(beside(values, storage, random_start(counted, generator)), probe)
        if state.size > len(values):
            rows.append(gauss_quadrature(state, len(values)))
        complete &= state.finite and (state.size == len(values) + steps or not len(state.pending))
        if not state.finite:
            break
    return pack(rows, values, n, counted.products, converged=complete and len(rows) == probes)


def no_pairs(operator: SymmetricOperator) -> tuple[Tensor, Tensor]:
    vectors = torch.zeros(0, operator.shape[0], dtype=operator.dtype, device=operator.device)
    return torch.zeros(0, dtype=torch.float64), vectors


def with_room(vectors: Tensor, steps: int) -> Tensor:
    """A basis of these vectors (k, n), with room for so many steps after them."""
    k, n = vectors.shape
    storage = vectors.new_empty(min(k + steps, n), n)
    storage[:k] = vectors
    return storage


def converged_pairs(state: Lanczos) -> tuple[Tensor, Tensor]:
    """Ritz values (k,) and vectors (k, n) of a run whose residuals are small against their values."""
    values, coordinates, residuals = state.ritz()
    good = residuals <= CONVERGED * values.abs()
    return values[good], state.vectors(coordinates[:, good])


def gauss_quadrature(state: Lanczos, known: int = 0) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the measure of the start vector (Golub, Welsch 1969), beside `known` pairs."""
    values, coordinates, _ = state.ritz(known)
    weights = coordinates[0].square()
    return values, weights / weights.sum()


def pack(rows: list, atoms: Tensor, n: int, products: int, converged: bool) -> SpectralMeasure:
    """One measure: atoms of weight 1/n first, the rest scaled to (n - k) / n; short rows end in weight zero."""
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
