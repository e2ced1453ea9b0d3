"""The empirical Fisher is not the Fisher: in linear regression it weights examples by their squared residuals.

For the squared error of residuals r and white inputs, the Fisher is 2 xx' = 2 I on average, and the empirical Fisher
4 r^2 xx'. With weights at a distance delta from the true ones and noise of variance sigma^2, this is
4 (sigma^2 + |delta|^2) I + 8 delta delta': an outlier along the gradient, and the noise instead of the curvature at the
minimum (Kunstner, Balles, Hennig 2019). For softmax regression, both have closed forms by p - y and diag p - pp'.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "Kunstner, Balles, Hennig 2019"
SIGMA = 0.5


def rows() -> Iterator[Row]:
    """The rows of linear and of softmax regression."""
    yield from linear()
    yield from softmax()


def linear(examples: int = 100000, inputs: int = 10) -> Iterator[Row]:
    """The largest eigenvalue of the empirical Fisher away from the minimum, and the mean one at the minimum."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(examples, inputs, generator=random, dtype=torch.float64)
    noise = SIGMA * torch.randn(examples, 1, generator=random, dtype=torch.float64)
    note, at = f"d = {inputs}, sigma = {SIGMA:g}, {examples:,} examples", nn.Linear(inputs, 1, bias=False).double()
    nn.init.constant_(at.weight, inputs**-0.5)  # the true weights are zero
    pairs = spectra.eig(at, nn.MSELoss(), (x, noise), curvature="fisher-empirical", k=1)
    along = x.sum(dim=1) / inputs**0.5
    chance = 3 * deviation(4 * (along - noise[:, 0]).square() * along.square())
    name, residual = "empirical Fisher: outlier, |delta| = 1", pairs.residuals[0]
    yield Row(name, SOURCE, 4 * (SIGMA**2 + 3), pairs.values[0], residual, chance, note, pairs.products)
    nn.init.zeros_(at.weight)
    found = spectra.trace(at, nn.MSELoss(), (x, noise), curvature="fisher-empirical", method="dense")
    chance = 3 * deviation(4 * noise[:, 0].square() * x.square().mean(dim=1))
    name, value = "empirical Fisher: mean at the minimum", found.trace / inputs
    rounding = 1e-12 * value
    yield Row(name, SOURCE, 4 * SIGMA**2, value, rounding, chance, note, found.products)


def deviation(samples: Tensor) -> float:
    """The standard deviation of the mean of samples (N,)."""
    return samples.std().item() / len(samples) ** 0.5


def softmax() -> Iterator[Row]:
    """The largest eigenvalues of both matrices at random weights."""
    images, labels = digits(500)
    model = nn.Linear(64, 10, bias=False).double()
    model.weight.data = torch.randn(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = model(images).detach().softmax(dim=1)
    wrong = p - nn.functional.one_hot(labels, 10)
    middles = {
        "fisher": torch.diag_embed(p) - p[:, :, None] * p[:, None],
        "fisher-empirical": wrong[:, :, None] * wrong[:, None],
    }
    names = {"fisher": "Fisher", "fisher-empirical": "empirical Fisher"}
    problem = (model, nn.CrossEntropyLoss(), (images, labels))
    for pairs in spectra.eig(*problem, curvature=[*middles], k=1, tolerance=1e-8):
        exact = torch.einsum("ncd,ni,nj->cidj", middles[pairs.curvature], images, images).reshape(640, 640) / len(p)
        expected = torch.linalg.eigvalsh(exact)[-1].item()
        name, note = f"{names[pairs.curvature]} of softmax regression", "500 digits, 10 classes, random weights"
        yield Row(name, SOURCE, expected, pairs.values[0], pairs.residuals[0], 1e-12, note, pairs.products)
