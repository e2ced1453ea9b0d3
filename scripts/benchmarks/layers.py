"""Every layer's diagonal block of the Hessian: its leading eigenvalue, its trace, and what a product of it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

import spectra
from scripts.benchmarks.eig import PATIENCE, SMALL, TOLERANCE, timed
from scripts.benchmarks.problems import SHORT, Case
from scripts.benchmarks.timing import alternate, ratio
from scripts.benchmarks.tools import ONE_BATCH, SPECTRA, gradient, math_attention, spectra_product
from spectra.analysis.parameter_blocks import block_sums, diagonal_blocks, parameter_blocks
from spectra.krylov.diagonal import Sums, hutchinson_diagonal, xdiag
from spectra.krylov.lockstep import block_eigenpairs
from spectra.operator import SymmetricOperator

ONE_BY_ONE = "spectra, layer by layer"
EXAMPLES = {"resnet20": 16, "vit": 16}  # PyHessian would take hours for all; 128 with `full`
PRODUCTS = (32, 72, 160)  # of the whole matrix, for the traces
SEEDS = range(5)
BUDGET = 10  # seconds for the cost of a product

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
    """All layers' leading eigenvalues by each way in turn, set-up included.

    Where a way fails it is tried once more with the attention kernels that have a second derivative.
    """
    ways: dict[str, Callable[[], tuple[Tensor, int | None]]] = {
        SPECTRA: partial(leading, case, TOLERANCE),
        ONE_BY_ONE: partial(by_layer, case, layers),
        ONE_BATCH: partial(by_pyhessian, case, layers),
    }
    tools: dict[str, Any] = {name: {"seconds": []} for name in ways}
    for _ in range(3 if case.size < SMALL else 1):
        for name, task in ways.items():
            ours, before = tools[SPECTRA]["seconds"], tools[name]["seconds"]
            limit = max(PATIENCE * ours[0], PATIENCE) if ours else 1e6
            found = timed(task, limit, partial(judged, exact=exact), before)
            as_it_comes = found.get("error_message", "TimeoutError")
            if not as_it_comes.startswith("TimeoutError"):
                with math_attention():
                    found = timed(task, limit, partial(judged, exact=exact), before)
                found["as_it_comes"] = as_it_comes
            tools[name] |= found
    for tool in tools.values():
        tool["times_of_ours"] = ratio(tool["seconds"], tools[SPECTRA]["seconds"])
    return tools


def judged(values: Tensor, exact: Tensor) -> dict[str, Any]:
    """Relative errors of the layers, the worst, and how many are beyond the tolerance."""
    errors = ((values.double().cpu() - exact) / exact).abs()
    missed = int((errors > TOLERANCE).sum())
    return {"relative_error": errors.max().item(), "beyond_tolerance": missed, "relative_errors": errors.tolist()}


def leading(case: Case, tolerance: float) -> tuple[Tensor, int]:
    """As `spectra.layers` finds them: all blocks from one graph."""
    operator, own, index, _ = blocks_of(case)
    generator = torch.Generator().manual_seed(0)
    pairs = block_eigenpairs(own, index, 1, tolerance=tolerance, generator=generator)
    return torch.stack([found.values[0] for found in pairs]), sum(found.products for found in pairs)


def blocks_of(case: Case) -> tuple[SymmetricOperator, SymmetricOperator, list[Tensor], Sums]:
    """The Hessian, its diagonal blocks, where they stand, and sums over them."""
    problem = case.problem()
    operator, blocks = spectra.Curvature(problem, "hessian"), parameter_blocks(problem, "layer")
    own = diagonal_blocks(operator, blocks, problem, "hessian")
    index = [block.index.to(operator.device) for block in blocks]
    return operator, own, index, block_sums(problem, blocks, operator)


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


def by_pyhessian(case: Case, layers: Layers) -> tuple[Tensor, None]:
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
            values.append(tool.eigenvalues(top_n=1)[0][0])
    return torch.tensor(values), None
