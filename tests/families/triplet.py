"""Metric learning with triplets that lie in the data; each has a loss of its own."""

import torch
import torch.nn.functional as F
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data(n=24):
    anchor = torch.randn(n, 4)
    return {"anchor": anchor, "positive": anchor + 0.5 * torch.randn(n, 4), "negative": torch.randn(n, 4)}


def loss(model, batch):
    anchor, positive, negative = (model(batch[key]) for key in ("anchor", "positive", "negative"))
    return F.triplet_margin_loss(anchor, positive, negative, margin=2.0, reduction="none")
