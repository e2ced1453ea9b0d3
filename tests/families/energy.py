"""An energy-based model: a continuous Hopfield network, low at the data and high at points that were drawn once."""

import torch
from torch import nn


class Hopfield(nn.Module):
    def __init__(self, inputs=4, memories=6):
        super().__init__()
        self.memories = nn.Parameter(torch.randn(memories, inputs))
        self.bias = nn.Parameter(torch.zeros(inputs))
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        attention = torch.logsumexp(self.beta * x @ self.memories.T, 1) / self.beta
        return 0.5 * ((x - self.bias) ** 2).sum(1) - attention


def data(n=20):
    return {"x": torch.randn(n, 4).sign(), "drawn": torch.randn(n, 4)}


def loss(model, batch):
    low, high = model(batch["x"]), model(batch["drawn"])
    return low - high + 0.1 * (low**2 + high**2)
