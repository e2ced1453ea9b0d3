"""Products by finite differences: at the best step, the error is proportional to eps^(2/3), or eps^(1/2) one-sided.

A central difference with step R has a truncation error ~ R^2 and a rounding error ~ eps / R, whose sum is least at
R ~ eps^(1/3); the forward one has R + eps / R (Nocedal, Wright 2006, section 8.1). How many eps the rounding errors are
depends on the order of sums, which differs between types: a factor of 2 moves the exponent by its 29th part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "Nocedal, Wright 2006, section 8.1"
FORMS = {"central": ("finite-difference", 1 / 3, 2 / 3), "forward": ("forward-difference", 1 / 2, 1 / 2)}
FACTORS = tuple(2.0**power for power in range(-5, 2))  # of eps to the power of the best step


def rows(seeds: int = 3) -> Iterator[Row]:
    """The exponent of eps in the least error over steps, from float32 and float64, for both forms."""
    images, labels = digits(100)
    for form, (products, power, expected) in FORMS.items():
        exponents, spent = [], 0
        for seed in range(seeds):
            least = {}
            for dtype in ("float32", "float64"):
                eps = torch.finfo(getattr(torch, dtype)).eps
                found = [
                    spectra.trace(
                        network(seed),
                        nn.CrossEntropyLoss(),
                        (images, labels),
                        products=products,
                        difference_step=factor * eps**power,
                        dtype=dtype,
                        method="hutchinson",
                        max_products=24,
                        seed=seed,
                        check=False,
                        compile=False,
                    )
                    for factor in FACTORS
                ]
                least[eps] = min(one.finite_difference.error for one in found)
                spent += sum(one.products for one in found)
            (coarse, large), (fine, small) = least.items()
            exponents.append(np.log(large / small) / np.log(coarse / fine))
        error = float(np.std(exponents, ddof=1) / seeds**0.5)
        note = f"64-32-10 with tanh on 100 digits, float32 and float64, {len(FACTORS)} steps each, {seeds} networks"
        found = float(np.mean(exponents))
        yield Row(f"exponent of eps, {form}", SOURCE, expected, found, error, expected / 29, note, spent)


def network(seed: int) -> nn.Module:
    """A random network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
