"""Eigenpairs and spectral measures of all diagonal blocks of a matrix at once, with one joint product per step.

For disjoint sets of indices, the matrix D = diag(A_11, ..., A_LL) multiplies each part of a vector by its block. The
vectors of the blocks' runs are placed side by side in one vector, so that a product with D advances all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spectra.defaults import LAYERS_PROBES, LAYERS_STEPS, TOLERANCE
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.deflation import CONVERGED
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.eigensolver import Eigensolver
from spectra.krylov.lanczos import Lanczos, begin, no_pairs, random_start
from spectra.krylov.quadrature import basis_of as basis_of_steps
from spectra.krylov.quadrature import gauss_quadrature, pack
from spectra.krylov.results import Eigenpairs, Progress, SpectralMeasure
from spectra.krylov.reverse_communication import serve_jointly
from spectra.operator import SymmetricOperator, Wrapper, checkpointed, placed, refuse_other_dtype
from spectra.vectors import full_tensor, without_autocast

EACH = 3  # vectors (n,) in memory for each column of a product: the input, its product, and copies of both


@dataclass
class BlockDiagonal(Wrapper):
    """The block-diagonal matrix D of a matrix A, for disjoint `blocks` of indices (n_l,); rows in no block are zero.

    A product with D takes one product with A for each block in which the vector is not zero, several in one call.
    Vectors are not sharded, because those of single blocks are small.
    """

    blocks: Sequence[Tensor]

    @property
    def mesh(self) -> None:
        """Always None, because vectors are not sharded."""
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
            images = full_tensor(self.operator @ placed(rows, self.operator).T)
            for image, (block, j) in zip(images.T, some, strict=True):
                products[self.blocks[block], j] = image[self.blocks[block]]
        return products.view_as(vectors)

    def not_zero(self, vectors: Tensor) -> list[tuple[int, int]]:
        """The pairs (block, column) for which `vectors` (n, k) have entries that are not zero."""
        held = torch.stack([vectors[block].any(dim=0) for block in self.blocks])
        return [(block, j) for block, j in held.nonzero().tolist()]


@dataclass
class Block(Wrapper):
    """The shape, dtype and device of one diagonal block, for a method that gets its products from elsewhere."""

    size: int

    @property
    def shape(self) -> torch.Size:
        """The shape (size, size)."""
        return torch.Size((self.size, self.size))


@without_autocast()
def block_eigenpairs(
    operator: SymmetricOperator,
    blocks: Sequence[Tensor],
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> list[Eigenpairs]:
    """Compute `k` extremal eigenpairs of every diagonal block, or all eigenpairs of a block with fewer rows.

    Every block is solved as by `eigenpairs`, with residuals, restarts, and the search for missed pairs.

    Args:
        operator: the BlockDiagonal of the blocks.
        blocks: the indices (n_l,) of each block.
        k: the number of eigenpairs per block.
        which: LM (largest magnitude), LA (largest), SA (smallest) or BE (half from either end).
        tolerance: the relative residual of a converged pair.
        generator: a CPU generator.
        max_products: the largest number of products per block.
        progress: called after each joint product.
    """
    basis = basis_of(operator, k)
    searches = []
    for block, own in zip(blocks, streams(generator, len(blocks)), strict=True):
        wanted = min(k, len(block))
        budget = 1000 + 20 * wanted if max_products is None else max_products
        place = Block(operator, len(block))
        searches.append(
            Eigensolver(place, wanted, which, tolerance, own, budget, basis.vectors, progress=None, place=basis.device)
        )

    def report(waiting: int) -> None:
        if progress:
            spent = sum(search.products for search in searches)
            progress(products=spent, converged=len(blocks) - waiting, wanted=len(blocks))

    multiply = partial(block_products, operator, blocks)
    return serve_jointly([search.solve() for search in searches], multiply, report)


def block_products(
    operator: SymmetricOperator, blocks: Sequence[Tensor], vectors: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Multiply blocks by vectors (n_l,) or (n_l, j), given by the index of the block, in one joint product."""
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
    """Compute the spectral measure of every block, with its converged `known` pairs deflated.

    Args:
        operator: the BlockDiagonal of the blocks.
        blocks: the indices (n_l,) of each block.
        known: eigenpairs of each block, or an empty sequence.
        probes: the number of random vectors per block. All blocks advance together, one vector at a time.
        steps: the number of Lanczos steps for each vector.
        generator: a CPU generator.
        max_products: the largest number of products per block; if it is reached, the probes so far are returned.
        progress: called after each probe.
    """
    places = [Block(operator, len(block)) for block in blocks]
    basis = basis_of_steps(operator, steps)
    pairs = [converged(found) for found in known] or [no_pairs(place) for place in places]
    unknown = [i for i, block in enumerate(blocks) if len(pairs[i][0]) < len(block)]
    limit = probes * steps if max_products is None else max_products

    def probe(steps: int) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights of every block with unknown eigenvalues."""
        own, states = streams(generator, len(blocks)), {}
        for i in unknown:
            how = {"known": pairs[i], "rows": steps + 1, "place": basis.device}
            states[i] = begin(places[i], random_start(places[i], own[i]), **how)
        take_steps(states, operator, blocks, steps)
        return [gauss_quadrature(state) for state in states.values()]

    rows = []
    while unknown and len(rows) < probes and (room := limit - len(rows) * steps) > 0:
        rows.append(checkpointed(operator, partial(probe, min(steps, room)), generator))
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
    """Extend every block's run until it has taken `steps` products, exhausts its space, or gets a product that is not
    finite.
    """
    going = states
    while going:
        images = block_products(operator, blocks, {i: state.take() for i, state in going.items()})
        for i, state in going.items():
            state.absorb(images[i])
        going = {i: s for i, s in going.items() if s.size < steps and len(s.pending) and s.finite}


def streams(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """Make one generator for each block, so that the numbers drawn for one block do not depend on the others."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def converged(pairs: Eigenpairs) -> tuple[Tensor, Tensor]:
    """Values (k,) and vectors (k, n) of the pairs with small residuals relative to their values."""
    good = pairs.residuals <= CONVERGED * pairs.values.abs()
    return pairs.values[good], pairs.vectors[good]
