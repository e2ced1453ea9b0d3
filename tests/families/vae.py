"""A variational autoencoder: the noise of the reparameterisation lies in the data, the loss has two parts."""

import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    def __init__(self, hidden=5, latent=2):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, 6))

    def forward(self, x, noise):
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(logvar / 2) * noise
        return {"logits": self.decoder(z), "mean": mean, "logvar": logvar}


def data(n=25):
    x = torch.bernoulli(torch.full((n, 6), 0.4))
    return {"x": x, "noise": torch.randn(n, 2), "targets": x}


def loss(output, target):
    error = F.binary_cross_entropy_with_logits(output["logits"], target, reduction="none").sum(1)
    mean, logvar = output["mean"], output["logvar"]
    kl = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1)
    return {"reconstruction": error, "kl": kl}


def of_model(model, batch):
    return loss(model(batch["x"], batch["noise"]), batch["targets"])
