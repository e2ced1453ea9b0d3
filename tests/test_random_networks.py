"""Random small networks: every matrix against dense autograd of PyTorch's loss, the model asked one example at a time.

Layers, activations, norms, sharing, frozen and unused parameters, losses and batches are drawn by hypothesis, which
shrinks what fails to the smallest network that does. `pytest --networks 3000` draws more of them.
"""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Case, cubic_mean, log_cosh
from test_dense_reference import SAMPLES, SEED, Reference, applies
from torch import Tensor, nn
from torch.autograd.functional import vhp
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature

pytestmark = pytest.mark.usefixtures("batches_as_given")

ACTIVATIONS = [nn.Tanh, nn.GELU, nn.Softplus, nn.ReLU, nn.SiLU, nn.ELU, nn.Sigmoid, nn.LeakyReLU, nn.Mish, nn.Hardswish]
RECURRENT = [nn.LSTM, nn.GRU, nn.RNN]
LOSSES = [log_cosh, cubic_mean, lambda output, targets: F.huber_loss(output, targets, reduction="none", delta=0.5)]
KINDS = ["cross_entropy", "mse", "bce", "custom"]
flags = st.booleans()


# Layers, each (..., d) -> (..., d).


class ChannelsSecond(nn.Module):
    """A norm that wants its channels in dimension 1."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(-1, 1)).movedim(1, -1)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class Recurrence(nn.Module):
    def __init__(self, kind, width, layers):
        super().__init__()
        self.cells = kind(width, width, layers, batch_first=True)

    def forward(self, x):
        return self.cells(x)[0]


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class CausalAttention(nn.Module):
    """Queries, keys and values by one shared projection, and PyTorch's fused kernel by name."""

    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(width, width)

    def forward(self, x):
        y = self.project(x)[:, None]
        return F.scaled_dot_product_attention(y, y.tanh(), y, is_causal=True)[:, 0]


class Convolution(nn.Module):
    """Over the steps of a sequence."""

    def __init__(self, width, groups):
        super().__init__()
        self.filters = nn.Conv1d(width, width, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.filters(x.mT).mT


class Network(nn.Module):
    """Inputs -> stem -> blocks -> a pooled or a sequence of features -> head."""

    def __init__(self, stem, blocks, head, pool, classes_second):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.pool, self.classes_second = pool, classes_second

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.pool:
            x = {"mean": x.mean(dim=1), "last": x[:, -1], "largest": x.amax(dim=1)}[self.pool]
        y = self.head(x)
        return y.movedim(-1, 1) if self.classes_second else y


# What is drawn.


@dataclass(frozen=True)
class Shape:
    """Of the data and the network: examples, steps (0: none), width, outputs."""

    examples: int
    steps: int
    width: int
    outputs: int


@st.composite
def networks(draw, shape: Shape, inputs: str, per_step: bool, classes_second: bool):
    """A function that builds the network anew, with the same weights each time."""
    plans = draw(st.lists(block_plans(shape), max_size=2))
    twice = bool(plans) and draw(flags)  # one block, used twice
    pool = draw(st.sampled_from(["mean", "last", "largest"])) if shape.steps and not per_step else None
    activation = draw(st.sampled_from(ACTIVATIONS))
    norm = draw(st.sampled_from(["batch", "group", None]))
    tied = inputs == "tokens" and draw(flags)
    frozen = [draw(flags) for _ in range(1 + len(plans))]
    seed = draw(st.integers(0, 2**20))

    def build() -> nn.Module:
        torch.manual_seed(seed)
        stem = build_stem(inputs, shape, activation, norm)
        blocks = [build_block(plan, shape.width) for plan in plans]
        head = nn.Linear(shape.width, shape.outputs)
        if tied:
            head.weight = stem.weight
        for part, freeze in zip([stem, *blocks], frozen, strict=True):  # the head's bias is always left
            part.requires_grad_(not freeze)
        return Network(stem, blocks + blocks[:1] * twice, head, pool, classes_second)

    return build


def build_stem(inputs: str, shape: Shape, activation, norm: str | None) -> nn.Module:
    if inputs == "tokens":
        return nn.Embedding(shape.outputs, shape.width)
    if inputs == "image":
        norms = {"batch": nn.BatchNorm2d(2), "group": nn.GroupNorm(2, 2), None: nn.Identity()}
        pooled = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, shape.width))
        return nn.Sequential(nn.Conv2d(1, 2, 2), norms[norm], activation(), *pooled)
    return nn.Sequential(nn.Linear(2, shape.width), activation())


@st.composite
def block_plans(draw, shape: Shape):
    kinds = ["mlp", "norm", *(["recurrent", "attention", "causal", "encoder", "convolution"] if shape.steps else [])]
    return {
        "kind": draw(st.sampled_from(kinds)),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "norm": draw(st.sampled_from(["layer", "rms", "group", "batch", "dropout"])),
        "recurrent": draw(st.sampled_from(RECURRENT)),
        "split": draw(flags),  # into two heads, groups or layers
        "residual": draw(flags),
    }


def build_block(plan: dict, width: int) -> nn.Module:
    halves = 2 if plan["split"] and width % 2 == 0 else 1
    norms = {
        "layer": lambda: nn.LayerNorm(width),
        "rms": lambda: nn.RMSNorm(width),
        "group": lambda: ChannelsSecond(nn.GroupNorm(1, width)),
        "batch": lambda: ChannelsSecond(nn.BatchNorm1d(width)),
        "dropout": lambda: nn.Dropout(0.5),
    }
    kinds = {
        "mlp": lambda: nn.Sequential(nn.Linear(width, 2), plan["activation"](), nn.Linear(2, width)),
        "norm": lambda: nn.Sequential(norms[plan["norm"]](), nn.Linear(width, width), plan["activation"]()),
        "recurrent": lambda: Recurrence(plan["recurrent"], width, 1 + plan["split"]),
        "attention": lambda: SelfAttention(width, halves),
        "causal": lambda: CausalAttention(width),
        "encoder": lambda: nn.TransformerEncoderLayer(width, halves, 2, batch_first=True, norm_first=plan["residual"]),
        "convolution": lambda: Convolution(width, halves),
    }
    block = kinds[plan["kind"]]()
    return Residual(block) if plan["residual"] else block


@st.composite
def cases(draw, kind: str):
    """A network, data, loss and batches as a case of the table, and `class_dim` where the shapes leave it open."""
    inputs = draw(st.sampled_from(["vector", "image", "sequence", "tokens"]))
    steps = draw(st.integers(2, 3)) if inputs in ("sequence", "tokens") else 0
    fewest = 2 if kind == "cross_entropy" or inputs == "tokens" else 1
    shape = Shape(draw(st.integers(2, 5)), steps, draw(st.integers(2, 3)), draw(st.integers(fewest, 3)))
    per_step = steps > 0 and draw(flags)
    classes_second = per_step and kind == "cross_entropy" and draw(flags)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    data = {"vector": (2,), "image": (1, 3, 3), "sequence": (steps, 2), "tokens": (steps,)}[inputs]
    x = torch.randn(shape.examples, *data, generator=generator, dtype=torch.float64)
    if inputs == "tokens":
        x = torch.randint(shape.outputs, x.shape, generator=generator)
    build = draw(networks(shape, inputs, per_step, classes_second))
    places = (shape.examples, *([steps] if per_step else []))
    case = Case("random", build, x, torch.zeros(places), kind, sizes=draw(compositions(shape.examples)))
    if kind == "cross_entropy":
        return draw(with_cross_entropy(case, shape, classes_second, generator))
    targets = torch.randn(*places, shape.outputs, generator=generator, dtype=torch.float64)
    if kind == "bce":
        targets = targets.sigmoid() if draw(flags) else (targets > 0).double()
    return replace(case, targets=targets, function=draw(st.sampled_from(LOSSES))), None


@st.composite
def with_cross_entropy(draw, case: Case, shape: Shape, classes_second: bool, generator):
    options, places = {}, tuple(case.targets.shape)
    if draw(flags):
        options["weight"] = torch.rand(shape.outputs, generator=generator, dtype=torch.float64) + 0.1
    if draw(flags):
        options["label_smoothing"] = draw(st.sampled_from([0.1, 0.5]))
    classes_last = len(places) > 1 and not classes_second
    if draw(flags) and not classes_last:  # PyTorch has the classes of soft targets in dimension 1
        logits = torch.randn(places[0], shape.outputs, *places[1:], generator=generator, dtype=torch.float64)
        return replace(case, targets=logits.softmax(dim=1), options=options), None
    targets = torch.randint(shape.outputs, places, generator=generator)
    if draw(flags):
        options["ignore_index"] = draw(st.sampled_from([-100, 7]))
        ignored = torch.rand(places, generator=generator) < 0.4
        ignored.view(-1)[:2] = False  # a covariance needs two examples
        targets[ignored] = options["ignore_index"]
    case = replace(case, targets=targets, options=options, classes_last=classes_last)
    given = -1 if classes_last else 1
    open_to_both = len(places) > 1 and places[1] == shape.outputs
    return case, given if open_to_both or draw(flags) else None


@st.composite
def compositions(draw, count: int):
    """Sizes of batches, in any order."""
    sizes = []
    while sum(sizes) < count:
        sizes.append(draw(st.integers(1, count - sum(sizes))))
    return tuple(sizes)


# The test.


class OneByOne(Reference):
    """Products of the dense matrices; of the Hessian by PyTorch's own product, which is faster than all its rows."""

    def output(self, point: Tensor) -> Tensor:
        whole = self.inputs
        outputs = []
        for self.inputs in whole.split(1):
            outputs.append(super().output(point))
        self.inputs = whole
        return torch.cat(outputs)

    def times(self, name: str, vectors: Tensor) -> Tensor:
        if name != "hessian":
            return self.matrix(name) @ vectors
        with sdpa_kernel(SDPBackend.MATH):
            return torch.stack([vhp(self.loss, self.point, v)[1] for v in vectors.unbind(1)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=max(1, settings.default.max_examples // len(KINDS)))
@given(data=st.data())
def test_every_matrix_of_a_random_network_equals_dense_autograd(kind, data):
    case, class_dim = data.draw(cases(kind))
    loss = replace(case.loss(), class_dim=class_dim) if class_dim else case.loss()
    problem = case.problem(loss=loss, seed=SEED, mc_samples=SAMPLES)
    reference = OneByOne(case, "cpu")
    vectors = torch.randn(problem.size, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = {name: reference.times(name, vectors) for name in MATRICES if applies(case, name)}
    for name, products in expected.items():
        # The covariance is what is left of another matrix, and may be small beside it.
        size = expected["fisher-empirical" if definition(name).subtracts_mean_gradient else name].abs().max()
        assert (Curvature(problem, name, check=False) @ vectors - products).abs().max() <= 1e-10 * size, name
