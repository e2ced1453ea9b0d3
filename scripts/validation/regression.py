"""Linear regression with random inputs: the Hessian is 2 X'X / N, whose edges Marchenko and Pastur (1967) give."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import spectra
from scripts.validation.row import Row
from scripts.validation.spiked import EDGE

SOURCE = "Marchenko, Pastur 1967"


def rows(examples: int = 2000, inputs: int = 500) -> Iterator[Row]:
    """Both edges of the spectrum, and the upper one as fitted to a spectral density."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(examples, inputs, generator=random, dtype=torch.float64)
    y = torch.randn(examples, 1, generator=random, dtype=torch.float64)
    problem = (nn.Linear(inputs, 1, bias=False).double(), nn.MSELoss(), (x, y))
    note = f"N = {examples:,}, d = {inputs:,}, one output"
    root = (inputs / examples) ** 0.5
    pairs = spectra.eig(*problem, k=2, which="BE", tolerance=1e-4)
    for name, sign, value, residual in zip(("upper", "lower"), (1, -1), pairs.values, pairs.residuals, strict=True):
        unit = 2 * (1 + sign * root) * abs(1 + sign / root) ** (1 / 3) / examples ** (2 / 3)  # of Tracy and Widom
        edge = 2 * (1 + sign * root) ** 2
        yield Row(f"{name} edge", SOURCE, edge, value, residual, EDGE * unit, note, pairs.products)
    density = spectra.density(*problem, curvature="ggn", steps=60, probes=10)
    edge = spectra.summarise(density).marchenko_pastur.edge
    # The fitted mean deviates by sqrt(2 / dN) of itself, and the fitted d/N by (1 ± 2) / N (Ledoit, Wolf 2002).
    expected = 2 * (1 + root) ** 2
    finite = 3 * expected * (2 / (inputs * examples)) ** 0.5 + 2 * (1 + root) / root * 7 / examples
    error = edge.standard_error + edge.quadrature_error
    yield Row("fitted edge", SOURCE, expected, edge.value, error, finite, note, density.products)
