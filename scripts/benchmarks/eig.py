"""The ten eigenvalues of largest magnitude: whole tasks, set-up included, with the error that each tool reached."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectra
from scripts.benchmarks.problems import Case
from scripts.benchmarks.timing import limited, synchronise
from scripts.benchmarks.tools import (
    CURVLINOPS,
    EIGENTHINGS,
    LOADER,
    ONE_BATCH,
    SPECTRA,
    curvlinops,
    eigenthings,
    first_line,
    pyhessian,
)
from spectra.operator import Counting

K, TOLERANCE = 10, 1e-3
STEPS = 50  # up to which hessian-eigenthings reorthogonalises by itself
SMALL = 5000  # parameters, up to which the dense matrix is taken too
PATIENCE = 10  # times our own time, and no less than these seconds


def measure(case: Case, full: bool) -> dict[str, Any]:
    """Of ResNet-20 only `full` takes all examples; PyHessian would take most of an hour for them.

    Of one batch its way of a loader is the same, only slower.
    """
    if case.name == "resnet20" and not full:
        case = case.first(128)
    exact, check = reference(case)
    steps = steps_needed(case, exact)
    tools: dict[str, Callable[[], tuple[Tensor, int | None]]] = {
        SPECTRA: partial(by_spectra, case),
        CURVLINOPS: partial(by_arpack, case),
        EIGENTHINGS: partial(by_eigenthings, case, steps),
        ONE_BATCH: partial(by_pyhessian, case, loader=False),
    }
    if case.size < SMALL or len(case.batches) > 1:
        tools[LOADER] = partial(by_pyhessian, case, loader=True)
    rounds = 3 if case.size < SMALL else 1
    results: dict[str, Any] = {name: {"seconds": []} for name in tools}

    def judge(values: Tensor) -> dict[str, Any]:
        return {"relative_error": worst(values, exact)}

    for _ in range(rounds):
        for name, task in tools.items():
            if "error_message" in results[name]:
                continue
            ours = results[SPECTRA]["seconds"]
            limit = max(PATIENCE * ours[0], PATIENCE) if ours else 1e6
            results[name] |= timed(task, limit, judge, results[name]["seconds"])
    return {
        "examples": case.examples,
        "tools": results,
        "eigenvalues": exact.tolist(),
        "reference_against_dense": check,
        "steps_of_hessian_eigenthings": steps,
    }


def timed(task: Callable, limit: float, judge: Callable[[Tensor], dict], before: list[float]) -> dict[str, Any]:
    """Seconds after those `before`, products, and what the values are judged to be; or the error that ended it."""
    start = time.perf_counter()
    try:
        with limited(limit):
            values, products = task()
            synchronise()
    except Exception as error:
        return {"seconds": [*before, time.perf_counter() - start], "error_message": first_line(error)}
    taken = time.perf_counter() - start
    return {"seconds": [*before, taken], "products": products} | judge(values)


def worst(values: Tensor, exact: Tensor) -> float:
    """The largest relative error, value by value in order of magnitude."""
    values = largest(values.double().cpu())
    return ((values - exact).abs() / exact.abs()).max().item()


def reference(case: Case) -> tuple[Tensor, float | None]:
    """The eigenvalues in float64 to 1e-8, and how far they are from a dense eigensolver's, where that can be had."""
    operator = spectra.Curvature(case.double().problem(), "hessian")
    exact = spectra.eigenpairs(operator, K, tolerance=1e-8, generator=torch.Generator().manual_seed(1)).values.cpu()
    if case.size > SMALL:
        return exact, None
    dense = torch.linalg.eigvalsh(operator @ torch.eye(case.size, dtype=torch.float64, device=operator.device)).cpu()
    return exact, worst(largest(dense), exact)


def largest(values: Tensor) -> Tensor:
    """The K of largest magnitude."""
    return values[values.abs().argsort(descending=True)[:K]]


def by_spectra(case: Case) -> tuple[Tensor, int]:
    operator = spectra.Curvature(case.problem(), "hessian")
    pairs = spectra.eigenpairs(operator, K, tolerance=TOLERANCE, generator=torch.Generator().manual_seed(0))
    return pairs.values, pairs.products


def by_arpack(case: Case) -> tuple[Tensor, int]:
    from scipy.sparse.linalg import eigsh

    counted = Counting(curvlinops(case, "hessian"))
    start = np.random.default_rng(0).standard_normal(case.size).astype("float32")
    values = eigsh(spectra.to_scipy(counted), K, which="LM", tol=TOLERANCE, v0=start, return_eigenvectors=False)
    return torch.from_numpy(values), counted.products


def by_eigenthings(case: Case, steps: int) -> tuple[Tensor, int]:
    from hessian_eigenthings import lanczos

    found = lanczos(eigenthings(case, "hessian"), k=K, max_iter=steps, seed=0)
    return found.eigenvalues, steps


def by_pyhessian(case: Case, loader: bool) -> tuple[Tensor, None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor(pyhessian(case, loader).eigenvalues(top_n=K)[0]), None


def steps_needed(case: Case, exact: Tensor) -> int:
    """The fewest Lanczos steps after which hessian-eigenthings has all ten to the tolerance, else its `STEPS`.

    Its own loop, once, on our product; shorter runs are leading blocks of the same tridiagonal matrix.
    """
    from hessian_eigenthings import LambdaOperator, lanczos_tridiagonal

    operator = spectra.Curvature(case.problem(), "hessian")
    own = LambdaOperator(operator.__matmul__, case.size, operator.device, operator.dtype)
    start = torch.randn(case.size, generator=torch.Generator().manual_seed(0))
    run = lanczos_tridiagonal(own, start.to(operator.device), STEPS)
    alphas, betas = run.alphas.double().cpu(), run.betas.double().cpu()
    projected = torch.diag(alphas) + torch.diag(betas, 1) + torch.diag(betas, -1)
    for steps in range(K, len(alphas) + 1):
        values = torch.linalg.eigvalsh(projected[:steps, :steps])
        if worst(largest(values), exact) <= TOLERANCE:
            return steps
    return STEPS
