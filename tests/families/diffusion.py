"""Denoising diffusion: the noise and the time are drawn once, beside the data."""

import torch
from torch import nn


class Denoiser(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        return self.body(torch.cat([x, t.sin()[:, None], t.cos()[:, None]], 1))


def data(n=30):
    return {"x0": torch.randn(n, 2) + 1, "noise": torch.randn(n, 2), "t": torch.rand(n)}


def loss(model, batch):
    alpha = torch.cos(batch["t"] * torch.pi / 2)[:, None]
    noisy = alpha * batch["x0"] + (1 - alpha**2).sqrt() * batch["noise"]
    return ((model(noisy, batch["t"]) - batch["noise"]) ** 2).mean(1)


def drawing(model, batch):
    t = torch.rand(len(batch["x0"])).to(batch["x0"])
    return loss(model, batch | {"t": t})
