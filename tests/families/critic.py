"""The critic of a Wasserstein GAN, with a penalty on its gradient by points between true and false ones."""

import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1))


def data(n=20):
    return {"true": torch.randn(n, 2), "false": torch.randn(n, 2) + 1, "mix": torch.rand(n, 1)}


def loss(model, batch, penalty=10.0):
    between = (batch["mix"] * batch["true"] + (1 - batch["mix"]) * batch["false"]).requires_grad_()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    wasserstein = model(batch["false"]).mean() - model(batch["true"]).mean()
    return {"wasserstein": wasserstein, "penalty": penalty * ((slope.norm(dim=1) - 1) ** 2).mean()}
