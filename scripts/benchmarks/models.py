"""The networks of the benchmarks, written plainly, and random examples for them."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    """784-256-256-10 with ReLU: 269,322 parameters."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


class Block(nn.Module):
    """Two convolutions beside an identity, which is subsampled and padded with zeros where the width changes."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, inner.shape[1] - x.shape[1]))
        return F.relu(inner + x)


def resnet20() -> nn.Module:
    """ResNet-20 for 32x32 images (He et al. 2016, section 4.2): 269,722 parameters."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(before, width) for before, width in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vit() -> nn.Module:
    """A torchvision VisionTransformer of 4 layers, 4 heads and width 128, on patches of 4x4."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=256, num_classes=10
    )
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision's is zero, at which most gradients vanish
    return model


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Decoder(nn.Module):
    """GPT-style: 4 layers, 4 heads, width 128, vocabulary 1,000, length 64; tokens (b, t) to logits (b, t, 1000)."""

    def __init__(self, vocabulary: int = 1000, length: int = 64, width: int = 128, heads: int = 4, layers: int = 4):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.layers(self.tokens(tokens) + self.places(places)))


class LanguageModel(nn.Module):
    """A GPT-2 of transformers, from its configuration, as a function of tokens (b, t) to logits (b, t, vocabulary)."""

    def __init__(self, **settings):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(attn_implementation="eager", use_cache=False, **dropout, **settings)
        self.network = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network(input_ids=tokens).logits


def language_model(**settings) -> nn.Module:
    """GPT-2 of 124 million parameters, or with other settings of GPT2Config."""
    return LanguageModel(**settings)


class Recurrent(nn.Module):
    """A GRU of two layers and width 128; sequences (b, 32, 16) to the logits of 10 classes, from its last state."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(16, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def classified(count: int, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ten classes, each a random pattern under noise of the same size: x (count, *shape) and labels (count,)."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, *shape, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return (patterns[labels] + torch.randn(count, *shape, generator=generator)) / 2**0.5, labels


def images() -> tuple[Tensor, Tensor]:
    """512 images (3, 32, 32)."""
    return classified(512, 3, 32, 32)


def texts(count: int = 64, length: int = 64, vocabulary: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens, and at each place the token that follows."""
    tokens = torch.randint(vocabulary, (count, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
