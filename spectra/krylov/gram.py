"""Eigenpairs and trace of A = F'F + shift I by the Gram matrix F F' of its factor: exact, however many columns F has.

F F' w = lambda w makes F'w an eigenvector of F'F; whatever is orthogonal to all of these has eigenvalue zero.
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
from spectra.krylov.bounds import allowed_residuals, true_residuals
from spectra.krylov.hutchinson import FEWEST
from spectra.krylov.limits import refuse_search
from spectra.krylov.results import Eigenpairs, Progress, TraceEstimate, exact_trace, no_eigenpairs, select
from spectra.operator import Factored, SymmetricFactor, SymmetricOperator, random_vectors
from spectra.vectors import orthonormal, taken, without_autocast

SAMPLE = 500  # rows, from which the time of more is foretold; caches hold fewer, and they go faster


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
    """`k` eigenpairs of a matrix that has a factor; residuals are true ones, by k products.

    A pair has converged when its residual is at most max(tolerance * max(|lambda|, eps^(2/3) |A|), 10 eps |A|). Raises
    SpectraError when k > n, where there is no factor or one of too many rows, and where `max_products` are too few.
    """
    refuse_search(operator, k, which, tolerance, max_products)
    n = operator.shape[0]
    generator = chosen_generator(seed, generator)
    factor = operator.factor()
    refuse_budget(factor.cost() + k + (k + 1) // 2, max_products)
    gram = factor.gram()
    if not torch.isfinite(gram).all():
        return no_eigenpairs(operator, k, products=factor.products)
    if progress:  # LAPACK will not be heard of, nor hear Ctrl-C, before it is done
        progress(products=factor.products, gram_rows=len(gram))
    values, weights = decomposed(gram, k if which in ("LM", "LA") else len(gram))
    zeros = torch.zeros(min(k, n - len(values)), dtype=torch.float64)
    spectrum = torch.cat([values, zeros])
    chosen = select(spectrum, k, which)
    falling, back = chosen.sort()
    wanted = weights[:, falling[falling < len(values)]]
    vectors = eigenvectors(operator, factor, wanted, k - wanted.shape[1], values, weights, generator)
    vectors, values = taken(vectors, back.argsort()), spectrum[chosen] + factor.shift
    residuals = true_residuals(operator, values, vectors)
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
    """The k largest eigenvalues, falling, but those that rounding has made of zeros; eigenvectors (rows, k)."""
    rows = len(gram)
    if not rows:
        return gram.new_zeros(0), gram
    if k < rows:  # the same reduction, but only k vectors are carried back
        pairs = scipy.linalg.eigh(gram.cpu().numpy(), subset_by_index=(rows - k, rows - 1))
        values, vectors = map(torch.from_numpy, pairs)
    else:
        values, vectors = (pair.cpu() for pair in torch.linalg.eigh(gram))
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > rows * torch.finfo(torch.float64).eps * values[0]
    return values[kept], vectors[:, kept]


def decomposition_seconds(rows: int) -> float:
    """What `decomposed` will take for some eigenvectors, by the cube of the rows from a sample of at most SAMPLE."""
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
    """F'w for the `wanted` (rows, k), and `zeros` random vectors less their parts in the span of all: orthonormal."""
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
    """Tr A + known, exact: the sum of the squares of its factor. The errors of `gram_eigenpairs`."""
    factor = operator.factor()
    refuse_budget(factor.trace_cost(), max_products)
    value = factor.trace() + operator.shape[0] * factor.shift
    return exact_trace(known + value, factor.products)


def exact_trace_pays(operator: Factored, max_products: int | None = None) -> bool:
    """Whether `gram_trace` takes no more work than the least that XTrace can do, nor more than `max_products`.

    Told by counts alone, so that it is the same on every machine.
    """
    try:
        work = operator.factor().trace_work()
    except SpectraError:
        return False
    return work <= min(2 * FEWEST, operator.shape[0], math.inf if max_products is None else max_products)


def refuse_budget(products: int, max_products: int | None) -> None:
    if max_products is not None and products > max_products:
        raise SpectraError(
            f"`max_products`: {max_products} are left, but `method` gram takes {products:,} here; choose another method"
        )
