"""A user's file: one good model, and the ways in which models, data, losses and transforms go wrong.

Tests copy it into a folder and name what is in it; what follows the ? of a name chooses among ways.
"""

import builtins
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

NUMBER = 3
THINGS = {
    "nothing": None,
    "number": 3.5,
    "text": "logits",
    "list": [],
    "dict": {},
    "class": nn.Linear,
    "set": {1, 2},
    "array": torch.zeros(3).numpy(),
    "tensors": (torch.zeros(11, 3), torch.zeros(11, 3)),
    "dict of tensors": {"logits": torch.zeros(11, 3), "hidden": torch.zeros(11, 3)},
}


def thing(name):
    return THINGS[name]


def fails(*_things, error="ValueError", text="no"):
    raise getattr(builtins, error)(text)


def linear(inputs=4, outputs=3):
    return nn.Linear(inputs, outputs)


# Models


class Through(nn.Module):
    """A linear layer, and something done to what comes out of it."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class BatchStatistics(nn.BatchNorm1d):
    """Stays in training mode whatever it is told."""

    def train(self, _mode=True):
        return super().train(True)


class Kink(nn.Module):
    """A norm at zero: the loss is finite, its second derivative is not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.gap = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.linear(x) + self.gap.norm()


class Restless(nn.Linear):
    """Moves its own weights whenever it is called."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.add_(0.1)
        return super().forward(x)


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        return x[:, :3] * self.weight


def filled(value):
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float(value))
    return model


MODELS = {
    "without parameters": lambda: nn.Flatten(),
    "frozen": lambda: nn.Linear(4, 3).requires_grad_(False),
    "of integers": Integers,
    "complex": lambda: nn.Linear(4, 3, dtype=torch.complex64),
    "lazy": lambda: nn.LazyLinear(3),
    "on the meta device": lambda: nn.Linear(4, 3, device="meta"),
    "in training mode": lambda: nn.Sequential(nn.Linear(4, 3), BatchStatistics(3)),
    "without statistics": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
    "with dropout": lambda: Through(lambda x: F.dropout(x, training=True)),
    "with noise": lambda: Through(lambda x: x + torch.randn_like(x)),
    "restless": lambda: Restless(4, 3),
    "detached": lambda: Through(Tensor.detach),
    "for wider inputs": lambda: nn.Linear(5, 3),
    "for images": lambda: nn.Conv2d(3, 3, 3),
    "of one number": lambda: Through(Tensor.sum),
    "of fewer rows": lambda: Through(lambda x: x[:-1]),
    "of integer outputs": lambda: Through(Tensor.long),
    "nan": lambda: filled("nan"),
    "inf": lambda: filled("inf"),
}


def model(kind):
    return MODELS[kind]()


def returning(name):
    """A model that returns one of THINGS, a tuple or dict of them made new."""
    return Through(lambda x: {"tensors": (x, x), "dict of tensors": {"logits": x, "hidden": x}}.get(name, THINGS[name]))


def kink():
    return Kink()


def once():
    return Through(Once.apply)


def fails_on_data(error, text):
    return Through(lambda _x: fails(error=error, text=text))


def exits_on_data():
    return Through(lambda _x: sys.exit("on data"))


# Data


class Items:
    """Eleven items, made by a function of their index."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return self.function(index)


class Unsized(Items):
    __len__ = None


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(4), 0)])


def x():
    return torch.ones(4)


DATA = {
    "augmented": lambda: Items(lambda i: (torch.randn(4), i % 3)),
    "ragged": lambda: Items(lambda i: (torch.ones(4 + i % 2), i % 3)),
    "iterable": Stream,
    "loader": lambda: DataLoader(TensorDataset(torch.ones(11, 4), torch.zeros(11).long()), batch_size=4),
    "unsized": lambda: Unsized(lambda i: (x(), i % 3)),
    "generator": lambda: ((x(), i % 3) for i in range(11)),
    "empty": list,
    "without targets": lambda: Items(lambda _i: x()),
    "triples": lambda: Items(lambda i: (x(), i % 3, i)),
    "texts": lambda: Items(lambda i: ("a text", i % 3)),
    "targets of text": lambda: Items(lambda i: (x(), "cat")),
    "nothing": lambda: Items(lambda i: (None, i % 3)),
    "nan": lambda: Items(lambda i: (x() / (0 if i == 5 else 1) * torch.tensor(torch.nan), i % 3)),
    "dicts without labels": lambda: Items(lambda i: {"x": x(), "y": i % 3}),
    "labels out of range": lambda: Items(lambda i: (x(), i)),
    "negative labels": lambda: Items(lambda i: (x(), i - 4)),
    "unequal lengths": lambda: (torch.ones(11, 4), torch.zeros(10).long()),
    "numbers": lambda: (torch.tensor(1.0), torch.tensor(0)),
    "arrays of objects": lambda: (torch.ones(11, 4).numpy().astype(object), torch.zeros(11).long()),
    "complex": lambda: (torch.ones(11, 4, dtype=torch.complex64), torch.zeros(11).long()),
    "targets of real numbers": lambda: (torch.ones(11, 4), torch.linspace(0, 1, 11)),
    "targets in columns": lambda: (torch.ones(11, 4), torch.zeros(11, 1).long()),
    "integer inputs": lambda: (torch.ones(11, 4).long(), torch.zeros(11).long()),
    "failing": lambda: Items(lambda i: fails(text="corrupt") if i > 3 else (x(), i % 3)),
    "all ignored": lambda: (torch.ones(11, 4), torch.full((11,), -100)),
}


def data(kind):
    return DATA[kind]()


# Losses of (output, target) and transforms of x


def squares(output, target):
    return (output - F.one_hot(target, 3)) ** 2


LOSSES = {
    "short": lambda output, target: output[:2, 0],
    "no tensor": lambda output, target: 3.0,
    "nothing": lambda output, target: None,
    "detached": lambda output, target: squares(output, target).detach(),
    "nan": lambda output, target: squares(output, target) * torch.nan,
    "complex": lambda output, target: squares(output, target) * 1j,
}


def loss(output, target, kind):
    return LOSSES[kind](output, target)


def loss_of_one(output):
    return output.mean()


TRANSFORMS = {
    "random": lambda x: x + torch.randn_like(x),
    "nothing": lambda x: None,
    "text": lambda x: "text",
    "nan": lambda x: x * torch.nan,
    "wider": lambda x: torch.cat([x, x]),
    "ragged": lambda x: x[: 1 + int(x[0] > 0)],
    "function": lambda x: torch.tanh,
}


def transform(x, kind):
    return TRANSFORMS[kind](x)
