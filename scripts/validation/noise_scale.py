"""The noise scale of linear regression with white inputs: d (1 + sigma^2 / |w - w*|^2) + 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import spectra
from scripts.validation.row import Row

SOURCE = "McCandlish et al. 2018; closed form"
SIGMA = 2.0


def rows(examples: int = 80000, inputs: int = 20) -> Iterator[Row]:
    """The simple and the full noise scale, which are one where inputs are white: H = 2 I.

    Of y = x'w* + sigma e and the error r = x'(w - w*) - sigma e of an example, the gradient is 2 r x. With white x its
    covariance is 4 ((|w - w*|^2 + sigma^2) I + (w - w*)(w - w*)'), and its mean 2 (w - w*).
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(examples, inputs, generator=random, dtype=torch.float64)
    away = torch.ones(inputs, dtype=torch.float64) / inputs**0.5  # w - w*, of norm 1, with w* = -away and w = 0
    y = -(x @ away)[:, None] + SIGMA * torch.randn(examples, 1, generator=random, dtype=torch.float64)
    model = nn.Linear(inputs, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    found = spectra.noise_scale(spectra.load_problem(model=model, loss=nn.MSELoss(), data=(x, y)).problem)
    expected, note = (
        inputs * (1 + SIGMA**2) + 1,
        f"d = {inputs}, sigma = {SIGMA:g}, |w - w*| = 1, {examples:,} examples",
    )
    for name, scale in (("simple", found.simple), ("full", found.full)):
        yield Row(f"{name} noise scale", SOURCE, expected, scale.value, scale.standard_error, 0.0, note, found.products)
