"""The rank of the Hessian of a deep linear network: 2qM - Lq^2 + q(d + K), with q the least width."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import spectra
from scripts.validation.row import Row

SOURCE = "Singh, Bachmann, Hofmann 2021"
WIDTHS = ((6, 5, 3), (4, 8, 4), (8, 3, 5, 4), (6, 7, 6, 5), (5, 4, 6, 4, 3))  # inputs, hidden layers, outputs


def rows(architectures: tuple[tuple[int, ...], ...] = WIDTHS) -> Iterator[Row]:
    """The rank in every architecture, by counting the eigenvalues of the dense Hessian that are not rounding."""
    for widths in architectures:
        random = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(*[nn.Linear(*pair, bias=False) for pair in pairwise(widths)]).double()
        x = torch.randn(40, widths[0], generator=random, dtype=torch.float64)
        y = torch.randn(40, widths[-1], generator=random, dtype=torch.float64)
        size = sum(p.numel() for p in model.parameters())
        found = spectra.eig(model, nn.MSELoss(), (x, y), k=size, method="dense")
        values = np.abs(found.values)
        rank = int((values > 1e-10 * values.max()).sum())
        name = f"rank of {'-'.join(map(str, widths))} (of {size})"
        note = "random weights and 40 examples, without biases; in brackets the number of parameters"
        yield Row(name, SOURCE, expected_rank(widths), rank, 0.0, 0.0, note, found.products)


def expected_rank(widths: tuple[int, ...]) -> int:
    """The rank at a generic point with residuals, inputs of full rank, no biases."""
    least, hidden, matrices = min(widths), sum(widths[1:-1]), len(widths) - 1
    return 2 * least * hidden - matrices * least**2 + least * (widths[0] + widths[-1])
