"""A physics-informed network for the equation of Poisson: points inside, points on the border, and one point known."""

import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))


def data():
    inside = torch.rand(40, 2)
    side = torch.rand(12)
    border = torch.stack([side, (torch.arange(12) % 2).float()], 1)
    return {"inside": inside, "border": border, "known": torch.tensor([[0.5, 0.5]])}


def loss(model, batch):
    x = batch["inside"].requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    laplace = sum(torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
    source = torch.sin(torch.pi * x).prod(1)
    return {
        "residual": ((laplace + source) ** 2).mean(),
        "border": 10 * (model(batch["border"]) ** 2).mean(),
        "known": ((model(batch["known"]) - 0.05) ** 2).mean(),
    }
