"""Exact eigenpairs and trace of A = F'F + shift I from the Gram matrix F F' of its factor F.

F may have any number of columns. Where F F' w = lambda w, F'w is an eigenvector of F'F with the same eigenvalue.
Vectors orthogonal to all of these have eigenvalue zero.
"""

from __future__ import annotations

import math
import time

import scipy.linalg
import torch
from torch import Tensor

from spectra.arguments import chosen_generator
from spectra.defaults import RTOL, TOLERANCE
from spectra.errors import SpectraError
from spectra.krylov.bounds import true_residuals
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.hutchinson import FEWEST
from spectra.krylov.limits import refuse_search
from spectra.krylov.results import Eigenpairs, Progress, TraceEstimate, exact_trace, no_eigenpairs, select
from spectra.operator import Factored, SymmetricFactor, SymmetricOperator, in_ieee, random_vectors
from spectra.vectors import orthonormal, take_rows, without_autocast

SAMPLE = 500  # rows that are timed to predict the time of more; fewer fit in a cache and are faster


@without_autocast()
def gram_eigenpairs(
    operator: Factored,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """Compute `k` exact eigenpairs of a matrix that has a factor of few rows, by decomposing the Gram matrix.

    The residuals are measured, by k products. A pair has converged when its residual is at most max(tolerance *
    max(|lambda|, eps^(2/3) |A|), 10 eps |A|).

    Args:
        operator: the matrix (n, n), with a method `factor`.
        k: the number of eigenpairs.
        which: LM (largest magnitude), LA (largest), SA (smallest) or BE (half from either end).
        tolerance: the relative residual of a converged pair.
        seed: the seed of the random vectors that complete the zero eigenspace, where no `generator` is given.
        generator: a CPU generator in place of the seed.
        max_products: the largest number of products; None for no limit.
        progress: called with the products so far and the rows of the Gram matrix.

    Returns:
        Eigenpairs, in the order that `which` implies; nan where F is not finite.

    Raises:
        SpectraError: k > n, the matrix has no factor or one of too many rows, or `max_products` is too small.
    """
    refuse_search(operator.shape[0], k, which, tolerance, max_products)
    n = operator.shape[0]
    generator = chosen_generator(seed, generator)
    factor = operator.factor()
    refuse_budget(factor.cost() + k + (k + 1) // 2, max_products)

    gram = factor.gram()
    if not torch.isfinite(gram).all():
        return no_eigenpairs(operator, k, products=factor.products)
    if progress:  # LAPACK reports nothing, and ignores Ctrl-C, until it is done
        progress(products=factor.products, gram_rows=len(gram))

    values, weights = decomposed(gram, k if which in ("LM", "LA") else len(gram))
    zeros = torch.zeros(min(k, n - len(values)), dtype=torch.float64)
    spectrum = torch.cat([values, zeros])
    chosen = select(spectrum, k, which)

    falling, back = chosen.sort()
    wanted = weights[:, falling[falling < len(values)]]
    vectors = eigenvectors(operator, factor, wanted, k - wanted.shape[1], values, weights, generator)
    vectors, values = take_rows(vectors, back.argsort()), spectrum[chosen] + factor.shift

    residuals = true_residuals(in_ieee(operator), values, vectors)
    allowed = allowed_residuals(values, spectrum[0].item() + abs(factor.shift), tolerance, operator.dtype)
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        error_estimates=residuals,
        products=factor.products + k,
        converged=bool((residuals <= allowed).all()),
        complete=True,
    )


def decomposed(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of a Gram matrix, falling, and eigenvectors (rows, k).

    Eigenvalues of the size of rounding are left out.
    """
    rows = len(gram)
    if not rows:
        return gram.new_zeros(0), gram
    if k < rows:  # the same reduction, but only k vectors are transformed back
        pairs = scipy.linalg.eigh(gram.cpu().numpy(), subset_by_index=(rows - k, rows - 1))
        values, vectors = map(torch.from_numpy, pairs)
    else:
        values, vectors = (pair.cpu() for pair in torch.linalg.eigh(gram))
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > rows * torch.finfo(torch.float64).eps * values[0]
    return values[kept], vectors[:, kept]


def decomposition_seconds(rows: int) -> float:
    """Predict the seconds that `decomposed` takes: those of at most SAMPLE rows, scaled by the cube of the number
    of rows.
    """
    few = min(rows, SAMPLE)
    sample = torch.rand(few, few, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = time.perf_counter()
    decomposed(sample @ sample.T, 1)
    return (time.perf_counter() - start) * (rows / few) ** 3


def eigenvectors(
    operator: SymmetricOperator,
    factor: SymmetricFactor,
    wanted: Tensor,
    zeros: int,
    values: Tensor,
    weights: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Orthonormal eigenvectors of A, as rows (k + zeros, n).

    Args:
        operator: the matrix, which determines the device of the vectors.
        factor: its factor F.
        wanted: eigenvectors w of the Gram matrix, (rows, k); each gives F'w.
        zeros: the number of vectors of the zero eigenspace: random ones, orthogonalised against all F'w.
        values: all non-zero eigenvalues of the Gram matrix.
        weights: the eigenvectors that belong to `values`, as columns.
        generator: a CPU generator for the random vectors.
    """
    vectors = factor.transposed_times(wanted.T)
    if zeros:
        others = random_vectors(operator, zeros, generator)
        for _ in range(2):
            along = factor.times(others).cpu().double() @ weights / values
            others = others - factor.transposed_times(along @ weights.T)
        vectors = torch.cat([vectors, others])
    return orthonormal(vectors)[0].contiguous()


@without_autocast()
def gram_trace(
    operator: Factored,
    *,
    rtol: float = RTOL,
    probes: int | None = None,
    known: float = 0.0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> TraceEstimate:
    """Compute tr A + known exactly, as the sum of the squares of the factor.

    Raises SpectraError if the matrix has no factor or one of too many rows, or `max_products` is too small.
    """
    factor = operator.factor()
    refuse_budget(factor.trace_cost(), max_products)
    value = factor.trace() + operator.shape[0] * factor.shift
    return exact_trace(known + value, factor.products)


def exact_trace_pays(operator: Factored, max_products: int | None = None) -> bool:
    """Whether `gram_trace` takes at most the work of the first stage of XTrace, and at most `max_products`.

    The work is counted, not timed, so that the answer is the same on every machine.
    """
    try:
        work = operator.factor().trace_work()
    except SpectraError:
        return False
    return work <= min(2 * FEWEST, operator.shape[0], math.inf if max_products is None else max_products)


def refuse_budget(products: int, max_products: int | None) -> None:
    """Raise SpectraError if `products` are more than `max_products`."""
    if max_products is not None and products > max_products:
        raise SpectraError(
            f"`max_products`: `method` gram needs {products:,} products here, and {max_products:,} are left; raise "
            "`max_products`, or choose another method"
        )
