"""Two tasks over one body: a class and a number, outputs and targets under names."""

import torch
import torch.nn.functional as F
from torch import nn


class Tasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.kind, self.size = nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x):
        body = self.body(x)
        return {"kind": self.kind(body), "size": self.size(body)}


def data(n=20):
    return torch.randn(n, 4), {"kind": torch.randint(0, 3, (n,)), "size": torch.randn(n, 1)}


def loss(output, target):
    return {
        "kind": F.cross_entropy(output["kind"], target["kind"]),
        "size": 0.5 * F.mse_loss(output["size"], target["size"]),
    }
