"""The networks that commands are checked on: small ones, of the kinds whose kernels differ between devices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scripts.benchmarks.models import Layer, classified, texts


def convolution() -> nn.Module:
    """Convolutions, strided and grouped, with BatchNorm: (b, 3, 12, 12) to 5 classes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def images() -> tuple[Tensor, Tensor]:
    return classified(48, 3, 12, 12)


class Transformer(nn.Module):
    """Two blocks of causal self-attention of width 16 over 20 tokens, with a tied head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(12, 16)
        self.layers = nn.Sequential(Layer(16, 2), Layer(16, 2), nn.LayerNorm(16))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.layers(self.tokens(tokens) + self.places(places)))


def tokens() -> tuple[Tensor, Tensor]:
    return texts(48, 12, 20)
