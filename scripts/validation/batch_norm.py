"""BatchNorm removes outliers of the Hessian: the largest eigenvalue over the tenth, for ten classes, becomes smaller.

Ghorbani, Krishnan and Xiao show this in plots, so the published bound is only that the ratio falls.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "Ghorbani, Krishnan, Xiao 2019"
CLASSES, EPOCHS, BATCH = 10, 20, 64


def rows(seeds: int = 3) -> Iterator[Row]:
    """The largest eigenvalue over the tenth in a network with BatchNorm, over that in the same one without."""
    problem = digits()
    ratios, products = [], 0
    for seed in range(seeds):
        spread = []
        for normalised in (True, False):
            model = network(normalised, seed)
            train(model, *problem, seed)
            pairs = spectra.eig(model, nn.CrossEntropyLoss(), problem, k=CLASSES, which="LA")
            spread.append(float(pairs.values[0] / pairs.values[CLASSES - 1]))
            products += pairs.products
        ratios.append(spread[0] / spread[1])
    note = f"digits, 64-32-32-32-10 with ReLU, {EPOCHS} epochs of SGD, running statistics, {seeds} seeds"
    error = float(np.std(ratios, ddof=1) / seeds**0.5)
    name = "largest over tenth eigenvalue, with BatchNorm over without"
    yield Row(name, SOURCE, 1.0, float(np.mean(ratios)), error, 0.0, note, products, "<")


def network(normalised: bool, seed: int) -> nn.Module:
    """Three hidden layers of 32 units, with BatchNorm before each ReLU or without."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for inputs in (64, 32, 32):
            parts += [nn.Linear(inputs, 32), *([nn.BatchNorm1d(32)] if normalised else []), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(32, CLASSES)).double()


def train(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """SGD with momentum on cross entropy; the model is left in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    random = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels), generator=random).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
