"""Leaving one example out of ridge regression, from solutions with the Hessian, against solving again without it.

An example with residual e and leverage h = x'(X'X + a I)^-1 x has the residual e / (1 - h) if it is left out, and the
weights move by (X'X + a I)^-1 x e / (1 - h) (Allen 1974; Cook 1977). The Hessian of the mean squared error is
2 X'X / N, so the damping is 2 a / N.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "Allen 1974; Cook 1977"
DECAY = 1.0  # a


def rows(examples: int = 150) -> Iterator[Row]:
    """The mean squared error of examples that are left out one by one, and the largest movement of the weights."""
    images, labels = digits(examples)
    x, y = images, labels.double()
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    problem = spectra.load_problem(model=model, loss=nn.MSELoss(), data=(x, y[:, None]), batch_size=examples).problem
    solution = spectra.solve(spectra.Curvature(problem, "hessian"), x.T, damping=2 * DECAY / examples, tolerance=1e-10)
    inverse = 2 / examples * solution.x  # (X'X + a I)^-1 X'
    residuals = (y - x @ (inverse @ y)) / (1 - (x * inverse.T).sum(dim=1))
    moves = (inverse * residuals).norm(dim=0)

    again = torch.stack([ridge(x[kept], y[kept]) for kept in ~torch.eye(examples, dtype=torch.bool)])
    left_out = (y - (x * again).sum(dim=1)).square().mean().item()
    note, error = f"{examples} digits, the label by 64 pixels, a = {DECAY:g}", solution.relative_residuals.max().item()
    found = residuals.square().mean().item()
    yield Row("leave-one-out error", SOURCE, left_out, found, error * found, 0.0, note, solution.products)
    largest = (again - ridge(x, y)).norm(dim=1).max().item()
    found = moves.max().item()
    yield Row("largest movement of weights", SOURCE, largest, found, error * found, 0.0, note, solution.products)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The weights (d,) that minimise |y - Xw|^2 + a |w|^2."""
    return torch.linalg.solve(x.T @ x + DECAY * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
