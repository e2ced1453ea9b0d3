"""The neural tangent kernel of wide ReLU networks of one hidden layer, whose limit is a sum of arc-cosine kernels.

With weights N(0, 1), a factor sqrt(2 / width) and an angle t between inputs x and x', the limit is

    |x||x'| (sin t + (pi - t) cos t) / pi + x'x (pi - t) / pi

(Jacot, Gabriel, Hongler 2018; Cho, Saul 2009). It is the mean of the kernel for every width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import spectra
from scripts.validation.row import Row

SOURCE = "Jacot, Gabriel, Hongler 2018; Cho, Saul 2009"


class Network(nn.Module):
    """One hidden ReLU layer and one output, in the NTK parametrization."""

    def __init__(self, inputs: int, width: int, random: torch.Generator):
        super().__init__()
        self.hidden, self.last = (
            nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64)) for s in ((width, inputs), (1, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The output (b, 1)."""
        return torch.relu(x @ self.hidden.T) @ self.last.T * (2 / self.last.shape[1]) ** 0.5


def rows(width: int = 4000, inputs: int = 10, examples: int = 30, seeds: int = 30) -> Iterator[Row]:
    """The two largest eigenvalues and the trace, as means over networks."""
    x = torch.randn(examples, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    random, found, products = torch.Generator().manual_seed(1), np.empty((seeds, 3)), 0
    for row in found:
        problem = (Network(inputs, width, random), nn.MSELoss(), (x, torch.zeros(examples, 1, dtype=x.dtype)))
        pairs = spectra.eig(*problem, curvature="ntk", k=examples)
        row[:] = *pairs.values[:2], pairs.values.sum()
        products += pairs.products
    values = np.linalg.eigvalsh(limit(x.numpy()))[::-1]
    note = f"{inputs}-{width}-1, {examples} examples, {seeds} networks"
    for at, name in enumerate(("largest eigenvalue", "second eigenvalue", "trace")):
        expected = values.sum() if name == "trace" else values[at]
        error = float(found[:, at].std(ddof=1) / seeds**0.5)
        yield Row(f"{name} of the kernel", SOURCE, expected, float(found[:, at].mean()), error, 0.0, note, products)


def limit(x: np.ndarray) -> np.ndarray:
    """The kernel (N, N) of infinite width for inputs (N, d)."""
    norms = np.linalg.norm(x, axis=1)
    inner, sizes = x @ x.T, np.outer(norms, norms)
    angle = np.arccos((inner / sizes).clip(-1, 1))
    return (sizes * np.sin(angle) + 2 * inner * (np.pi - angle)) / np.pi
