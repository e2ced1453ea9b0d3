"""All diagonal blocks of one matrix at once: their eigenpairs and spectra advance together, a product of all a step.

For disjoint sets of indices, D = diag(A_11, ..., A_LL) takes a vector to the products of all blocks with their parts of
it. The runs of the blocks, each in vectors of its own length, lie side by side in the vectors that D multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectra.defaults import LAYERS_PROBES, LAYERS_STEPS, TOLERANCE
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.deflation import CONVERGED
from spectra.krylov.eigenpairs import fitting_basis
from spectra.krylov.eigensolver import Asking, Search
from spectra.krylov.lanczos import Lanczos, begin, no_pairs, random_start
from spectra.krylov.quadrature import gauss_quadrature, pack
from spectra.krylov.results import Eigenpairs, Progress, SpectralMeasure
from spectra.operator import SymmetricOperator, Wrapper, once, placed, refuse_other_dtype
from spectra.vectors import whole, without_autocast

EACH = 3  # vectors (n,) that a column of a product holds: what is multiplied, its image, and both on their way


@dataclass
class BlockDiagonal(Wrapper):
    """D of A and disjoint `blocks`, each an index (n_l,); rows in no block are zero.

    A product takes one of A for each block in which the vector is not zero, many in one call. Vectors are whole on
    every process, as those of blocks are too small to share.
    """

    blocks: Sequence[Tensor]

    @property
    def mesh(self) -> None:
        return None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        given = vectors[:, None] if vectors.ndim == 1 else vectors
        products = torch.zeros_like(given)
        widest = columns(fitting_vectors(self.operator), EACH)
        parts = self.not_zero(given)
        for first in range(0, len(parts), widest):
            some = parts[first : first + widest]
            rows = given.new_zeros(len(some), len(given))
            for row, (block, j) in zip(rows, some, strict=True):
                row[self.blocks[block]] = given[self.blocks[block], j]
            images = whole(self.operator @ placed(rows, self.operator).T)
            for image, (block, j) in zip(images.T, some, strict=True):
                products[self.blocks[block], j] = image[self.blocks[block]]
        return products.view_as(vectors)

    def not_zero(self, vectors: Tensor) -> list[tuple[int, int]]:
        """Which blocks of which columns hold anything."""
        held = torch.stack([vectors[block].any(dim=0) for block in self.blocks])
        return [(block, j) for block, j in held.nonzero().tolist()]


@dataclass
class Block(Wrapper):
    """Where vectors of a diagonal block lie, for what asks no products of it."""

    size: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.size, self.size))


@without_autocast()
def block_eigenpairs(
    operator: SymmetricOperator,
    blocks: Sequence[Tensor],
    k: int,
    *,
    tolerance: float = TOLERANCE,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> list[Eigenpairs]:
    """The first `k` eigenpairs by |value| of every block, fewer of smaller ones; `operator` is their BlockDiagonal.

    As `eigenpairs` of each by itself: with residuals, restarts, and the search for what was missed. `max_products` is
    for each block.
    """
    largest = fitting_basis(operator)
    searches = []
    for block, own in zip(blocks, streams(generator, len(blocks)), strict=True):
        wanted = min(k, len(block))
        budget = 1000 + 20 * wanted if max_products is None else max_products
        place = Block(operator, len(block))
        searches.append(Search(place, wanted, "LM", tolerance, own, budget, largest, progress=None))

    def tell(waiting: int) -> None:
        if progress:
            spent = sum(search.products for search in searches)
            progress(products=spent, converged=len(blocks) - waiting, wanted=len(blocks))

    return in_lockstep([search.answer() for search in searches], operator, blocks, tell)


def in_lockstep(
    asking: Sequence[Asking], operator: SymmetricOperator, blocks: Sequence[Tensor], tell: Callable[[int], None]
) -> list[Any]:
    """What generators that ask for products of their blocks come to; all that wait are served at once."""
    answers: list[Any] = [None] * len(asking)
    products: Mapping[int, Tensor | None] = dict.fromkeys(range(len(asking)))
    while products:
        wanted = {}
        for i, product in products.items():
            try:
                wanted[i] = asking[i].send(product)
            except StopIteration as end:
                answers[i] = end.value
        products = together(operator, blocks, wanted)
        tell(len(wanted))
    return answers


def together(operator: SymmetricOperator, blocks: Sequence[Tensor], vectors: dict[int, Tensor]) -> dict[int, Tensor]:
    """Products of blocks with vectors (n_l,) or (n_l, j), by one call."""
    if not vectors:
        return {}
    width = max(v.shape[1] if v.ndim == 2 else 1 for v in vectors.values())
    rows = torch.zeros(width, operator.shape[0], dtype=operator.dtype, device=operator.device)
    for i, given in vectors.items():
        part = given[None] if given.ndim == 1 else given.T
        rows[: len(part), blocks[i]] = part
    images = operator @ (rows[0] if width == 1 else rows.T)
    images = images[:, None] if width == 1 else images
    return {i: images[blocks[i], : v.shape[1]] if v.ndim == 2 else images[blocks[i], 0] for i, v in vectors.items()}


@without_autocast()
def block_measures(
    operator: SymmetricOperator,
    blocks: Sequence[Tensor],
    known: Sequence[Eigenpairs],
    *,
    probes: int = LAYERS_PROBES,
    steps: int = LAYERS_STEPS,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> list[SpectralMeasure]:
    """The spectral measure of every block beside its converged `known` pairs, by `probes` quadratures of `steps` nodes.

    `known` are eigenpairs of each block, or empty.
    One probe of all blocks at a time; where `max_products`, for each block, ends it, the probes there are.
    """
    places = [Block(operator, len(block)) for block in blocks]
    pairs = [converged(found) for found in known] or [no_pairs(place) for place in places]
    unknown = [i for i, block in enumerate(blocks) if len(pairs[i][0]) < len(block)]
    limit = probes * steps if max_products is None else max_products

    def probe(steps: int) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights of every block that is not wholly known."""
        own, states = streams(generator, len(blocks)), {}
        for i in unknown:
            states[i] = begin(places[i], random_start(places[i], own[i]), known=pairs[i], rows=steps + 1)
        take_steps(states, operator, blocks, steps)
        return [gauss_quadrature(state) for state in states.values()]

    rows = []
    while unknown and len(rows) < probes and (room := limit - len(rows) * steps) > 0:
        rows.append(once(operator, partial(probe, min(steps, room)), generator))
        if progress:
            spent = sum(len(nodes) for row in rows for nodes, _ in row)
            progress(products=spent, converged=len(rows), wanted=probes)
    found = dict(zip(unknown, zip(*rows, strict=True), strict=True)) if rows else {}
    measures = []
    for i, (atoms, _) in enumerate(pairs):
        own = list(found.get(i, [(atoms[:0], atoms[:0])] * probes))
        spent = sum(len(nodes) for nodes, _ in own)
        finite = all(nodes.isfinite().all() for nodes, _ in own)
        complete = i not in unknown or (limit >= probes * steps and finite)
        measures.append(pack(own, atoms, len(blocks[i]), spent, converged=complete))
    return measures


def take_steps(states: dict[int, Lanczos], operator: SymmetricOperator, blocks: Sequence[Tensor], steps: int) -> None:
    """Every block's run to its end: so many products, an exhausted space, or a product that is not finite."""
    going = states
    while going:
        images = together(operator, blocks, {i: state.take() for i, state in going.items()})
        for i, state in going.items():
            state.absorb(images[i])
        going = {i: s for i, s in going.items() if s.size < steps and len(s.pending) and s.finite}


def streams(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """A generator for each block, so that what one draws is nothing to the others."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def converged(pairs: Eigenpairs) -> tuple[Tensor, Tensor]:
    """Values (k,) and vectors (k, n) of the pairs whose residuals are small against their values."""
    good = pairs.residuals <= CONVERGED * pairs.values.abs()
    return pairs.values[good], pairs.vectors[good]
