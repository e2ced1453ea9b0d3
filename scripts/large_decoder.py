"""A decoder with random weights, by default of 1.3 billion parameters, and random tokens: to see what fits on one card.

spectra eig --model scripts/large_decoder.py:decoder --data scripts/large_decoder.py:tokens --curvature ggn -k 3 ...

Options go behind the names: `decoder?layers=2&width=64&vocabulary=100`, `tokens?sequences=8&length=512&vocabulary=100`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 50257


class Block(nn.Module):
    """Causal attention and a network of one hidden layer, each added to what comes in."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.mixed(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(functional.gelu(self.wide(self.before_network(x)), approximate="tanh"))


class Decoder(nn.Module):
    """A decoder of the kind of GPT-2, its head the embedding: tokens (batch, length) to logits (batch, words, length)."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, longest: int):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.last = nn.LayerNorm(width)
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        return functional.linear(self.last(self.blocks(x)), self.words.weight).transpose(1, 2)


def decoder(
    layers: int = 24, width: int = 2048, heads: int = 16, vocabulary: int = VOCABULARY, longest: int = 2048
) -> Decoder:
    """A decoder with random weights: 1,315,723,264 by default."""
    return Decoder(layers, width, heads, vocabulary, longest)


def tokens(sequences: int = 8, length: int = 512, vocabulary: int = VOCABULARY) -> list[tuple[Tensor, Tensor]]:
    """Sequences of random tokens, each with that of the tokens that follow."""
    drawn = torch.randint(vocabulary, (sequences, length + 1), generator=torch.Generator().manual_seed(0))
    return [(row[:-1], row[1:]) for row in drawn]
