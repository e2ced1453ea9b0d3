"""The demonstration network: a small classifier of handwritten digits, trained in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

EPOCHS = 30


def mlp() -> nn.Module:
    """64-32-32-10 with tanh: 3,466 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def train(images: Tensor, labels: Tensor, seed: int = 0) -> Iterator[tuple[str, nn.Module, float]]:
    """SGD with momentum on cross entropy; yields (name, network, mean loss) at the start, the middle and the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mlp()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    names = {0: "initial", EPOCHS // 2: "middle", EPOCHS: "final"}
    for epoch in range(EPOCHS + 1):
        if epoch in names:
            with torch.no_grad():
                yield names[epoch], network, loss(network(images), labels).item()
        for batch in torch.randperm(len(labels), generator=generator).split(128):
            optimizer.zero_grad()
            loss(network(images[batch]), labels[batch]).backward()
            optimizer.step()
