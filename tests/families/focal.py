"""Focal loss (Lin et al., 2017), for classes of which one is rare."""

import torch
import torch.nn.functional as F
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data(n=30):
    return torch.randn(n, 4), (torch.rand(n) < 0.3).long() + (torch.rand(n) < 0.1).long()


def loss(output, target, gamma=2.0):
    ce = F.cross_entropy(output, target, reduction="none")
    return (1 - torch.exp(-ce)) ** gamma * ce
