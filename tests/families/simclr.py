"""SimCLR: two views of each image, and the NT-Xent loss of the whole batch."""

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2)
        self.head = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4))

    def forward(self, x):
        return self.head(F.gelu(self.conv(x)).mean((2, 3)))


def data(n=18):
    image = torch.randn(n, 1, 6, 6)
    return image + 0.3 * torch.randn_like(image), image + 0.3 * torch.randn_like(image)


def loss(model, batch, temperature=0.5):
    one, two = batch
    z = F.normalize(torch.cat([model(one), model(two)]), dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    n = len(one)
    return F.cross_entropy(scores, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(scores.device))
