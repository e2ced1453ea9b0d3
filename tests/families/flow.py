"""A normalising flow: the network returns log p(x), and there is no target."""

import torch
from torch import nn


class Flow(nn.Module):
    def __init__(self, layers=2, width=4):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 2)) for _ in range(layers)
        )

    def forward(self, x):
        volume = 0
        for net in self.nets:
            kept, moved = x.chunk(2, dim=1)
            scale, shift = net(kept).chunk(2, dim=1)
            x, volume = torch.cat([moved * scale.exp() + shift, kept], 1), volume + scale[:, 0]
        return volume - 0.5 * (x**2).sum(1)


def data(n=30):
    return torch.randn(n, 2) * torch.tensor([2.0, 0.5])


def loss(output, target):
    return -output
