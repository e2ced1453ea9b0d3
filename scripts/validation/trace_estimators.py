"""Errors of trace estimators: Hutchinson's variance, and the faster fall of the error of Hutch++ with products.

For random signs w, w'Aw has the variance 2 (|A|_F^2 - sum of A_ii^2) (Hutchinson 1990). With m products, the error of
Hutchinson's mean falls as m^(-1/2). Hutch++ projects out the leading k = m/3 eigenvectors, so that its error falls as
m^(-1/2) |A - A_k|_F (Meyer, Musco, Musco, Woodruff 2021). If eigenvalues fall as 1/i, |A - A_k|_F ~ k^(-1/2), and the
error falls as 1/m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import spectra
from scripts.validation.row import Row

HUTCHINSON, SOURCE = "Hutchinson 1990", "Meyer, Musco, Musco, Woodruff 2021"
BUDGETS = (12, 24, 48, 96)  # products


def rows(size: int = 600, repeats: int = 240, samples: int = 5000) -> Iterator[Row]:
    """The deviation of a sample w'Aw, and the exponents of the number of products in both errors."""
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))[0]
    matrix = basis / torch.arange(1, size + 1) @ basis.T
    exact = matrix.trace().item()
    many = spectra.hutchinson(matrix, probes=samples)
    deviation = (2 * (matrix.square().sum() - matrix.diagonal().square().sum())).item() ** 0.5
    found, note = many.standard_error * samples**0.5, f"eigenvalues 1/i, n = {size:,}, {samples:,} samples"
    error = found / (2 * samples) ** 0.5
    yield Row("deviation of a sample", HUTCHINSON, deviation, found, error, 0.0, note, samples)
    plain = errors(lambda m, seed: spectra.hutchinson(matrix, probes=m, seed=seed), repeats) - exact
    better = errors(lambda m, seed: spectra.hutch_plus_plus(matrix, probes=2 * m // 3, seed=seed), repeats) - exact
    note = f"eigenvalues 1/i, n = {size:,}, {BUDGETS[0]} to {BUDGETS[-1]} products, {repeats} repeats"
    tail = np.sqrt(3 / np.array(BUDGETS) - 1 / size)  # |A - A_k|_F for k = m / 3
    finite = abs(exponent(tail / np.sqrt(BUDGETS)) + 1)
    for name, values, expected, off in (("Hutchinson", plain, -0.5, 0.0), ("Hutch++", better, -1.0, finite)):
        found, error = slope(values)
        products = repeats * sum(BUDGETS)
        yield Row(f"exponent of products, {name}", SOURCE, expected, found, error, off, note, products)


def errors(method: Callable[[int, int], Any], repeats: int) -> np.ndarray:
    """Estimates (repeats, budgets)."""
    return np.array([[method(m, seed).value for m in BUDGETS] for seed in range(repeats)])


def exponent(values: np.ndarray) -> float:
    """The power of the products to which values (budgets,) are proportional, by least squares on logarithms."""
    return float(np.polyfit(np.log(BUDGETS), np.log(values), 1)[0])


def slope(values: np.ndarray, resamples: int = 200) -> tuple[float, float]:
    """The exponent of the products in the root mean square error, and its standard error by the bootstrap."""
    random = np.random.default_rng(0)

    def fitted(some: np.ndarray) -> float:
        return exponent(np.mean(some**2, axis=0) ** 0.5)

    drawn = [fitted(values[random.integers(len(values), size=len(values))]) for _ in range(resamples)]
    return fitted(values), float(np.std(drawn))
