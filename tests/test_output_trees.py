"""Losses of outputs and targets that are tuples and mappings, against the same model and loss in one tensor, dense."""

import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.utils import _pytree as pytree

import spectra
from spectra.cli import run
from spectra.curvature.evaluation import cut_batches, evaluate
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.inputs.python_objects import own_loss
from spectra.krylov.dense import dense_matrix
from spectra.problem.problem import Problem

N, K = 9, 6
D = torch.float64
g = seeded(8)
X = torch.randn(N, 4, dtype=D, generator=g)
REAL = torch.randn(N, 3, dtype=D, generator=g)
LABELS = torch.randint(3, (N,), generator=g)
SIGNS = torch.where(torch.randn(N, generator=g, dtype=D) > 0, 1.0, -1.0).to(D)
HALVES = {"a": slice(0, 3), "b": slice(3, 6)}


@dataclass(frozen=True)
class Case:
    """A head of the network, a loss of its output and targets, and the targets."""

    head: Callable[[Tensor], Any]
    loss: Any
    targets: Any
    convex: bool = True


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    return z[:, :3], z[:, 3:]


def two_heads(output, targets):
    return F.cross_entropy(output[0], targets[0], reduction="none") + ((output[1] - targets[1]) ** 2).sum(dim=1)


def by_name(output, targets):
    named = F.cross_entropy(output["logits"], targets["labels"], reduction="none")
    return named + output["scale"].exp() * ((output["rest"]["real"] - targets["y"]) ** 2).mean(dim=(1, 2))


def of_complex(output, targets):
    return (output["z"] - targets).abs().square().mean(dim=1) + output["place"] * output["bias"] + output["bias"] ** 2


def mean_of_heads(output, targets):
    return F.cross_entropy(output[0], targets[0]) + F.mse_loss(output[1], targets[1])


CASES = {
    "two heads": Case(halves, two_heads, (LABELS, REAL)),
    "mean over the batch": Case(halves, mean_of_heads, (LABELS, REAL)),
    "mapping": Case(
        lambda z: {"logits": z[:, :3], "rest": {"real": z[:, 3:5, None]}, "scale": z[:, 5]},
        by_name,
        {"labels": LABELS, "y": REAL[:, :2, None]},
        convex=False,
    ),
    "complex and integers": Case(
        lambda z: {
            "z": torch.complex(z[:, :2], z[:, 2:4]),
            "place": z[:, :3].argmax(dim=1),
            "bias": z[:, 4],
            "not used": z[:, 5],
        },
        of_complex,
        torch.complex(REAL[:, :2], REAL[:, 1:]),
    ),
    "list": Case(lambda z: [z[:, :1], z[:, 1:]], lambda o, t: (o[0] * o[1] - t).cosh().sum(dim=1), REAL[:, :1], False),
    "cosine": Case(halves, nn.CosineEmbeddingLoss(margin=0.2), SIGNS, convex=False),
    "ranking": Case(lambda z: (z[:, 0] ** 2, z[:, 1]), nn.MarginRankingLoss(margin=0.1), SIGNS, convex=False),
    "triplet": Case(
        lambda z: {"anchor": z[:, :2], "positive": z[:, 2:4], "negative": z[:, 4:]},
        nn.TripletMarginLoss(margin=2.0),
        None,
        convex=False,
    ),
    "triplet of sums": Case(
        lambda z: (z[:, :2], z[:, 2:4], z[:, 4:]), nn.TripletMarginLoss(2.0, reduction="sum"), None, convex=False
    ),
}


class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, K))
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


class Reference:
    """The loss over all data as a function of the parameters, and of z, the numbers (N, 6) that a head takes."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        self.case, self.model = case, Net(case.head).double()
        self.names = dict(self.model.named_parameters())
        self.point = torch.cat([p.detach().reshape(-1) for p in self.names.values()])

    def numbers(self, point: Tensor) -> Tensor:
        parts = point.split([p.numel() for p in self.names.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(self.names.items(), parts, strict=True)}
        return functional_call(self.model.body, {k.removeprefix("body."): v for k, v in values.items()}, (X,))

    def called(self, output: Any, targets: Any) -> Tensor:
        loss = self.case.loss
        if not isinstance(loss, nn.Module):
            return loss(output, targets)
        parts = output.values() if isinstance(output, dict) else output
        return loss(*parts) if targets is None else loss(*parts, targets)

    def loss(self, point: Tensor) -> Tensor:
        return self.called(self.case.head(self.numbers(point)), self.case.targets).mean()

    def flat(self, z: Tensor) -> Tensor:
        """The real numbers of the output, in which the GGN is the second derivative."""
        leaves = [x for x in pytree.tree_leaves(self.case.head(z)) if x.dtype != torch.int64]
        return torch.cat([torch.view_as_real(x).flatten() if x.is_complex() else x.flatten() for x in leaves])

    def ggn(self) -> Tensor:
        """J'MJ as the Hessian of the loss of the output made linear at the point (Schraudolph 2002)."""
        at = self.flat(self.numbers(self.point))
        outer = jacobian(lambda point: self.flat(self.numbers(point)), self.point)
        return outer.T @ hessian(self.of_flat, at) @ outer

    def of_flat(self, flat: Tensor) -> Tensor:
        leaves, structure = pytree.tree_flatten(self.case.head(self.numbers(self.point)))
        made = []
        for leaf in leaves:
            if leaf.dtype == torch.int64:
                made.append(leaf)
                continue
            count = leaf.numel() * (2 if leaf.is_complex() else 1)
            part, flat = flat[:count], flat[count:]
            shape = leaf.shape
            made.append(torch.view_as_complex(part.view(*shape, 2)) if leaf.is_complex() else part.view(shape))
        return self.called(pytree.tree_unflatten(made, structure), self.case.targets).mean()

    def gradients(self) -> Tensor:
        """(N, n): of the loss of each example alone."""

        def alone(point: Tensor, i: int) -> Tensor:
            whole = (self.case.head(self.numbers(point)), self.case.targets)
            return self.called(*pytree.tree_map(lambda leaf: None if leaf is None else leaf[i : i + 1], whole)).mean()

        return torch.stack([jacobian(lambda point, i=i: alone(point, i), self.point) for i in range(N)])

    def problem(self, size: int = N, **options) -> Problem:
        batches = cut_batches(X, self.case.targets, torch.arange(N), size)
        return Problem(self.model, own_loss(self.case.loss), batches, **options)


def matrix(problem: Problem, name: str, **options) -> Tensor:
    return dense_matrix(Curvature(problem, name, **options))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_matrices_against_dense_ones(name):
    reference = Reference(CASES[name])
    summed = getattr(CASES[name].loss, "reduction", "") == "sum"
    rows = reference.gradients()
    expected = {
        "hessian": hessian(reference.loss, reference.point),
        "ggn": reference.ggn(),
        "fisher-empirical": rows.T @ rows * (N if summed else 1 / N),
    }
    for size, options in ((N, {}), (4, {}), (4, {"products": 10**9})):
        problem = reference.problem(size)
        assert evaluate(problem).loss == pytest.approx(reference.loss(reference.point).item(), rel=1e-12)
        for curvature, wanted in expected.items():
            found = matrix(problem, curvature, **options)
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9 * wanted.abs().max().item())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.convex])
def test_gram(name):
    reference = Reference(CASES[name])
    for curvature in ("ggn", "fisher-empirical"):
        operator = Curvature(reference.problem(4), curvature)
        values = torch.linalg.eigvalsh(dense_matrix(operator)).flip(0)
        gram = torch.linalg.eigvalsh(operator.factor().gram()).flip(0)
        count = min(len(values), len(gram))
        torch.testing.assert_close(gram[:count], values[:count], rtol=1e-8, atol=1e-10)


def test_float32_agrees_with_float64():
    reference = Reference(CASES["mapping"])
    wide = {name: matrix(reference.problem(), name) for name in ("hessian", "ggn", "fisher-empirical")}
    narrow = Reference(CASES["mapping"])
    narrow.model.float()
    targets = {"labels": LABELS, "y": REAL[:, :2, None].float()}
    batches = cut_batches(X.float(), targets, torch.arange(N), 4)
    for name, expected in wide.items():
        operator = Curvature(Problem(narrow.model, own_loss(by_name), batches), name)
        found = dense_matrix(operator).double()
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert operator.derivative_check is not None
        assert operator.derivative_check.dtype == "float64"


def test_a_wrong_derivative_in_one_head_is_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 3 * x**2
            return x**3

        @staticmethod
        def backward(ctx, slope):
            return ctx.slope * slope  # right, but a constant for the second derivative

    def loss(output, targets):
        return Wrong.apply(output[0]).sum(dim=1) + ((output[1] - targets) ** 2).sum(dim=1)

    reference = Reference(Case(halves, loss, REAL))
    with pytest.raises(SpectraError, match="`loss` loss: autograd gives a wrong derivative"):
        matrix(reference.problem(), "hessian")


# --- CTC ---

TIMES, CLASSES = 5, 4
LENGTHS = torch.tensor([5, 4, 5, 3, 5, 4, 5, 5, 3])
WORDS = torch.randint(1, CLASSES, (N, 2), generator=seeded(3))
SIZES = torch.tensor([2, 1, 2, 1, 2, 2, 1, 2, 1])


class Speech(nn.Module):
    """Log-probabilities (T, b, C) of sequences."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, TIMES * CLASSES)

    def forward(self, x):
        return self.body(x).view(-1, TIMES, CLASSES).log_softmax(2).transpose(0, 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("named", [False, True])
def test_ctc(reduction, named):
    torch.manual_seed(0)
    model, loss = Speech().double(), nn.CTCLoss(reduction=reduction)
    targets: Any = (WORDS, LENGTHS, SIZES)
    if named:
        targets = dict(zip(("targets", "input_lengths", "target_lengths"), targets, strict=True))
    whole = loss(model(X), WORDS, LENGTHS, SIZES)
    rows = []
    for i in range(N):
        one = loss(model(X[i : i + 1]), WORDS[i : i + 1], LENGTHS[i : i + 1], SIZES[i : i + 1])
        rows.append(torch.cat([x.flatten() for x in torch.autograd.grad(one, list(model.parameters()))]))
    rows = torch.stack(rows)
    problem = Problem(model, own_loss(loss), cut_batches(X, targets, torch.arange(N), 4))
    assert evaluate(problem).loss == pytest.approx(whole.item(), rel=1e-12)
    expected = rows.T @ rows * (N if reduction == "sum" else 1 / N)
    torch.testing.assert_close(matrix(problem, "fisher-empirical"), expected, rtol=1e-9, atol=1e-10)
    for name in ("hessian", "ggn"):
        with pytest.raises(SpectraError, match=r"`loss` CTCLoss: has no second derivative .* fisher-empirical"):
            matrix(problem, name)
    with pytest.raises(SpectraError, match=r"`curvature` fisher: a custom loss has no known distribution"):
        Curvature(problem, "fisher")


def test_what_ctc_lacks_is_told_by_commands_too():
    torch.manual_seed(0)
    batches = cut_batches(X, (WORDS, LENGTHS, SIZES), torch.arange(N), 4)
    problem = Problem(Speech().double(), own_loss(nn.CTCLoss()), batches)
    for name in ("hessian", "ggn"):
        with pytest.raises(SpectraError, match=r"`loss` CTCLoss: has no second derivative .* fisher-empirical"):
            spectra.trace(problem, curvature=name)
    assert spectra.trace(problem, curvature="fisher-empirical").trace > 0


def test_ctc_of_batches_first_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, TIMES * CLASSES), nn.Unflatten(1, (TIMES, CLASSES)), nn.LogSoftmax(2)).double()
    problem = Problem(model, own_loss(nn.CTCLoss()), cut_batches(X, (WORDS, LENGTHS, SIZES), torch.arange(N), N))
    with pytest.raises(SpectraError, match=r"takes log-probabilities \(time, batch, classes\).*transpose"):
        evaluate(problem)


# --- losses that are linear in the output ---


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: (o - t).abs().sum(dim=1),
        lambda o, t: -(o.sin() * 0 + o * t).sum(dim=1),
        nn.HuberLoss(delta=1e-6),
        lambda o, t: F.relu(o - t).sum(dim=1),
    ],
)
def test_a_matrix_that_is_zero_is_refused(loss):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    with pytest.raises(SpectraError, match=r"`curvature` ggn: is zero: the loss is linear in the model's output at"):
        spectra.trace(model, loss, (X, REAL), curvature="ggn")
    assert spectra.trace(model, loss, (X, REAL), curvature="fisher-empirical").trace > 0


def test_a_loss_with_some_curvature_is_not_zero():
    torch.manual_seed(0)
    loss = lambda o, t: F.cross_entropy(o, t, reduction="none")  # noqa: E731 (M 1 is zero)
    assert spectra.trace(nn.Linear(4, 3).double(), loss, (X, LABELS), curvature="ggn").trace > 0


SHARED = {
    "integer": lambda log_scale: torch.tensor(3),
    "number": lambda log_scale: log_scale.exp(),
    "table": lambda log_scale: log_scale * torch.arange(10.0).to(log_scale).view(5, 2),
}


class WithShared(nn.Module):
    """Logits, and beside them a tensor that is not of single examples."""

    def __init__(self, shared: str):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.log_scale, self.shared = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.3)), SHARED[shared]

    def forward(self, x):
        return {"logits": self.body(x), "shared": self.shared(self.log_scale)}


def scaled(output, target):
    return F.cross_entropy(output["logits"] * output["shared"].double().mean(), target)


@pytest.mark.parametrize("shared", SHARED)
def test_outputs_beside_those_of_examples(shared):
    """Against dense autograd of the whole model: the tail of the batches holds one example, and a batch of five has as
    many as the table has rows.
    """
    model = WithShared(shared).double()
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]
    point = torch.cat([p.detach().flatten() for p in parameters])

    def outputs(point: Tensor) -> Tensor:
        made = [part.view_as(p) for part, p in zip(point.split(sizes), parameters, strict=True)]
        output = functional_call(model, dict(zip(names, made, strict=True)), (X,))
        return torch.cat([output["logits"].flatten(), output["shared"].double().flatten()])

    def loss(values: Tensor) -> Tensor:
        return scaled({"logits": values[: 3 * N].view(N, 3), "shared": values[3 * N :]}, LABELS)

    jacobian_ = jacobian(outputs, point)
    expected = {
        "hessian": hessian(lambda point: loss(outputs(point)), point),
        "ggn": jacobian_.T @ hessian(loss, outputs(point).detach()) @ jacobian_,
    }
    for size in (N, 4, 5):
        problem = Problem(model, own_loss(scaled), cut_batches(X, LABELS, torch.arange(N), size))
        for name, wanted in expected.items():
            torch.testing.assert_close(matrix(problem, name), wanted, rtol=1e-8, atol=1e-9)
            found = spectra.eig(model, scaled, (X, LABELS), curvature=name, k=2, batch_size=size, tolerance=1e-7)
            values = sorted(torch.linalg.eigvalsh(wanted).tolist(), key=abs, reverse=True)[:2]
            assert found.values == pytest.approx(values, rel=1e-5, abs=1e-9)
    for options in ({"curvature": "fisher-empirical"}, {"curvature": "ggn", "method": "gram"}):
        with pytest.raises(SpectraError, match=r"is not the number of examples|is not convex"):
            spectra.eig(model, scaled, (X, LABELS), k=1, **options)
    # An output that is one tensor keeps its gradients.
    spectra.eig(model, lambda output, target: F.cross_entropy(output, target), (X, LABELS), output="logits", k=1)


def test_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n"
        "        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 6))\n"
        "    def forward(self, x):\n        z = self.body(x)\n        return z[:, :3], z[:, 3:]\n"
        "def pairs(output, target):\n"
        "    return ((output[0] - target) ** 2 + (output[1] - target.sin()) ** 4).sum(dim=1)\n"
    )
    np.savez("points.npz", x=X.numpy(), y=REAL.numpy())
    line = "eig --model nets.py:Net --data points.npz --dtype float64 --json -k 3 --loss nets.py:pairs"
    reference = Reference(Case(halves, lambda o, t: ((o[0] - t) ** 2 + (o[1] - t.sin()) ** 4).sum(dim=1), REAL))
    for name, method in (("hessian", "lanczos"), ("ggn", "dense"), ("ggn", "gram"), ("fisher-empirical", "gram")):
        assert run([*line.split(), "--curvature", name, "--method", method]) == 0, capfd.readouterr().err
        found = json.loads(capfd.readouterr().out)["results"][0]["eigenvalues"]
        values = torch.linalg.eigvalsh(matrix(reference.problem(), name))
        expected = sorted(values.tolist(), key=abs, reverse=True)[:3]
        assert found == pytest.approx(expected, rel=1e-4)
    for command in ("layers", "landscape"):
        assert run([command, *line.split()[1:8], "--loss", "nets.py:pairs"]) == 0, capfd.readouterr().err
        capfd.readouterr()


class Contained(nn.Module):
    """Returns its one tensor in a container."""

    def __init__(self, contain: Callable[[Tensor], Any]):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.contain = nn.Linear(4, 3).double(), contain

    def forward(self, x):
        return self.contain(self.layer(x))


Named = namedtuple("Named", "logits")
CONTAINERS: dict[str, tuple[Callable, Callable]] = {
    "mapping": (lambda o: {"logits": o}, lambda o: o["logits"]),
    "nested": (lambda o: {"head": {"logits": o}}, lambda o: o["head"]["logits"]),
    "tuple": (lambda o: (o,), lambda o: o[0]),
    "named tuple": (Named, lambda o: o.logits),
    "none": (lambda o: {"logits": o}, lambda o: o),
}


@pytest.mark.parametrize("curvature", ["hessian", "ggn", "fisher-empirical"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_loss_may_take_the_container_of_one_tensor(kind, curvature):
    """`o["logits"]` where the model returns a mapping of one tensor, as where it returns several.

    The first row of a tensor broadcasts against the targets, so a tensor in place of the tuple would not be noticed.
    """
    contain, taken = CONTAINERS[kind]
    x, y = (torch.randn(9, size, generator=seeded(size), dtype=torch.float64) for size in (4, 3))
    model = Contained(contain)

    def loss(output, targets):
        return F.softplus(taken(output) - targets).mean(dim=-1)

    found = spectra.eig(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])], curvature=curvature, k=3, tolerance=1e-9)
    usual = spectra.eig(model.layer, lambda o, t: F.softplus(o - t).mean(dim=-1), (x, y), curvature=curvature, k=3)
    flat = torch.cat([p.detach().flatten() for p in model.layer.parameters()])

    def values(theta):
        return F.softplus(x @ theta[:12].view(3, 4).T + theta[12:] - y).mean(dim=1)

    gradients = jacobian(values, flat)
    dense = gradients.T @ gradients / 9 if "fisher" in curvature else hessian(lambda theta: values(theta).mean(), flat)
    expected = torch.linalg.eigvalsh(dense).flip(0)[:3]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    np.testing.assert_allclose(usual.values, expected, rtol=1e-3)
