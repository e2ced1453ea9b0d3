"""The Fisher of wide random networks: its largest eigenvalue grows with the width, and its mean falls with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import spectra
from scripts.validation.row import Row

SOURCE = "Karakida, Akaho, Amari 2019"


def rows(widths: tuple[int, ...] = (200, 400, 800, 1600), seeds: int = 5) -> Iterator[Row]:
    """The exponents of the width in both, by least squares on logarithms; their spread over seeds is the error."""
    largest, mean = (np.empty((seeds, len(widths))) for _ in range(2))
    products = 0
    for i in range(seeds):
        random = torch.Generator().manual_seed(i)
        for j, width in enumerate(widths):
            x = torch.randn(20, width // 2, generator=random, dtype=torch.float64)
            problem = (network(width, random), nn.MSELoss(), (x, torch.zeros(20, 1, dtype=torch.float64)))
            pairs = spectra.eig(*problem, curvature="ggn", k=1, method="gram")
            trace = spectra.trace(*problem, curvature="ggn", method="gram")
            largest[i, j], mean[i, j] = pairs.values[0], trace.trace / trace_size(problem[0])
            products += pairs.products + trace.products
    note = f"tanh, 3 layers, widths {widths[0]} to {widths[-1]}, half as many inputs, 20 examples, {seeds} seeds"
    for name, values, expected in (("largest eigenvalue", largest, 1.0), ("mean eigenvalue", mean, -1.0)):
        slopes = [np.polyfit(np.log(widths), np.log(row), 1)[0] for row in values]
        error = float(np.std(slopes, ddof=1) / seeds**0.5)
        found, finite = float(np.mean(slopes)), 5 / widths[0]  # biases, of which there are fewer than weights
        yield Row(f"exponent of the width, {name}", SOURCE, expected, found, error, finite, note, products)


def trace_size(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def network(width: int, random: torch.Generator) -> nn.Module:
    """Three tanh layers and a linear output; weights of variance 3 over the number of inputs, biases of 0.64."""
    layers = [
        nn.Linear(width // 2, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
    ]
    model = nn.Sequential(*layers, nn.Linear(width, 1)).double()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape, generator=random, dtype=torch.float64)
            layer.weight.data *= (3 / layer.in_features) ** 0.5
            layer.bias.data = 0.64**0.5 * torch.randn(layer.bias.shape, generator=random, dtype=torch.float64)
    return model
