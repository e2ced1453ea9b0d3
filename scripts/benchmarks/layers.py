"""Every layer's diagonal block of the Hessian: its leading eigenvalue, its trace, and what a product of it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import spectra
from scripts.benchmarks.eig import PATIENCE, SMALL, TOLERANCE, timed
from scripts.benchmarks.problems import Case
from scripts.benchmarks.timing import alternate, ratio
from scripts.benchmarks.tools import SPECTRA, gradient, math_attention, spectra_product
from spectra.krylov.block_diagonal import block_eigenpairs
from spectra.krylov.diagonal import Sums
from spectra.layerwise.layers import DIAGONALS
from spectra.layerwise.parameter_blocks import block_sums, diagonal_blocks, parameter_blocks
from spectra.operator import SymmetricOperator

ONE_BY_ONE, PYHESSIAN, TIGHT = "spectra, layer by layer", "PyHessian, layer by layer", "PyHessian, tol 1e-5"
EXAMPLES = {"resnet20": 8, "vit": 4}  # a reference for all would take an hour; with `full` 128
ROUNDS, ENOUGH = 9, 30  # no further round once so many seconds have gone by
PRODUCTS = (32, 72, 162)  # of the whole matrix, for the traces
SEEDS = range(5)
BUDGET = 5  # seconds, for the cost of a product

Layers = dict[str, list[str]]  # the names of each layer's parameters


def measure(case: Case, full: bool) -> dict[str, Any]:
    if case.name in EXAMPLES:
        case = case.first(128 if full else EXAMPLES[case.name])
    layers = layers_of(case)
    exact = leading(case.double(), 1e-8)[0].cpu()
    found = {
        "examples": case.examples,
        "layers": list(layers),
        "eigenvalues": exact.tolist(),
        "tools": eigenvalues(case, layers, exact),
        "products": products(case, len(layers)),
    }
    if case.size < SMALL:
        dense = dense_hessian(case.double())
        found["reference_against_dense"] = judged(exact, of_blocks(case, dense, largest))["relative_error"]
        found["traces"] = traces(case, of_blocks(case, dense, torch.trace))
    return found


def layers_of(case: Case) -> Layers:
    """Parameters by the module that owns them."""
    layers: Layers = {}
    for name, _ in case.model.named_parameters():
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers


def eigenvalues(case: Case, layers: Layers, exact: Tensor) -> dict[str, Any]:
    """All layers' leading eigenvalues by each way in turn, set-up included."""
    ways: dict[str, Callable[[], tuple[Tensor, int | None]]] = {
        SPECTRA: partial(leading, case, TOLERANCE),
        ONE_BY_ONE: partial(by_layer, case, layers),
        PYHESSIAN: partial(by_pyhessian, case, layers, TOLERANCE),
        TIGHT: partial(by_pyhessian, case, layers, TOLERANCE / 100),
    }
    tools: dict[str, Any] = {name: {"seconds": []} for name in ways}
    judge, start = partial(judged, exact=exact), time.perf_counter()
    for _ in range(ROUNDS):
        for name, task in ways.items():
            ours, before = tools[SPECTRA]["seconds"], tools[name]["seconds"]
            limit = max(PATIENCE * ours[0], PATIENCE) if ours else 1e6
            tools[name] |= attempted(partial(timed, task, limit, judge, before))
        if time.perf_counter() - start > ENOUGH:
            break
    for tool in tools.values():
        tool["times_of_ours"] = ratio(tool["seconds"], tools[SPECTRA]["seconds"])
    return tools


def attempted(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or where that failed, under math attention."""
    found = measured()
    error = found.get("error_message", "TimeoutError")
    if error.startswith("TimeoutError"):
        return found
    with math_attention():
        return measured() | {"as_it_comes": error}


def judged(values: Tensor, exact: Tensor) -> dict[str, Any]:
    """Relative errors of the layers, the worst, and how many are beyond the tolerance."""
    errors = ((values.double().cpu() - exact) / exact).abs()
    missed = int((errors > TOLERANCE).sum())
    return {"relative_error": errors.max().item(), "beyond_tolerance": missed, "relative_errors": errors.tolist()}


def leading(case: Case, tolerance: float) -> tuple[Tensor, int]:
    """As `spectra.layers` finds them: all blocks from one graph."""
    own, index = blocks_of(case)
    generator = torch.Generator().manual_seed(0)
    pairs = block_eigenpairs(own, index, 1, tolerance=tolerance, generator=generator)
    return torch.stack([found.values[0] for found in pairs]), sum(found.products for found in pairs)


def blocks_of(case: Case) -> tuple[SymmetricOperator, list[Tensor]]:
    """The diagonal blocks of the Hessian, and where they stand."""
    problem = case.problem()
    blocks = parameter_blocks(problem, "layer")
    own = diagonal_blocks(spectra.Curvature(problem, "hessian"), blocks, problem, "hessian")
    return own, [block.index.to(own.device) for block in blocks]


def by_layer(case: Case, layers: Layers) -> tuple[Tensor, int]:
    """As `spectra eig --params` would, run for each layer."""
    values, products = [], 0
    named = dict(case.model.named_parameters())
    for names in layers.values():
        problem = replace(case.problem(), parameters={name: named[name] for name in names})
        operator = spectra.Curvature(problem, "hessian")
        pairs = spectra.eigenpairs(operator, 1, tolerance=TOLERANCE, generator=torch.Generator().manual_seed(0))
        values.append(pairs.values[0])
        products += pairs.products
    return torch.stack(values), products


def by_pyhessian(case: Case, layers: Layers, tolerance: float) -> tuple[Tensor, None]:
    """Of one batch, with gradients required of one layer at a time."""
    from pyhessian import hessian

    own, values = case.copy(), []
    named = dict(own.model.named_parameters())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for names in layers.values():
            for name, p in named.items():
                p.requires_grad_(name in names)
            tool = hessian(own.model, own.criterion, data=own.merged(), cuda=own.batches[0][0].is_cuda)
            values.append(tool.eigenvalues(tol=tolerance, top_n=1)[0][0])
    return torch.tensor(values), None


def dense_hessian(case: Case) -> Tensor:
    operator = spectra.Curvature(case.problem(), "hessian")
    return (operator @ torch.eye(case.size, dtype=operator.dtype, device=operator.device)).cpu()


def of_blocks(case: Case, dense: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A number (L,) of each block of a dense matrix (n, n)."""
    return torch.stack([function(dense[some][:, some]) for some in blocks_of(case)[1]])


def largest(block: Tensor) -> Tensor:
    """The eigenvalue of largest magnitude."""
    values = torch.linalg.eigvalsh(block)
    return values[values.abs().argmax()]


def traces(case: Case, exact: Tensor) -> dict[str, Any]:
    """Errors of the layers' traces over the whole trace, the worst layer's root mean square over seeds."""
    problem = case.problem()
    operator = spectra.Curvature(problem, "hessian")
    sums = block_sums(problem, parameter_blocks(problem, "layer"), operator)
    errors = {
        products: {name: of_seeds(way, operator, sums, products, exact) for name, way in DIAGONALS.items()}
        for products in PRODUCTS
    }
    return {"exact": exact.tolist(), "root_mean_square_errors": errors}


def of_seeds(estimator: Callable, operator: SymmetricOperator, sums: Sums, products: int, exact: Tensor) -> float:
    errors = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        run = estimator(operator, sums, lambda *_: False, generator=generator, max_products=products)
        if run.products != products:
            raise RuntimeError(f"{run.products} products in place of {products}")
        errors.append((run.sums[: len(exact)] - exact) / exact.sum())
    return torch.stack(errors).square().mean(dim=0).sqrt().max().item()


def products(case: Case, layers: int) -> dict[str, Any]:
    """A product of one block, the mean over layers, in products of the whole matrix and in gradients."""
    own, _ = blocks_of(case)
    vector = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(own.device, own.dtype)
    whole = spectra_product(case, "hessian")
    calls = {"gradient": lambda: gradient(case), "whole": lambda: whole(vector), "blocks": lambda: own @ vector}
    times = alternate(calls, BUDGET)
    each = [seconds / layers for seconds in times["blocks"]]
    return {"seconds": times, "of_whole": ratio(each, times["whole"]), "gradients": ratio(each, times["gradient"])}
