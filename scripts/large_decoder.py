"""A decoder with random weights (by default 1.3 billion parameters) and random tokens, to test what fits on one GPU.

spectra eig --model scripts/large_decoder.py:decoder --data scripts/large_decoder.py:tokens --curvature ggn -k 3 ...
python scripts/large_decoder.py [products=40] [layers=24] [width=2048]     GGN and Hessian on CUDA, with time and memory

Options follow the names: `decoder?layers=2&width=64&vocabulary=100`, `tokens?sequences=8&length=512&vocabulary=100`.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

import spectra
from spectra.krylov.lanczos import remove
from spectra.records.eig import EigResult
from spectra.transfer import copy

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
    """A decoder as GPT-2 is, whose head is its embedding: of tokens (batch, length), logits (batch, words, length)."""

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


def speeds(count: int, device: torch.device) -> dict[str, float]:
    """GB/s of a vector of so many numbers to the device and back, and of a basis that the host orthogonalises by."""
    rows, there = torch.ones(4, count), torch.empty(count, device=device)
    ways = {"up": lambda: copy(there, rows[0]), "down": lambda: copy(rows[0], there)}
    ways["basis"] = lambda: remove(rows[0], [rows[1:]] * 2)
    found = {}
    for name, way in ways.items():
        moved = 4e-9 * count * (9 if name == "basis" else 1)
        for _ in range(2):  # the first makes buffers and touches memory
            torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            torch.cuda.synchronize()
            found[name] = moved / (time.perf_counter() - start)
    return found


def main(products: int = 40, **size: int) -> None:
    """Print, for GGN and Hessian, three eigenvalues, their cost, and the most memory that device and host held."""
    words = size.get("vocabulary", VOCABULARY)
    query = "&".join(f"{name}={value}" for name, value in size.items())
    for curvature in ("ggn", "hessian"):
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = spectra.eig(
            f"{__file__}:decoder?{query}",
            "cross_entropy",
            f"{__file__}:tokens?vocabulary={words}",
            curvature=curvature,
            k=3,
            device="cuda",
            max_products=products,
            progress=True,
        )
        assert isinstance(result, EigResult)
        told = {"seconds in all": time.perf_counter() - start, "largest": torch.cuda.max_memory_allocated()}
        told["host"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shown = ("curvature", "products", "seconds", "setup_seconds", "converged", "complete", "path", "peak_bytes")
        told |= {name: getattr(result, name) for name in shown}
        told |= {"values": result.values.tolist(), "residuals": result.residuals.tolist()}
        print(json.dumps(told), flush=True)
        torch.cuda.empty_cache()
    print(json.dumps(speeds(2**30, torch.device("cuda"))))


if __name__ == "__main__":
    main(**{name: int(value) for name, value in (each.split("=") for each in sys.argv[1:])})
