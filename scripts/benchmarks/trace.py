"""The trace of the Hessian to 1 % standard error: products of our method and of Hutchinson's, over seeds."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch

import spectra
from scripts.benchmarks.problems import Case
from scripts.benchmarks.timing import seconds

RTOL = 0.01
SEEDS = range(5)


def measure(case: Case, full: bool) -> dict[str, Any]:
    hessian = spectra.Curvature(case.problem(), "hessian", products=1000)
    hessian.prepare()
    exact = exact_trace(case)
    estimators = {"xtrace": spectra.xtrace, "hutchinson": spectra.hutchinson}
    return {"exact": exact, **{name: runs(estimator, hessian, exact) for name, estimator in estimators.items()}}


def runs(estimator, hessian: spectra.Curvature, exact: float) -> dict[str, Any]:
    found, taken = [], []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        call = partial(estimator, hessian, rtol=RTOL, generator=generator)
        taken.append(seconds(lambda call=call: found.append(call())))
    errors = [(run.value - exact) / exact for run in found]
    return {
        "products": [run.products for run in found],
        "median_products": median(run.products for run in found),
        "seconds": taken,
        "relative_errors": errors,
        "root_mean_square_error": (sum(error**2 for error in errors) / len(errors)) ** 0.5,
        "claimed_errors": [run.standard_error / abs(run.value) for run in found],
    }


def exact_trace(case: Case) -> float:
    """In float64, by all n products."""
    hessian = spectra.Curvature(case.double().problem(), "hessian")
    blocks = torch.eye(case.size, dtype=torch.float64, device=hessian.device).split(500, dim=1)
    first, total = 0, 0.0
    for block in blocks:
        total += (hessian @ block)[first : first + block.shape[1]].trace().item()
        first += block.shape[1]
    return total
