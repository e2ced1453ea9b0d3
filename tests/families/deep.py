"""Deep supervision: an output at each depth, one target, and a weight for each output."""

import torch
import torch.nn.functional as F
from torch import nn


class Deep(nn.Module):
    def __init__(self, width=4, depth=3, classes=3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(depth))

    def forward(self, x):
        outputs = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            outputs.append(head(x))
        return outputs


def data(n=20):
    return torch.randn(n, 4), torch.randint(0, 3, (n,))


def loss(outputs, target):
    return sum(0.5**i * F.cross_entropy(o, target, reduction="none") for i, o in enumerate(reversed(outputs)))
