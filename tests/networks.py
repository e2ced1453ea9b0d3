"""The table that the tests of curvature run over: small networks, each with data, a loss of PyTorch's and our own.

A case says how PyTorch itself computes the mean loss and the values of single targets; the tests differentiate those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectra.problem.batch import Batch
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, Loss, MeanSquaredError
from spectra.problem.parameter_selection import select_parameters
from spectra.problem.problem import Problem

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@dataclass(frozen=True)
class Case:
    """One problem. `values` are PyTorch's own losses of single targets, as its reduction="none" gives them."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    targets: Tensor
    kind: str = "cross_entropy"  # or mse, bce, custom
    options: dict[str, Any] = field(default_factory=dict)  # of torch.nn.CrossEntropyLoss
    classes_last: bool = False
    function: Callable[[Tensor, Tensor], Tensor] | None = None  # of a custom loss
    sizes: tuple[int, ...] = (5, 2)  # of the batches

    def model(self, dtype=torch.float64, device="cpu") -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = self.build()
            for buffer in model.buffers():  # statistics of BatchNorm that are not the trivial ones
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5)
        return model.to(device=device, dtype=dtype).eval()

    def data(self, dtype=torch.float64, device="cpu") -> tuple[Any, Tensor]:
        def cast(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)

        return mapped(cast, self.inputs), cast(self.targets)

    def loss(self) -> Loss:
        if self.kind == "cross_entropy":
            renamed = {"class_weights" if key == "weight" else key: value for key, value in self.options.items()}
            return CrossEntropy(**renamed)
        if self.kind == "custom":
            return CustomLoss(self.function)
        return MeanSquaredError() if self.kind == "mse" else BinaryCrossEntropy()

    def values(self, output: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        if self.kind == "cross_entropy":
            options = dict(self.options)
            if "weight" in options:
                options["weight"] = options["weight"].to(output)
            if self.classes_last:
                output = output.movedim(-1, 1)
            return nn.CrossEntropyLoss(**options, reduction=reduction)(output, targets)
        if self.kind == "custom":
            return self.function(output, targets)
        loss = nn.MSELoss if self.kind == "mse" else nn.BCEWithLogitsLoss
        return loss(reduction=reduction)(output, targets)

    def mean(self, output: Tensor, targets: Tensor) -> Tensor:
        """PyTorch's mean loss over the whole data."""
        return self.values(output, targets, reduction="mean").mean()

    def problem(self, sizes=None, order=None, dtype=torch.float64, device="cpu", model=None, **settings) -> Problem:
        """The problem with its batches of these sizes, the examples in this order."""
        inputs, targets = self.data(dtype, device)
        order = torch.arange(len(targets)) if order is None else order
        batches = [
            Batch(mapped(lambda x, part=part: x[part], inputs), targets[part], part)
            for part in order.to(device).split(list(sizes or self.sizes))
        ]
        return Problem(model or self.model(dtype, device), settings.pop("loss", self.loss()), batches, **settings)


def mapped(function, inputs):
    if isinstance(inputs, tuple):
        return tuple(map(function, inputs))
    if isinstance(inputs, Mapping):
        return {key: function(value) for key, value in inputs.items()}
    return function(inputs)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def labels(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(sum(shape)))


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def mlp(inputs=3, width=4, outputs=3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))


def relu_in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 2),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


class WeightNorm(nn.Module):
    """A linear layer of weights g v / |v|, its parameters in the order of torch.nn.utils.weight_norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(outputs))
        self.g, self.v = nn.Parameter(torch.rand(outputs, 1) + 0.5), nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return F.linear(x, self.g * self.v / (self.v**2).sum(dim=1, keepdim=True) ** 0.5, self.bias)


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Dropout(0.5), nn.SiLU(), nn.Linear(4, 3))


class Attention(nn.Module):
    """Tokens through PyTorch's encoder layer, head tied to the embedding; the mask comes by keyword."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.layer = nn.TransformerEncoderLayer(3, 3, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, padding):
        return self.head(self.layer(self.embedding(tokens), src_key_padding_mask=padding))


class FusedAttention(nn.Module):
    """A direct call of scaled_dot_product_attention, whose fused kernels have no second derivative."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(2, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        query, key, value = self.project(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(mixed.transpose(1, 2).flatten(2)).movedim(-1, 1)  # (b, classes, T)


class Recurrent(nn.Module):
    def __init__(self, kind, outputs: int, last: bool):
        super().__init__()
        self.cell = kind(2, 2, batch_first=True)
        self.head = nn.Linear(2, outputs)
        self.last = last

    def forward(self, x):
        states, _ = self.cell(x)
        return self.head(states[:, -1] if self.last else states)


class Tied(nn.Module):
    """A language model of one token back, its head tied to the embedding under both names."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.mix(self.embedding(tokens)).tanh())


class Checkpointed(nn.Module):
    """A layer that is recomputed in the backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.second(checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=False))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(2, 2, 3)

    def forward(self, x, y):
        return self.layer(x, y).sigmoid()


def log_cosh(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).cosh().log()


def cubic_mean(output: Tensor, targets: Tensor) -> Tensor:
    return ((output - targets) ** 3 + output**2).mean()


X, Y = floats(7, 3), labels(7, below=3)
WEIGHT = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)
MASKED = Y.where(torch.tensor([0, 1, 0, 1, 1, 1, 0], dtype=torch.bool), -100)
SOFT = floats(7, 3).softmax(dim=1)
TOKENS = labels(7, 3, below=5)
NEXT = TOKENS.roll(-1, 1).where(labels(7, 3, below=4) > 0, -100)
PADDING = torch.tensor([[False, False, n % 3 == 0] for n in range(7)])
STEPS = floats(7, 3, 2)
STEP_LABELS = labels(7, 3, below=3)

NETWORKS = [
    Case("mlp", mlp, X, Y),
    Case("relu in place", relu_in_place, X, Y),
    Case("convolution, BatchNorm", convolution, floats(7, 1, 4, 4), Y),
    Case("LayerNorm, dropout", layer_norm, X, floats(7, 3), "mse"),
    Case(
        "transformer layer, tied head",
        Attention,
        {"tokens": TOKENS.clamp(max=3), "padding": PADDING},
        NEXT.clamp(max=3),
        classes_last=True,
    ),
    Case("fused attention", FusedAttention, STEPS[:, 1:], STEP_LABELS[:, 1:]),
    Case("LSTM", lambda: Recurrent(nn.LSTM, 3, last=True), STEPS, Y),
    Case("GRU", lambda: Recurrent(nn.GRU, 2, last=False), STEPS, floats(7, 3, 2), "mse"),
    Case("RNN", lambda: Recurrent(nn.RNN, 1, last=True), STEPS, floats(7, 1), "mse"),
    Case("tied weights", Tied, TOKENS, NEXT, classes_last=True),
    Case("checkpointed", Checkpointed, X, Y),
    Case("weight norm by hand", lambda: nn.Sequential(WeightNorm(3, 4), nn.Tanh(), WeightNorm(4, 3)), X, Y),
    Case("two inputs", TwoInputs, (floats(7, 2), floats(2, 7).T), SOFT, "bce"),
]

LOSSES = [
    Case("class weights", mlp, X, Y, options={"weight": WEIGHT}),
    Case("label smoothing", mlp, X, Y, options={"label_smoothing": 0.2}),
    Case("ignored targets", mlp, X, MASKED),
    Case("a class ignored", mlp, X, Y, options={"ignore_index": 1}),
    Case("unsigned bytes", mlp, X, Y.byte(), options={"weight": WEIGHT}),
    Case(
        "weights, smoothing and ignored",
        mlp,
        X,
        MASKED,
        options={"weight": WEIGHT, "label_smoothing": 0.3, "ignore_index": -100},
        sizes=(1, 4, 2),  # the first batch has ignored targets only
    ),
    Case("soft targets", mlp, X, SOFT),
    Case("soft, weights and smoothing", mlp, X, SOFT, options={"weight": WEIGHT, "label_smoothing": 0.3}),
    Case("unnormalised soft targets", mlp, X, 2 * SOFT, options={"weight": WEIGHT}),
    Case(
        "sequence, classes last",
        lambda: mlp(2),
        STEPS[:, 1:],
        labels(7, 2, below=3).where(PADDING[:, 1:].logical_not(), -100),
        options={"weight": WEIGHT, "label_smoothing": 0.1},
        classes_last=True,
    ),
    Case(
        "sequence, classes second",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh()),
        floats(7, 2, 3),
        labels(7, 2, below=3),
        options={"weight": WEIGHT},
    ),
    Case(
        "soft sequence",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh()),
        floats(7, 2, 3),
        floats(7, 3, 2).softmax(dim=1),
        options={"label_smoothing": 0.1},
    ),
    Case("mse", mlp, X, floats(7, 3), "mse"),
    Case("mse of sequences", lambda: mlp(2, 3, 2), STEPS, floats(7, 3, 2), "mse"),
    Case("mse without output dimension", lambda: nn.Sequential(mlp(3, 4, 1), nn.Flatten(0)), X, floats(7), "mse"),
    Case("bce", mlp, X, (SOFT > 0.3).double(), "bce"),
    Case("bce, soft", mlp, X, SOFT, "bce"),
    Case("bce, one output", lambda: nn.Sequential(mlp(3, 4, 1), nn.Flatten(0)), X, (Y > 1).double(), "bce"),
    Case("custom, values", mlp, X, floats(7, 3), "custom", function=log_cosh),
    Case("custom, mean", mlp, X, floats(7, 3), "custom", function=cubic_mean),
    Case("custom, sequences", lambda: mlp(2, 3, 2), STEPS, floats(7, 3, 2), "custom", function=log_cosh),
    Case(
        "custom, no output dimension",
        lambda: nn.Sequential(mlp(3, 4, 1), nn.Flatten(0)),
        X,
        floats(7),
        "custom",
        function=log_cosh,
    ),
    Case("custom, curved nowhere", mlp, X, floats(7, 3), "custom", function=lambda output, targets: output * targets),
]

CASES = NETWORKS + LOSSES
BY_NAME = {case.name: case for case in CASES}
SOME = [BY_NAME[name] for name in ("mlp", "convolution, BatchNorm", "weights, smoothing and ignored", "GRU", "bce")]


def name_of(value) -> str | None:
    return value.name if isinstance(value, Case) else None


def chosen(model: nn.Module, *patterns: str) -> dict[str, nn.Parameter]:
    return select_parameters(model, patterns)
