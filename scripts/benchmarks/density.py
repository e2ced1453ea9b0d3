"""The spectral density by 10 probes of 80 steps: whole tasks, set-up included, and how far off the truth they end."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

import spectra
from scripts.benchmarks.problems import Case
from scripts.benchmarks.timing import ratio, synchronise
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

PROBES, STEPS = 10, 80
Distribution = tuple[np.ndarray, np.ndarray]  # values and their masses


def measure(case: Case, full: bool) -> dict[str, Any]:
    tasks = {
        SPECTRA: by_spectra,
        CURVLINOPS: by_curvlinops,
        EIGENTHINGS: by_eigenthings,
        ONE_BATCH: partial(by_pyhessian, loader=False),
        LOADER: partial(by_pyhessian, loader=True),
    }
    exact = spectrum(case) if case.size < 5000 else None
    results: dict[str, Any] = {name: {"seconds": []} for name in tasks}
    for _ in range(5 if full else 3 if case.size < 10_000 else 1):
        for name, task in tasks.items():
            if "error_message" not in results[name]:
                results[name]["seconds"].append(taken(task, case, exact, results[name]))
    for result in results.values():
        if "error_message" not in result:
            result["times_of_ours"] = ratio(result["seconds"], results[SPECTRA]["seconds"])
    return {"tools": results}


def taken(task, case: Case, exact: np.ndarray | None, result: dict[str, Any]) -> float:
    start = time.perf_counter()
    try:
        found = task(case)
        synchronise()
    except Exception as error:
        result["error_message"] = first_line(error)
        return time.perf_counter() - start
    end = time.perf_counter()
    if exact is not None:
        result["distance"] = distance(found, (exact, np.full(len(exact), 1 / len(exact)))) / np.abs(exact).max()
    return end - start


def by_spectra(case: Case) -> Distribution:
    hessian = spectra.Curvature(case.problem(), "hessian", products=(PROBES + 1) * STEPS)
    generator = torch.Generator().manual_seed(0)
    measure = spectra.spectral_measure(hessian, probes=PROBES, steps=STEPS, generator=generator)
    return measure.nodes.flatten().numpy(), measure.weights.flatten().numpy() / PROBES


def by_curvlinops(case: Case) -> Distribution:
    from curvlinops import lanczos_approximate_spectrum

    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = lanczos_approximate_spectrum(curvlinops(case, "hessian"), STEPS, num_repeats=PROBES)
    grid, density = (part.double().cpu().numpy() for part in found)
    return grid, density / density.sum()


def by_eigenthings(case: Case) -> Distribution:
    from hessian_eigenthings import spectral_density

    found = spectral_density(eigenthings(case, "hessian"), num_runs=PROBES, lanczos_steps=STEPS, seed=0)
    return found.raw_eigenvalues.flatten().cpu().numpy(), found.raw_weights.flatten().cpu().numpy() / PROBES


def by_pyhessian(case: Case, loader: bool) -> Distribution:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nodes, weights = pyhessian(case, loader).density(iter=STEPS, n_v=PROBES)
    return np.ravel(nodes), np.ravel(weights) / PROBES


def spectrum(case: Case) -> np.ndarray:
    """All eigenvalues, from the dense matrix in float64."""
    hessian = spectra.Curvature(case.double().problem(), "hessian")
    dense = hessian @ torch.eye(case.size, dtype=torch.float64, device=hessian.device)
    return torch.linalg.eigvalsh(dense).cpu().numpy()


def distance(found: Distribution, exact: Distribution) -> float:
    """Wasserstein: the area between the two cumulative distributions."""
    from scipy.stats import wasserstein_distance

    (a, a_masses), (b, b_masses) = found, exact
    good = np.isfinite(a)
    return float(wasserstein_distance(a[good], b, np.clip(a_masses[good], 0, None), b_masses))
