"""Spectra of N equal diagonal blocks at once: D = diag(A_1, ..., A_N), each block of d rows.

One product of D has the products of all blocks. So d products give every matrix whole, and a step of Lanczos, a sample
of Hutchinson's or a check costs one product for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from spectra.arguments import require_integer
from spectra.defaults import RTOL, TOLERANCE
from spectra.errors import SpectraError
from spectra.krylov.block_diagonal import block_eigenpairs
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.eigensolver import SMALL, usual_products
from spectra.krylov.hutchinson import EACH, FEWEST, affordable, budgeted
from spectra.krylov.limits import refuse_search
from spectra.krylov.quadrature import pack
from spectra.krylov.results import BlockEigenpairs, BlockTraces, Progress, SpectralMeasure, select
from spectra.memory import memory_share
from spectra.operator import (
    Counting,
    Shaped,
    SymmetricOperator,
    Wrapper,
    checkpointed,
    in_ieee,
    placed,
    random_signs,
)
from spectra.vectors import full_tensor, without_autocast
from spectra.wording import counted

EXAMPLES = 256  # matrices that are decomposed together
LARGEST_MEASURE = 10_000  # eigenvalues that stand in a result
DENSE_TRACE = 256  # rows: so many products are exact for every block, where a sample of one may be far off


class Whole(Wrapper):
    """The operator on vectors that are whole on every process, as those of single blocks are too small to shard."""

    @property
    def mesh(self) -> None:
        """None: vectors are not sharded."""
        return None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        rows = vectors[None] if vectors.ndim == 1 else vectors.T
        return full_tensor(self.operator @ placed(rows, self.operator).T).view_as(vectors)


def dense_pays(size: int, blocks: int, k: int, operator: Shaped) -> bool:
    """Whether all matrices are sooner made whole than searched: where they have few rows, and memory holds them."""
    return size <= max(SMALL, usual_products(k)) and dense_bytes(size, blocks) <= memory_share(operator.device)


def dense_measure_pays(size: int, blocks: int, products: int, operator: Shaped) -> bool:
    """Whether every eigenvalue takes no more products than so many for an estimate, and is not too much to hold."""
    return (
        size <= min(products, DENSE_TRACE)
        and size * blocks <= LARGEST_MEASURE
        and dense_bytes(size, blocks) <= memory_share(operator.device)
    )


def dense_bytes(size: int, blocks: int) -> int:
    """The bytes of all matrices in float64."""
    return blocks * size**2 * torch.float64.itemsize


@without_autocast()
def lanczos_blocks(
    operator: SymmetricOperator,
    k: int,
    *,
    blocks: int,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> BlockEigenpairs:
    """Compute `k` eigenpairs of each of the equal diagonal blocks by Lanczos, which advance together.

    Args:
        operator: the block-diagonal matrix D (N d, N d).
        k: the number of eigenpairs a block.
        blocks: the number N of blocks.
        which: LM (largest magnitude), LA (largest), SA (smallest) or BE (half from either end).
        tolerance: the relative residual of a converged pair.
        generator: a CPU generator.
        max_products: the largest number of products of a block; blocks that want several at once may add to it.
        progress: called after each joint product.
    """
    matrix, size = Counting(Whole(in_ieee(operator))), operator.shape[0] // blocks
    refuse_search(size, k, which, tolerance, max_products)
    places = torch.arange(blocks * size, device=operator.device).view(blocks, size)

    def report(products: int, **numbers: float) -> None:
        if progress:
            progress(products=matrix.products, **numbers)  # of all blocks together

    found = block_eigenpairs(
        matrix,
        list(places),
        k,
        which=which,
        tolerance=tolerance,
        generator=generator,
        max_products=max_products,
        progress=report,
    )
    complete = [pairs.complete for pairs in found]
    return BlockEigenpairs(
        values=torch.stack([pairs.values for pairs in found]),
        vectors=torch.stack([pairs.vectors.cpu() for pairs in found]),
        residuals=torch.stack([pairs.residuals for pairs in found]),
        error_estimates=torch.stack([pairs.error_estimates for pairs in found]),
        products=matrix.products,
        converged=all(pairs.converged for pairs in found),
        complete=None if None in complete else all(complete),
    )


@without_autocast()
def dense_blocks(
    operator: SymmetricOperator,
    k: int,
    *,
    blocks: int,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> BlockEigenpairs:
    """Compute `k` eigenpairs of each of the equal diagonal blocks exactly: d products make all of them whole.

    The arguments are those of `lanczos_blocks`. The residuals are those of the matrices before they are made symmetric,
    so that the rounding of products shows in them.

    Raises SpectraError where memory does not hold the blocks, or `max_products` are fewer than d.
    """
    matrix, size = Counting(Whole(in_ieee(operator))), operator.shape[0] // blocks
    refuse_search(size, k, which, tolerance, max_products)
    dense = whole_blocks(matrix, size, blocks, max_products, progress)
    finite = dense.isfinite().flatten(1).all(dim=1)
    dense[~finite] = 0  # so that the others are decomposed, as what is not finite cannot be
    parts = [decomposed(some, k, which, tolerance, operator.dtype) for some in dense.split(EXAMPLES)]
    values, vectors, residuals, allowed = (torch.cat(found) for found in zip(*parts, strict=True))
    for answer in (values, vectors, residuals):
        answer[~finite] = math.nan
    return BlockEigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        error_estimates=residuals,
        products=matrix.products,
        converged=bool((residuals <= allowed).all()),
        complete=True if finite.all() else None,
    )


@without_autocast()
def dense_measure(
    operator: SymmetricOperator,
    *,
    blocks: int,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> SpectralMeasure:
    """Compute the spectral measure of all blocks exactly, by d products: every eigenvalue, with weight 1/(N d).

    The arguments are those of `lanczos_blocks`. Eigenvalues are nan where a block is not finite.
    """
    matrix, size = Counting(Whole(in_ieee(operator))), operator.shape[0] // blocks
    dense = whole_blocks(matrix, size, blocks, max_products, progress)
    if finite := bool(dense.isfinite().all()):
        parts = [torch.linalg.eigvalsh((some + some.mT) / 2) for some in dense.split(EXAMPLES)]
        values = torch.cat(parts).flatten().sort(descending=True).values
    else:
        values = torch.full((size * blocks,), math.nan, dtype=torch.float64)
    none = values[:0]
    return pack([(none, none)], values, len(values), matrix.products, converged=finite)


def whole_blocks(
    matrix: Counting, size: int, blocks: int, max_products: int | None, progress: Progress | None
) -> Tensor:
    """The blocks (N, d, d) themselves, on the CPU in float64. Raises SpectraError where they are too large."""
    refuse_large(matrix, size, blocks, max_products)
    dense = torch.empty(blocks, size, size, dtype=torch.float64)
    for first, images in block_columns(matrix, size, blocks):
        dense[:, :, first : first + images.shape[2]] = images
        if progress:
            progress(products=matrix.products, wanted=size)
    return dense


def decomposed(matrices: Tensor, k: int, which: str, tolerance: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Values (b, k), vectors (b, k, d), residuals (b, k) and those allowed, of matrices (b, d, d)."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    sizes = values.abs().amax(dim=1).tolist()
    chosen = torch.stack([select(row, k, which) for row in values])
    values = values.gather(1, chosen)
    vectors = vectors.gather(2, chosen[:, None].expand(-1, vectors.shape[1], -1))
    residuals = torch.linalg.vector_norm(matrices @ vectors - vectors * values[:, None], dim=1)
    allowed = [allowed_residuals(row, size, tolerance, dtype) for row, size in zip(values, sizes, strict=True)]
    return values, vectors.mT.to(dtype), residuals, torch.stack(allowed)


@without_autocast()
def dense_block_traces(
    operator: SymmetricOperator,
    *,
    blocks: int,
    rtol: float = RTOL,
    probes: int | None = None,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> BlockTraces:
    """Compute the trace of each of the equal diagonal blocks exactly, by d products.

    The arguments are those of `hutchinson_blocks`; `rtol` and `probes` are not needed.
    """
    matrix, size = Counting(Whole(in_ieee(operator))), operator.shape[0] // blocks
    refuse_large(matrix, size, 0, max_products)
    values = torch.zeros(blocks, dtype=torch.float64)
    for first, images in block_columns(matrix, size, blocks):
        values += images[:, first : first + images.shape[2]].diagonal(dim1=1, dim2=2).sum(dim=1)
        if progress:
            progress(products=matrix.products, wanted=size)
    finite = values.isfinite()
    errors = torch.zeros_like(values).masked_fill(~finite, math.nan)
    every = bool(finite.all())
    spread_error = 0.0 if every else math.nan
    return BlockTraces(values, errors, spread_of(values), spread_error, matrix.products, converged=every)


@without_autocast()
def hutchinson_blocks(
    operator: SymmetricOperator,
    *,
    blocks: int,
    rtol: float = RTOL,
    probes: int | None = None,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
    instead: int | None = None,
) -> BlockTraces:
    """Estimate the trace of each of the equal diagonal blocks by the means of w'A_i w over random sign vectors w.

    Samples are drawn until the standard error of the mean over blocks is below rtol |mean|; `probes` fixes their number
    instead. What the errors of single traces add to the spread over blocks is taken off it.

    Args:
        operator: the block-diagonal matrix D (N d, N d).
        blocks: the number N of blocks.
        rtol: the relative standard error of the mean.
        probes: the number of samples, in place of `rtol`.
        generator: a CPU generator.
        max_products: the largest number of products.
        progress: called with products, trace and standard error.
        instead: end without convergence where more samples than these products are still to come, so that they serve.
    """
    matrix = Counting(Whole(in_ieee(operator)))
    budget, widest = budgeted(max_products, probes), columns(fitting_vectors(matrix), EACH)
    samples = torch.empty(0, blocks, dtype=torch.float64)

    def draw(count: int) -> Tensor:
        signs = random_signs(matrix, count, generator)
        return ((matrix @ signs.T).T.double() * signs).view(count, blocks, -1).sum(dim=2).cpu()

    found = means_of(samples, 0)
    while matrix.products < budget and (probes is None or len(samples) < probes):
        wanted = max(FEWEST - len(samples), len(samples) // 8, 1) if probes is None else probes - len(samples)
        count = affordable(min(wanted, widest), budget - matrix.products)
        samples = torch.cat([samples, checkpointed(matrix, partial(draw, count), generator)])
        found = means_of(samples, matrix.products)
        if progress:
            progress(products=matrix.products, trace=found.mean, standard_error=found.error)
        if not math.isfinite(found.mean) or (
            probes is None and len(samples) >= FEWEST and found.error <= rtol * abs(found.mean)
        ):
            break
        if instead is not None and len(samples) >= FEWEST and instead <= budget - matrix.products:
            ratio = found.error / (rtol * abs(found.mean)) if found.mean else math.inf
            if len(samples) * (ratio**2 - 1) > instead:
                break
    enough = len(samples) >= FEWEST and found.error <= rtol * abs(found.mean)
    met = enough if probes is None else len(samples) == probes
    spread, spread_error = spread_with_error(samples)
    converged = bool(met and math.isfinite(found.error))
    return replace(found, spread=spread, spread_error=spread_error, converged=converged)


@without_autocast()
def cheapest_block_traces(
    operator: SymmetricOperator,
    *,
    blocks: int,
    rtol: float = RTOL,
    probes: int | None = None,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> BlockTraces:
    """Find the trace of each of the equal diagonal blocks to `rtol` by samples, or exactly where that is cheaper.

    Blocks of few rows are exact from the start. With larger ones the samples that have been drawn foretell how many
    more would be needed; where these are more than d, d products of unit vectors make all traces exact.

    The arguments are those of `hutchinson_blocks`.
    """
    size = operator.shape[0] // blocks
    budget = budgeted(max_products, probes)
    asked = {"blocks": blocks, "rtol": rtol, "generator": generator, "progress": progress}
    if probes is None and size <= min(DENSE_TRACE, budget):
        return dense_block_traces(operator, max_products=max_products, **asked)
    instead = size if probes is None else None
    found = hutchinson_blocks(operator, probes=probes, max_products=max_products, instead=instead, **asked)
    if found.converged or instead is None or instead > budget - found.products or not math.isfinite(found.mean):
        return found
    exact = dense_block_traces(operator, **asked)
    return replace(exact, products=exact.products + found.products)


def means_of(samples: Tensor, products: int) -> BlockTraces:
    """The traces of blocks from samples (p, N), with the spread unknown."""
    p, blocks = samples.shape
    values = samples.mean(dim=0) if p else torch.full((blocks,), math.nan, dtype=torch.float64)
    errors = samples.std(dim=0) / math.sqrt(p) if p > 1 else torch.full_like(values, math.inf)
    return BlockTraces(values, errors, math.nan, math.nan, products, converged=False, method="hutchinson")


def spread_with_error(samples: Tensor) -> tuple[float, float]:
    """The spread of the traces of blocks from samples (p, N), without what their errors add to it, and its error.

    That is of the jackknife over samples. Both are nan of too few.
    """
    p = len(samples)
    spread = clear_spread(samples.mean(dim=0), samples.var(dim=0) / p) if p > 1 else math.nan
    spread_error = math.nan
    if p > 2:
        sums, squares = samples.sum(dim=0), samples.square().sum(dim=0)
        left_out = []
        for row in samples:
            means = (sums - row) / (p - 1)
            rest = ((squares - row.square()) / (p - 1) - means.square()).clamp(min=0) / (p - 2)
            left_out.append(clear_spread(means, rest))
        spread_error = (p - 1) / math.sqrt(p) * torch.tensor(left_out, dtype=torch.float64).std().item()
    return spread, spread_error


def clear_spread(values: Tensor, variances: Tensor) -> float:
    """The standard deviation of true values, of which these are estimates with such variances."""
    return math.sqrt(max(0.0, spread_of(values) ** 2 - variances.mean().item() * (1 - 1 / len(values))))


def spread_of(values: Tensor) -> float:
    """The standard deviation of the values themselves: 0 of one."""
    return values.std(correction=0).item()


def block_columns(matrix: Counting, size: int, blocks: int) -> Iterator[tuple[int, Tensor]]:
    """Yield columns of all blocks: the first column's number, and (N, d, columns), on the CPU in float64."""
    widest = columns(fitting_vectors(matrix), EACH)
    for first in range(0, size, widest):
        width = min(widest, size - first)
        rows = torch.zeros(width, blocks, size, dtype=matrix.dtype, device=matrix.device)
        for j in range(width):
            rows[j, :, first + j] = 1
        yield first, (matrix @ rows.view(width, -1).T).double().cpu().view(blocks, size, width)


def refuse_large(matrix: Counting, size: int, blocks: int, max_products: int | None) -> None:
    """Raise SpectraError where memory does not hold all matrices, or `max_products` are fewer than they take."""
    require_integer("blocks", blocks, least=0)
    if max_products is not None and size > max_products:
        raise SpectraError(
            f"`max_products`: {max_products} are left, but `method` dense takes {size:,}, one a row of a block; choose "
            "another method"
        )
    if dense_bytes(size, blocks) > memory_share(matrix.device):
        raise SpectraError(
            f"`method` dense: {counted(blocks, 'matrix', 'matrices')} of {size:,} rows are more than memory holds; "
            "choose another method, or fewer `samples`"
        )
