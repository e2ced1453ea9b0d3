"""Spectra of N diagonal blocks of equal size at once: D = diag(A_1, ..., A_N), where each block has d rows.

One product with D multiplies all blocks. So d products give every block as a dense matrix, and a Lanczos step, a sample
of the trace, or a check costs one product for all blocks.
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
LARGEST_MEASURE = 10_000  # eigenvalues that a result may list
DENSE_TRACE = 256  # rows up to which traces are exact from the start, because samples may be far off for single blocks


class Unsharded(Wrapper):
    """The operator for vectors that are not sharded, because those of single blocks are small."""

    @property
    def mesh(self) -> None:
        """Always None, because vectors are not sharded."""
        return None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        rows = vectors[None] if vectors.ndim == 1 else vectors.T
        return full_tensor(self.operator @ placed(rows, self.operator).T).view_as(vectors)


def dense_pays(size: int, blocks: int, k: int, operator: Shaped) -> bool:
    """Whether building all blocks as dense matrices is cheaper than Lanczos, and they fit memory."""
    return size <= max(SMALL, usual_products(k)) and dense_bytes(size, blocks) <= memory_share(operator.device)


def dense_measure_pays(size: int, blocks: int, products: int, operator: Shaped) -> bool:
    """Whether all eigenvalues take at most `products`, those of an estimate, and fit a result and memory."""
    return (
        size <= min(products, DENSE_TRACE)
        and size * blocks <= LARGEST_MEASURE
        and dense_bytes(size, blocks) <= memory_share(operator.device)
    )


def dense_bytes(size: int, blocks: int) -> int:
    """The bytes of all blocks as dense matrices in float64."""
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
    """Compute `k` eigenpairs of each of the equal diagonal blocks by Lanczos runs that advance together.

    Args:
        operator: the block-diagonal matrix D (N d, N d).
        k: the number of eigenpairs per block.
        blocks: the number N of blocks.
        which: LM (largest magnitude), LA (largest), SA (smallest) or BE (half from either end).
        tolerance: the relative residual of a converged pair.
        generator: a CPU generator.
        max_products: the largest number of products per block; blocks that request several at once may exceed it.
        progress: called after each joint product.
    """
    matrix, size = Counting(Unsharded(in_ieee(operator))), operator.shape[0] // blocks
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
    """Compute `k` eigenpairs of each of the equal diagonal blocks exactly, from dense matrices built by d products.

    The arguments are those of `lanczos_blocks`. The residuals are those of the matrices before they are made symmetric,
    so that they include the rounding of products.

    Raises SpectraError if the blocks do not fit memory, or `max_products` is less than d.
    """
    matrix, size = Counting(Unsharded(in_ieee(operator))), operator.shape[0] // blocks
    refuse_search(size, k, which, tolerance, max_products)
    dense = dense_matrices(matrix, size, blocks, max_products, progress)
    finite = dense.isfinite().flatten(1).all(dim=1)
    dense[~finite] = 0  # so that all can be decomposed in one call
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
    matrix, size = Counting(Unsharded(in_ieee(operator))), operator.shape[0] // blocks
    dense = dense_matrices(matrix, size, blocks, max_products, progress)
    if finite := bool(dense.isfinite().all()):
        parts = [torch.linalg.eigvalsh((some + some.mT) / 2) for some in dense.split(EXAMPLES)]
        values = torch.cat(parts).flatten().sort(descending=True).values
    else:
        values = torch.full((size * blocks,), math.nan, dtype=torch.float64)
    none = values[:0]
    return pack([(none, none)], values, len(values), matrix.products, converged=finite)


def dense_matrices(
    matrix: Counting, size: int, blocks: int, max_products: int | None, progress: Progress | None
) -> Tensor:
    """Build the dense blocks (N, d, d), in float64 on the CPU. Raises SpectraError if they are too large."""
    refuse_large(matrix, size, blocks, max_products)
    dense = torch.empty(blocks, size, size, dtype=torch.float64)
    for first, images in block_columns(matrix, size, blocks):
        dense[:, :, first : first + images.shape[2]] = images
        if progress:
            progress(products=matrix.products, wanted=size)
    return dense


def decomposed(matrices: Tensor, k: int, which: str, tolerance: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The eigenvalues (b, k), eigenvectors (b, k, d), residuals and allowed residuals (b, k) of matrices (b, d, d)."""
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
    matrix, size = Counting(Unsharded(in_ieee(operator))), operator.shape[0] // blocks
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
    exact_cost: int | None = None,
) -> BlockTraces:
    """Estimate the trace of each of the equal diagonal blocks by the means of w'A_i w over random sign vectors w.

    Samples are drawn until the standard error of the mean over blocks is below rtol |mean|; `probes` fixes their number
    instead. The spread over blocks is corrected for the errors of the single traces.

    Args:
        operator: the block-diagonal matrix D (N d, N d).
        blocks: the number N of blocks.
        rtol: the relative standard error of the mean.
        probes: the number of samples, in place of `rtol`.
        generator: a CPU generator.
        max_products: the largest number of products.
        progress: called with products, trace and standard error.
        exact_cost: the products of an exact method; sampling stops without convergence if it would need more than that.
    """
    matrix = Counting(Unsharded(in_ieee(operator)))
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
        if exact_cost is not None and len(samples) >= FEWEST and exact_cost <= budget - matrix.products:
            ratio = found.error / (rtol * abs(found.mean)) if found.mean else math.inf
            if len(samples) * (ratio**2 - 1) > exact_cost:
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
    """Compute the trace of each of the equal diagonal blocks to `rtol` by samples, or exactly if that is cheaper.

    Traces of small blocks are exact from the start. For larger blocks, the first samples predict how many more are
    needed; if these are more than d, all traces are computed exactly by d products with unit vectors.

    The arguments are those of `hutchinson_blocks`.
    """
    size = operator.shape[0] // blocks
    budget = budgeted(max_products, probes)
    arguments = {"blocks": blocks, "rtol": rtol, "generator": generator, "progress": progress}
    if probes is None and size <= min(DENSE_TRACE, budget):
        return dense_block_traces(operator, max_products=max_products, **arguments)
    cost = size if probes is None else None
    found = hutchinson_blocks(operator, probes=probes, max_products=max_products, exact_cost=cost, **arguments)
    if found.converged or cost is None or cost > budget - found.products or not math.isfinite(found.mean):
        return found
    exact = dense_block_traces(operator, **arguments)
    return replace(exact, products=exact.products + found.products)


def means_of(samples: Tensor, products: int) -> BlockTraces:
    """The traces of blocks as means of samples (p, N), with the spread left unknown."""
    p, blocks = samples.shape
    values = samples.mean(dim=0) if p else torch.full((blocks,), math.nan, dtype=torch.float64)
    errors = samples.std(dim=0) / math.sqrt(p) if p > 1 else torch.full_like(values, math.inf)
    return BlockTraces(values, errors, math.nan, math.nan, products, converged=False, method="hutchinson")


def spread_with_error(samples: Tensor) -> tuple[float, float]:
    """The spread of the traces over blocks, corrected for their errors, and its jackknife error, from samples (p, N).

    The spread is nan for fewer than two samples, and its error for fewer than three.
    """
    p = len(samples)
    spread = corrected_spread(samples.mean(dim=0), samples.var(dim=0) / p) if p > 1 else math.nan
    spread_error = math.nan
    if p > 2:
        sums, squares = samples.sum(dim=0), samples.square().sum(dim=0)
        left_out = []
        for row in samples:
            means = (sums - row) / (p - 1)
            rest = ((squares - row.square()) / (p - 1) - means.square()).clamp(min=0) / (p - 2)
            left_out.append(corrected_spread(means, rest))
        spread_error = (p - 1) / math.sqrt(p) * torch.tensor(left_out, dtype=torch.float64).std().item()
    return spread, spread_error


def corrected_spread(values: Tensor, variances: Tensor) -> float:
    """The standard deviation of true values, from estimates of them with known variances."""
    return math.sqrt(max(0.0, spread_of(values) ** 2 - variances.mean().item() * (1 - 1 / len(values))))


def spread_of(values: Tensor) -> float:
    """The standard deviation of the values; 0 for a single one."""
    return values.std(correction=0).item()


def block_columns(matrix: Counting, size: int, blocks: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of a first column, and columns (N, d, width) of all blocks from there, in float64 on the CPU."""
    widest = columns(fitting_vectors(matrix), EACH)
    for first in range(0, size, widest):
        width = min(widest, size - first)
        rows = torch.zeros(width, blocks, size, dtype=matrix.dtype, device=matrix.device)
        for j in range(width):
            rows[j, :, first + j] = 1
        yield first, (matrix @ rows.view(width, -1).T).double().cpu().view(blocks, size, width)


def refuse_large(matrix: Counting, size: int, blocks: int, max_products: int | None) -> None:
    """Raise SpectraError if the dense matrices do not fit memory, or need more than `max_products`."""
    require_integer("blocks", blocks, least=0)
    if max_products is not None and size > max_products:
        raise SpectraError(
            f"`max_products`: `method` dense needs {size:,} products, one per row of a block, and {max_products:,} are "
            "left; raise `max_products`, or choose another method"
        )
    if dense_bytes(size, blocks) > memory_share(matrix.device):
        raise SpectraError(
            f"`method` dense: {counted(blocks, 'matrix', 'matrices')} of {size:,} rows do not fit memory; choose "
            "another method, or fewer `samples`"
        )
