"""Training in the dominant subspace alone stalls, and training without it goes on: steps of SGD projected on either.

Song, Ahn and Yun show this in plots. The bounds are ours: a tenth of the fall of the loss counts as stalled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import spectra
from scripts.validation.digits import digits
from scripts.validation.row import Row

SOURCE = "Song, Ahn, Yun 2024"
CLASSES, BEFORE, STEPS, RATE = 10, 150, 30, 0.1


def rows(seeds: int = 3) -> Iterator[Row]:
    """What the loss falls by in projected steps, as a share of what it falls by in steps that are not."""
    images, labels = digits(500)
    targets = nn.functional.one_hot(labels, CLASSES).double()
    shares, products = np.empty((2, seeds)), 0
    for seed in range(seeds):
        start = network(seed)
        descend(start, images, targets, BEFORE, seed, None)
        before, fallen = loss(start, images, targets), {}
        for kept in ("all", "dominant", "bulk"):
            model = network(seed)
            model.load_state_dict(start.state_dict())
            products += descend(model, images, targets, STEPS, seeds + seed, kept)
            fallen[kept] = before - loss(model, images, targets)
        shares[:, seed] = fallen["dominant"] / fallen["all"], fallen["bulk"] / fallen["all"]
    note = f"500 digits, 64-32-32-10 with tanh, mse, {STEPS} steps after {BEFORE}, top {CLASSES} at each, {seeds} seeds"
    for kept, values, relation, bound in zip(("dominant", "bulk"), shares, "<>", (0.1, 0.9), strict=True):
        error = float(values.std(ddof=1) / seeds**0.5)
        name = f"fall of the loss, {kept} subspace over all"
        yield Row(name, SOURCE, bound, float(values.mean()), error, 0.0, note, products, relation)


def network(seed: int) -> nn.Module:
    """The network of spectra.demo, without its first layer that flattens."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES)]
        return nn.Sequential(*layers).double()


def loss(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """The loss on all examples."""
    with torch.no_grad():
        return nn.functional.mse_loss(model(images), targets).item()


def descend(model: nn.Module, images: Tensor, targets: Tensor, steps: int, seed: int, kept: str | None) -> int:
    """SGD whose steps keep only their part in the leading eigenvectors (dominant), or all but that (bulk)."""
    random, products = torch.Generator().manual_seed(seed), 0
    parameters = list(model.parameters())
    for _ in range(steps):
        batch = torch.randperm(len(targets), generator=random)[:50]
        gradients = torch.autograd.grad(nn.functional.mse_loss(model(images[batch]), targets[batch]), parameters)
        step = torch.cat([g.flatten() for g in gradients])
        if kept in ("dominant", "bulk"):
            pairs = spectra.eig(model, nn.MSELoss(), (images, targets), k=CLASSES, which="LA", check=False)
            basis = torch.from_numpy(pairs.vectors)
            inside = basis.T @ (basis @ step)
            step, products = inside if kept == "dominant" else step - inside, products + pairs.products
        with torch.no_grad():
            for p, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
                p -= RATE * part.view_as(p)
    return products
