"""The rise of a quadratic loss if weight i is removed: w_i^2 / (2 [H^-1]_ii) by the optimal brain surgeon.

For linear regression this is exact if the other weights adapt (Hassibi, Stork 1993), so it is compared with solving
again without one input. Optimal brain damage, w_i^2 H_ii / 2, is exact if they stay (LeCun, Denker, Solla 1990).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SURGEON, DAMAGE = "Hassibi, Stork 1993", "LeCun, Denker, Solla 1990"
DECAY = 0.01


def rows(examples: int = 400) -> Iterator[Row]:
    """The mean over weights of the rise by both formulas."""
    images, labels = digits(examples)
    x, y = images, labels.double()
    w = fit(x, y)
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    model.weight.data = w[None]
    settings = {"batch_size": examples, "weight_decay": DECAY}
    problem = spectra.load_problem(model=model, loss=nn.MSELoss(), data=(x, y[:, None]), **settings).problem
    hessian, eye = spectra.Curvature(problem, "hessian"), torch.eye(len(w), dtype=torch.float64)
    solution = spectra.solve(hessian, eye, tolerance=1e-10)
    least, note = objective(x, y, w), f"{examples} digits, the label by 64 pixels, weight decay {DECAY:g}"

    others = [torch.arange(len(w)) != i for i in range(len(w))]
    removed = torch.tensor([objective(x[:, kept], y, fit(x[:, kept], y)) for kept in others], dtype=x.dtype)
    found = (w**2 / (2 * solution.x.diagonal())).mean().item()
    error = solution.relative_residuals.max().item()
    expected = (removed - least).mean().item()
    yield Row("rise of the loss, surgeon", SURGEON, expected, found, error * found, 0.0, note, solution.products)
    zeroed = torch.tensor([objective(x, y, w * kept) for kept in others], dtype=x.dtype)
    found = (w**2 * (hessian @ eye).diagonal() / 2).mean().item()
    expected = (zeroed - least).mean().item()
    yield Row("rise of the loss, damage", DAMAGE, expected, found, 1e-12 * found, 0.0, note, len(w))


def objective(x: Tensor, y: Tensor, w: Tensor) -> float:
    """The mean squared error with weight decay."""
    return ((y - x @ w).square().mean() + DECAY / 2 * w @ w).item()


def fit(x: Tensor, y: Tensor) -> Tensor:
    """The weights at the minimum of the objective."""
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(2 * x.T @ x / len(x) + DECAY * eye, 2 * x.T @ y / len(x))
