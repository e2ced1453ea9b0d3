"""Labels that are distributions over classes, as several annotators give them."""

import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data(n=20):
    return torch.randn(n, 4), torch.randn(n, 3).softmax(1)
