"""The Hessian of linear fixed points z = Wz + Ux, which are z = (I - W)^-1 Ux.

With A = (I - W)^-1 and K units as outputs, the Hessian of the mean squared error in U is 2/(NK) A'A (x) X'X. For one
unit z = x / (1 - w), and the second derivative in w is the mean of 2 z'^2 + 2 (z - y) z'', with z' = x / (1 - w)^2 and
z'' = 2x / (1 - w)^3. The products come from the R-equations of Pearlmutter (1994), by relaxation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import spectra
from scripts.validation.row import Row

SOURCE = "closed form, by the products of Pearlmutter 1994, section 4.1"


class Layer(nn.Module):
    """z -> Wz + Ux."""

    def __init__(self, recurrent: Tensor, inputs: Tensor):
        super().__init__()
        self.recurrent, self.inputs = nn.Parameter(recurrent), nn.Parameter(inputs)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next states (b, units)."""
        return z @ self.recurrent.T + x @ self.inputs.T


def rows(examples: int = 100, units: int = 12) -> Iterator[Row]:
    """The largest eigenvalue in U, and the second derivative in the weight of one unit."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(examples, units, generator=random, dtype=torch.float64) for _ in range(2))
    recurrent = 0.5 * torch.randn(units, units, generator=random, dtype=torch.float64) / units**0.5
    inverse = torch.linalg.inv(torch.eye(units, dtype=torch.float64) - recurrent)
    expected = 2 / units * (squared_norm(inverse) * squared_norm(x) / examples)
    yield row("largest eigenvalue in U", expected, Layer(recurrent, torch.randn_like(recurrent)), "map.inputs", x, y)

    w, x, y = 0.6, x[:, :1], y[:, :1]
    first, second = x / (1 - w) ** 2, 2 * x / (1 - w) ** 3
    expected = (2 * first**2 + 2 * (x / (1 - w) - y) * second).mean().item()
    one = torch.ones(1, 1, dtype=torch.float64)
    yield row("second derivative in w", expected, Layer(w * one, one), "map.recurrent", x, y)


def squared_norm(matrix: Tensor) -> float:
    """The square of the largest singular value."""
    return torch.linalg.matrix_norm(matrix, 2).item() ** 2


def row(name: str, expected: float, layer: Layer, selected: str, x: Tensor, y: Tensor) -> Row:
    """The largest eigenvalue of the Hessian in one matrix of a layer; its error includes the relaxations' tolerance."""
    model = spectra.Equilibrium(layer, y.shape[1])
    pairs = spectra.eig(model, nn.MSELoss(), (x, y), k=1, params=selected, tolerance=1e-9)
    error = np.hypot(pairs.residuals[0], 1e-8 * abs(expected))
    note = "12 units; one unit with w = 0.6; 100 examples"
    return Row(name, SOURCE, expected, pairs.values[0], float(error), 0.0, note, pairs.products)
