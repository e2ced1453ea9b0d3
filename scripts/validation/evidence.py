"""The log evidence of Bayesian linear regression, from a log-determinant of the GGN by quadrature.

With y = Xw + noise of variance 1/beta and a prior N(0, I/alpha), y is N(0, I/beta + XX'/alpha), so its log density is
known. MacKay (1992) writes it by the curvature A = beta X'X + alpha I at the most probable weights w:

    -beta |y - Xw|^2 / 2 - alpha |w|^2 / 2 + (d log alpha - log det A + N log(beta / 2 pi)) / 2

The mean squared error has the GGN G = 2 X'X / N, so A = beta N / 2 (G + damping I), with damping 2 alpha / (beta N).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log, pi

import torch
from torch import nn
from torch.distributions import MultivariateNormal

import spectra
from scripts.validation.row import Row

SOURCE = "MacKay 1992"
ALPHA, BETA = 20.0, 0.05


def rows(examples: int = 400, inputs: int = 200) -> Iterator[Row]:
    """The log evidence, and the number of parameters that the data determine: tr G (G + damping I)^-1."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(examples, inputs, generator=random, dtype=torch.float64)
    y = x @ torch.randn(inputs, generator=random, dtype=torch.float64) / ALPHA**0.5
    y += torch.randn(examples, generator=random, dtype=torch.float64) / BETA**0.5
    eye = torch.eye(examples, dtype=torch.float64)
    exact = MultivariateNormal(torch.zeros_like(y), eye / BETA + x @ x.T / ALPHA).log_prob(y).item()
    values = torch.linalg.eigvalsh(BETA * x.T @ x)
    effective = (values / (values + ALPHA)).sum().item()

    model, damping = nn.Linear(inputs, 1, bias=False).double(), 2 * ALPHA / (BETA * examples)
    data = (x, y[:, None])
    problem = spectra.load_problem(model=model, loss=nn.MSELoss(), data=data, batch_size=examples).problem
    nn.init.zeros_(model.weight)  # where minus the gradient leads to the minimum
    solution = spectra.solve(
        spectra.Curvature(problem, "ggn"), -spectra.mean_gradient(problem), damping=damping, tolerance=1e-10
    )
    w = solution.x
    found = spectra.density(model, nn.MSELoss(), data, curvature="ggn", steps=60, probes=40, damping=damping)
    determinant = spectra.log_determinant(found.measure(), damping, semidefinite=True)
    evidence = inputs * log(ALPHA) - inputs * log(BETA * examples / 2) - determinant.value
    evidence += examples * log(BETA / (2 * pi)) - BETA * (y - x @ w).square().sum().item() - ALPHA * (w @ w).item()
    error = (determinant.standard_error + determinant.quadrature_error) / 2
    note = f"N = {examples}, d = {inputs}, 60 steps, 40 probes"
    products = found.products + solution.products
    yield Row("log evidence", SOURCE, exact, evidence / 2, error, 0.0, note, products)
    dimension = found.effective_dimension
    error = dimension.standard_error + dimension.quadrature_error
    yield Row("determined parameters", SOURCE, effective, dimension.value, error, 0.0, note, found.products)
