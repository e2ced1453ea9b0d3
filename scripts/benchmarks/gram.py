"""The whole spectrum of the empirical Fisher of 1,000 examples, exactly, against 100 Lanczos steps; set-up included."""

from __future__ import annotations

from typing import Any

import torch

import spectra
from scripts.benchmarks.problems import Case
from scripts.benchmarks.timing import alternate, ratio

EXAMPLES, STEPS = 1000, 100
MATRIX = "fisher-empirical"


def measure(case: Case, full: bool) -> dict[str, Any]:
    case = case.first(EXAMPLES)
    exact = by_gram(case.double())
    times = alternate({"gram": lambda: by_gram(case), "lanczos": lambda: by_lanczos(case)}, 60.0 if full else 15.0)
    found, approximate = by_gram(case), by_lanczos(case)
    return {
        "seconds": times,
        "gram_times_of_lanczos": ratio(times["gram"], times["lanczos"]),
        "relative_error": ((found - exact).norm() / exact.norm()).item(),
        "relative_error_of_largest_by_lanczos": ((approximate[0] - exact[0]).abs() / exact[0]).item(),
    }


def by_gram(case: Case) -> torch.Tensor:
    """All non-zero eigenvalues, falling."""
    gram = spectra.Curvature(case.problem(), MATRIX).factor().gram()
    return torch.linalg.eigvalsh(gram).flip(0).double().cpu()


def by_lanczos(case: Case) -> torch.Tensor:
    """Ritz values, falling: the one run for which a density's products are enough."""
    operator = spectra.Curvature(case.problem(), MATRIX, products=STEPS)
    generator = torch.Generator().manual_seed(0)
    run = spectra.spectral_measure(operator, probes=1, steps=STEPS, max_products=STEPS, generator=generator)
    return run.nodes.flatten().sort(descending=True).values
