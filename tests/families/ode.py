"""A neural ODE, integrated by the method of Runge and Kutta, with a loss along its path."""

import torch
from torch import nn


class ODE(nn.Module):
    def __init__(self, width=6, steps=4):
        super().__init__()
        self.field, self.steps = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)), steps

    def forward(self, x):
        h, path = 1 / self.steps, []
        for _ in range(self.steps):
            a = self.field(x)
            b = self.field(x + h / 2 * a)
            c = self.field(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + self.field(x + h * c))
            path.append(x)
        return torch.stack(path, 1)


def data(n=12):
    x, time = torch.randn(n, 2), torch.arange(1, 5) / 4
    turn = torch.stack([torch.stack([time.cos(), -time.sin()]), torch.stack([time.sin(), time.cos()])])
    return x, torch.einsum("ijt,nj->nti", turn, x)
