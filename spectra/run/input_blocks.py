"""Spectra of second derivatives with respect to inputs: eigenvalues, traces and density of the matrices of examples.

The operator is the block-diagonal matrix of all examples. `run.eig`, `trace` and `density` call this for an
`InputProblem`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectra.defaults import IEEE
from spectra.errors import SpectraError
from spectra.krylov.equal_blocks import Unsharded, dense_measure, dense_measure_pays, dense_pays
from spectra.krylov.methods import CHEAPEST_TRACE_BLOCKS, EIG_BLOCKS, TRACE_BLOCKS
from spectra.operator import Counting, SymmetricOperator, random_vectors
from spectra.problem.input_problem import InputProblem
from spectra.problem.space import Space
from spectra.records.density import METHOD
from spectra.run.measurement import Measurement
from spectra.vectors import full_tensor, norm

if TYPE_CHECKING:
    from spectra.run.session import Session

APART = torch.finfo(torch.float32).eps ** 0.5  # relative: what rounding may leave in other blocks of a product


def eigenpairs(session: Session, lean: Callable[..., Any]) -> tuple[list[Measurement], str]:
    """Compute the eigenpairs of each example, one measurement per matrix; return these and the method used.

    For lanczos, small matrices are computed whole, which takes no more products. `lean` wraps a method so that it drops
    eigenvectors that are too large.
    """
    problem, settings = input_problem(session), session.request.settings
    method = settings.method
    limit = session.request.max_products
    enough = limit is None or limit > problem.input_size + session.checks
    if method == "lanczos" and enough and dense_pays(problem.input_size, problem.count, settings.k, Space(problem)):
        method = "dense"
    solve = partial(resolve_name(EIG_BLOCKS[method]), k=settings.k, which=settings.which, tolerance=settings.tolerance)
    expected = problem.input_size if method == "dense" else 20 + 3 * settings.k
    solve = lean(partial(solve, blocks=problem.count))
    return session.measure(partial(of_single_examples, solve, problem.count), products=expected, precision=IEEE), method


def traces(session: Session) -> list[Measurement]:
    """Estimate the traces of each example, one measurement per matrix."""
    problem, settings = input_problem(session), session.request.settings
    method = TRACE_BLOCKS[settings.method] if settings.method else CHEAPEST_TRACE_BLOCKS
    solve = partial(resolve_name(method), rtol=settings.rtol, probes=settings.probes, blocks=problem.count)
    expected = settings.probes or min(problem.input_size, 100)
    if settings.method == "dense":
        expected = problem.input_size
    return session.measure(partial(of_single_examples, solve, problem.count), products=expected, precision=IEEE)


def measures(session: Session, estimate: Callable[..., Any], products: int) -> tuple[list[Measurement], str]:
    """Compute the spectral measures of all examples, one measurement per matrix; return these and the method used.

    `estimate` is a method for any matrix, which takes `products`. If no more are needed to compute every block whole,
    this is done, and all eigenvalues are exact.
    """
    problem, limit = input_problem(session), session.request.max_products
    left = products if limit is None else min(products, limit - session.checks - 1)
    if dense_measure_pays(problem.input_size, problem.count, left, Space(problem)):
        solve = partial(of_single_examples, partial(dense_measure, blocks=problem.count), problem.count)
        return session.measure(solve, products=problem.input_size, precision=IEEE), "dense"
    return session.measure(partial(of_single_examples, estimate, problem.count), products=products), METHOD


def input_problem(session: Session) -> InputProblem:
    """The problem of the session, as an InputProblem."""
    assert isinstance(session.problem, InputProblem)
    return session.problem


def of_single_examples(
    solve: Callable[..., Any],
    blocks: int,
    operator: SymmetricOperator,
    *,
    generator: torch.Generator,
    max_products: int | None = None,
    **options: Any,
) -> Any:
    """Check by a product that the matrix is block-diagonal, and return the answer of a method.

    Raises SpectraError if it is not, because the loss of an example depends on the inputs of others.
    """
    matrix = Counting(operator)
    if blocks > 1:
        refuse_mixed(matrix, blocks, generator)
    left = None if max_products is None else max_products - matrix.products
    answer = solve(operator, generator=generator, max_products=left, **options)
    return replace(answer, products=answer.products + matrix.products)


def refuse_mixed(matrix: SymmetricOperator, blocks: int, generator: torch.Generator) -> None:
    """Raise SpectraError if a product with some blocks of a vector has entries in other blocks."""
    drawn = full_tensor(random_vectors(matrix, 1, generator))[0].view(blocks, -1)
    kept = torch.randperm(blocks, generator=generator)[: blocks // 2].to(drawn.device)
    vector = torch.zeros_like(drawn)
    vector[kept] = drawn[kept]
    image: Tensor = (Unsharded(matrix) @ vector.flatten()).view(blocks, -1)
    size = norm(image.flatten())
    image[kept] = 0
    others = norm(image.flatten())
    if others > APART * size:
        raise SpectraError(
            f"`wrt` inputs: the loss of an example depends on the inputs of others (relative change "
            f"{others / size:.1e}), so an example has no matrix of its own; look for means over dimension 0 in the "
            "model, and for comparisons of examples in the loss"
        )
