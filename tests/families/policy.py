"""Proximal policy optimisation: the clipped ratio on steps that were taken before, with a bonus for entropy."""

import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(n=24):
    taken = torch.randint(0, 3, (n,))
    return {"seen": torch.randn(n, 4), "taken": taken, "before": torch.randn(n) / 5 - 1.1, "gain": torch.randn(n)}


def loss(model, batch):
    policy = torch.distributions.Categorical(logits=model(batch["seen"]))
    ratio = (policy.log_prob(batch["taken"]) - batch["before"]).exp()
    gain = batch["gain"]
    return -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain) - 0.01 * policy.entropy()
