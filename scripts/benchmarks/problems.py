"""The problems: a network, its loss as PyTorch writes it, and its examples in batches; all from seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import spectra
from scripts.benchmarks import models


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """The mean over all tokens, of logits (b, t, classes)."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Case:
    """One problem, as every tool is given it."""

    name: str
    model: nn.Module
    criterion: nn.CrossEntropyLoss
    batches: list[tuple[Tensor, Tensor]]

    @property
    def examples(self) -> int:
        return sum(len(x) for x, _ in self.batches)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def merged(self) -> tuple[Tensor, Tensor]:
        """All examples as one batch."""
        xs, ys = zip(*self.batches, strict=True)
        return torch.cat(xs), torch.cat(ys)

    def copy(self) -> Case:
        """The same with a model of its own, for tools that leave gradients behind."""
        return replace(self, model=copy.deepcopy(self.model))

    def double(self) -> Case:
        inputs = [x.double() if x.is_floating_point() else x for x, _ in self.batches]
        batches = [(x, y) for x, (_, y) in zip(inputs, self.batches, strict=True)]
        return replace(self, model=copy.deepcopy(self.model).double(), batches=batches)

    def first(self, examples: int) -> Case:
        """The same on its first examples, in one batch."""
        x, y = self.merged()
        return replace(self, batches=[(x[:examples], y[:examples])])

    def problem(self) -> spectra.Problem:
        loss = spectra.CrossEntropy(class_dim=-1)
        batches, first = [], 0
        for x, y in self.batches:
            batches.append(spectra.Batch(x, y, torch.arange(first, first + len(x), device=x.device)))
            first += len(x)
        return spectra.Problem(self.model, loss, batches)


def build(name: str, device: torch.device) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, (x, y), size = PROBLEMS[name]()
    criterion = TokenCrossEntropy() if y.ndim == 2 else nn.CrossEntropyLoss()
    batches = [(x.to(device), y.to(device)) for x, y in zip(x.split(size), y.split(size), strict=True)]
    return Case(name, model.to(device).eval(), criterion, batches)


def digits() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """The network of `spectra demo`, trained as there, on all 1,797 digits in one batch."""
    from spectra.demo import train
    from spectra.inputs.data import load_data

    data = load_data("digits", None, 0)
    network = next(network for name, network, _ in train(data.inputs, data.targets) if name == "final")
    return network, (data.inputs, data.targets), len(data.targets)


def resnet20() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """512 images in batches of 128; the statistics of BatchNorm are those of all of them."""
    model, (x, y) = models.resnet20(), models.images()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain mean
    with torch.no_grad():
        for part in x.split(128):
            model(part)
    return model, (x, y), 128


def resnet50() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """torchvision's, untrained, on 64 images of 224x224 in two batches."""
    from torchvision.models import resnet50

    return resnet50(), models.classified(64, 3, 224, 224), 32


def gpt2() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """GPT-2 of 124 million parameters, transformers', untrained, on 8 sequences of 256 random tokens."""
    return models.language_model(), models.texts(8, 256, 50257), 8


def vitb() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """torchvision's ViT-B/16, 12 layers, untrained, on 32 images of 224x224."""
    from torchvision.models import vit_b_16

    model = vit_b_16()
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision's is zero, at which most gradients vanish
    return model, models.classified(32, 3, 224, 224), 32


PROBLEMS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, Tensor], int]]] = {
    "mlp": lambda: (models.mlp(), models.classified(2048, 784), 2048),
    "resnet20": resnet20,
    "vit": lambda: (models.vit(), models.classified(256, 3, 32, 32), 256),
    "digits": digits,
    "gpt": lambda: (models.Decoder(), models.texts(), 64),
    "gru": lambda: (models.Recurrent(), models.classified(256, 32, 16), 256),
    "resnet50": resnet50,
    "gpt2": gpt2,
    "vitb": vitb,
}
SHORT = {
    "mlp": "MLP",
    "resnet20": "ResNet-20",
    "vit": "ViT",
    "digits": "digits",
    "gpt": "GPT",
    "gru": "GRU",
    "resnet50": "ResNet-50",
    "gpt2": "GPT-2",
    "vitb": "ViT-B",
}
TITLES = {
    "mlp": "MLP 784-256-256-10, 2,048 examples",
    "resnet20": "ResNet-20, 512 images of 32x32 in batches of 128",
    "vit": "VisionTransformer (4 layers, width 128, patch 4), 256 images of 32x32",
    "digits": "digits network, 1,797 examples",
    "gpt": "GPT-style decoder (4 layers, width 128), 64 sequences of 64 tokens, vocabulary 1,000",
    "gru": "GRU (2 layers, width 128), 256 sequences of 32",
    "resnet50": "ResNet-50, 64 images of 224x224 in batches of 32",
    "gpt2": "GPT-2, 124 million parameters, 8 sequences of 256 tokens, vocabulary 50,257",
    "vitb": "ViT-B/16, 32 images of 224x224",
}
