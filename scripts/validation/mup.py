"""The sharpness over training is independent of the width under muP, and not in the NTK parametrization.

Noci et al. show this in plots: in the NTK parametrization wide networks become less sharp, so that 1 is a bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "Noci et al. 2024"
STEPS, RATE = 150, 0.5


class Scaled(nn.Module):
    """Three layers with weights of variance one: muP where the output is divided by the root of the width once more."""

    def __init__(self, width: int, mup: bool, seed: int):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        shapes = ((width, 64), (width, width), (1, width))
        self.weights = nn.ParameterList([torch.randn(s, generator=random, dtype=torch.float64) for s in shapes])
        self.scales = [s[1] ** -0.5 for s in shapes]
        self.scales[-1] *= width**-0.5 if mup else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The output (b, 1)."""
        first, second, last = (scale * weight for scale, weight in zip(self.scales, self.weights, strict=True))
        return torch.tanh(torch.tanh(x @ first.T) @ second.T) @ last.T


def rows(widths: tuple[int, ...] = (64, 256), seeds: int = 3) -> Iterator[Row]:
    """The sharpness after training, times the rate, at the largest width over that at the least, in both."""
    images, labels = digits(200)
    problem = (2 * images - 1, (labels % 2 * 2.0 - 1.0).double()[:, None])
    note = f"even digits against odd, 3 tanh layers, {STEPS} steps, widths {widths[0]} and {widths[-1]}, {seeds} seeds"
    for mup, name, relation in ((True, "muP", "="), (False, "NTK parametrization", "<")):
        ratios, products = [], 0
        for seed in range(seeds):
            reached = []
            for width in widths:
                rate = RATE * (width if mup else 1.0)
                model = Scaled(width, mup, seed)
                train(model, *problem, rate)
                pairs = spectra.eig(model, nn.MSELoss(), problem, k=1, which="LA", tolerance=1e-4)
                reached.append(rate * float(pairs.values[0]))
                products += pairs.products
            ratios.append(reached[-1] / reached[0])
        error = float(np.std(ratios, ddof=1) / seeds**0.5)
        found = float(np.mean(ratios))
        yield Row(f"sharpness, wide over narrow, {name}", SOURCE, 1.0, found, error, 0.0, note, products, relation)


def train(model: nn.Module, x: Tensor, y: Tensor, rate: float) -> None:
    """Full-batch gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
