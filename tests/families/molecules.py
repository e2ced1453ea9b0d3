"""Molecules: a network after SchNet gives the energy, and its derivative by the positions gives the forces."""

import torch
from torch import nn


class SchNet(nn.Module):
    def __init__(self, width=3, elements=4):
        super().__init__()
        self.atom = nn.Embedding(elements, width)
        self.filter = nn.Sequential(nn.Linear(4, width), nn.Softplus(), nn.Linear(width, width))
        self.mix = nn.Linear(width, width)
        self.energy = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 1))

    def forward(self, charges, positions):
        atoms = positions.shape[1]
        apart = positions[:, :, None] - positions[:, None] + torch.eye(atoms).to(positions)[..., None]
        distance = apart.norm(dim=-1, keepdim=True)
        basis = torch.exp(-((distance - torch.arange(4).to(positions)) ** 2))
        weight = self.filter(basis) * (1 - torch.eye(atoms).to(positions))[..., None]
        x = self.atom(charges)
        x = x + self.mix((weight * x[:, None]).sum(2))
        return self.energy(x).sum((1, 2))


def data(n=8, atoms=3):
    positions = torch.randn(n, atoms, 3)
    return {
        "charges": torch.randint(0, 4, (n, atoms)),
        "positions": positions,
        "energy": positions.norm(dim=-1).sum(1),
        "forces": -positions,
    }


def loss(model, batch):
    positions = batch["positions"].requires_grad_()
    energy = model(batch["charges"], positions)
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return {
        "energy": (energy - batch["energy"]) ** 2,
        "forces": ((slope + batch["forces"]) ** 2).mean((1, 2)),
    }
