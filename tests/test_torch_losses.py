"""PyTorch's losses as modules, functions and names: value and matrices against PyTorch's own over all data.

The references share no code with the losses: Hessian, GGN and gradients are dense derivatives of PyTorch's loss, and
the Fisher matrix is an integral or a sum over labels of p(y|f), proportional to exp(-l(f, y)) h(y). All in float64.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
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
from spectra.inputs.loss import build_loss
from spectra.inputs.loss_options import loss_name
from spectra.inputs.python_objects import own_loss
from spectra.krylov.dense import dense_matrix
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem

# PyTorch warns of its mean over all numbers, of which the divergence is asked for here.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")

N, K = 10, 3
D = torch.float64
g = seeded(3)
X = torch.randn(N, 4, dtype=D, generator=g)
REAL = torch.randn(N, K, dtype=D, generator=g)
LABELS = torch.randint(K, (N,), generator=g)
TOKENS = torch.randint(K, (N, 2), generator=g)
TOKENS[0, 1] = TOKENS[3, 0] = -100
SOFT = torch.randn(N, K, dtype=D, generator=g).softmax(1)
BITS = (torch.randn(N, K, dtype=D, generator=g) > 0).to(D)
COUNTS = torch.poisson(torch.full((N, K), 2.0, dtype=D), generator=g)
WEIGHTS = torch.tensor([1.0, 0.5, 2.0], dtype=D)

REALS = torch.linspace(-60, 60, 240_001, dtype=D)
HEADS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda z: z,
    "log_softmax": lambda z: z.log_softmax(1),
    "sigmoid": lambda z: z.sigmoid(),
    "rate": lambda z: z.exp(),
    "pair": lambda z: (z[:, :2], F.softplus(z[:, 2:]) + 0.1),
    "mapping": lambda z: {"mu": z[:, :2], "var": z[:, 1:].exp()},
    "tokens": lambda z: torch.stack([z, z.sin()], dim=2),
    "log tokens": lambda z: torch.stack([z, z.sin()], dim=2).log_softmax(1),
}


class Headed(nn.Module):
    """A small network whose output suits a loss."""

    def __init__(self, head: str):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, K))
        self.head = head

    def forward(self, x):
        return HEADS[self.head](self.body(x))


@dataclass(frozen=True)
class Case:
    """One loss of PyTorch's."""

    loss: nn.Module
    targets: Tensor
    head: str = "plain"
    typed: str = ""  # on the command line; empty: it has no such name
    support: Tensor | None = None  # labels of one output; None: of classes
    base: Callable[[Tensor], Tensor] = torch.zeros_like  # log h(y)
    function: Any = None  # the functional twin
    free: nn.Module | None = None  # the loss without weights and smoothing, of which p is made
    linear: bool = False
    examples: int = N


def log_factorial(y: Tensor) -> Tensor:
    return -torch.lgamma(y + 1)


bits, counts, signs = torch.tensor([0.0, 1], dtype=D), torch.arange(120, dtype=D), torch.tensor([-1.0, 1], dtype=D)
CASES = {
    "cross_entropy": Case(nn.CrossEntropyLoss(), LABELS, typed="cross_entropy", function=F.cross_entropy),
    "cross_entropy weighted": Case(
        nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1),
        LABELS,
        typed="cross_entropy?weight=1,0.5,2&label_smoothing=0.1",
        free=nn.CrossEntropyLoss(),
        function=partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1),
    ),
    "cross_entropy tokens": Case(nn.CrossEntropyLoss(), TOKENS, "tokens", examples=2 * N - 2),
    "cross_entropy sum": Case(
        nn.CrossEntropyLoss(WEIGHTS, reduction="sum"),
        LABELS,
        typed="cross_entropy?weight=1,0.5,2&reduction=sum",
        free=nn.CrossEntropyLoss(),
    ),
    "nll": Case(nn.NLLLoss(), LABELS, "log_softmax", "nll", function=F.nll_loss, linear=True),
    "nll weighted sum": Case(
        nn.NLLLoss(WEIGHTS, reduction="sum"),
        LABELS,
        "log_softmax",
        "nll?weight=1,0.5,2&reduction=sum",
        free=nn.NLLLoss(),
        linear=True,
    ),
    "nll tokens": Case(nn.NLLLoss(WEIGHTS), TOKENS, "log tokens", free=nn.NLLLoss(), linear=True, examples=2 * N - 2),
    "kl_div": Case(nn.KLDivLoss(), SOFT, "log_softmax", "kl_div", function=F.kl_div, linear=True),
    "kl_div batchmean": Case(
        nn.KLDivLoss(reduction="batchmean"), SOFT, "log_softmax", "kl_div?reduction=batchmean", linear=True
    ),
    "kl_div log_target": Case(
        nn.KLDivLoss(reduction="sum", log_target=True),
        SOFT.log(),
        "log_softmax",
        "kl_div?log_target=true&reduction=sum",
        linear=True,
    ),
    "bce_with_logits": Case(
        nn.BCEWithLogitsLoss(),
        BITS,
        typed="bce_with_logits",
        support=bits,
        function=F.binary_cross_entropy_with_logits,
    ),
    "bce_with_logits weights": Case(
        nn.BCEWithLogitsLoss(weight=WEIGHTS, pos_weight=torch.tensor([2.0, 1.0, 0.5], dtype=D)),
        SOFT,
        typed="bce_with_logits?weight=1,0.5,2&pos_weight=2,1,0.5",
        support=bits,
        free=nn.BCEWithLogitsLoss(),
    ),
    "bce_with_logits pos_weight": Case(
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=D), reduction="sum"),
        BITS,
        typed="bce_with_logits?pos_weight=3&reduction=sum",
        support=bits,
        free=nn.BCEWithLogitsLoss(),
    ),
    "bce": Case(nn.BCELoss(), BITS, "sigmoid", "bce", bits, function=F.binary_cross_entropy),
    "bce weighted": Case(nn.BCELoss(WEIGHTS), SOFT, "sigmoid", "bce?weight=1,0.5,2", bits, free=nn.BCELoss()),
    "soft_margin": Case(
        nn.SoftMarginLoss(), 2 * BITS - 1, typed="soft_margin", support=signs, function=F.soft_margin_loss
    ),
    "mse": Case(nn.MSELoss(), REAL, typed="mse", support=REALS, function=F.mse_loss),
    "mse sum": Case(nn.MSELoss(reduction="sum"), REAL, typed="mse?reduction=sum", support=REALS),
    "mse none": Case(nn.MSELoss(reduction="none"), REAL, typed="mse?reduction=none", support=REALS),
    "l1": Case(nn.L1Loss(), REAL, typed="l1", support=REALS, function=F.l1_loss, linear=True),
    "huber": Case(nn.HuberLoss(), REAL, typed="huber", support=REALS, function=F.huber_loss),
    "huber delta": Case(
        nn.HuberLoss(delta=0.5, reduction="sum"),
        REAL,
        typed="huber?delta=0.5&reduction=sum",
        support=REALS,
        function=partial(F.huber_loss, delta=0.5, reduction="sum"),
    ),
    "smooth_l1": Case(
        nn.SmoothL1Loss(beta=0.3),
        REAL,
        typed="smooth_l1?beta=0.3",
        support=REALS,
        function=partial(F.smooth_l1_loss, beta=0.3),
    ),
    "smooth_l1 of beta 0": Case(nn.SmoothL1Loss(beta=0.0), REAL, support=REALS, linear=True),
    "poisson": Case(
        nn.PoissonNLLLoss(),
        COUNTS,
        typed="poisson_nll",
        support=counts,
        base=log_factorial,
        function=F.poisson_nll_loss,
    ),
    "poisson rate": Case(
        nn.PoissonNLLLoss(log_input=False, full=True, eps=0.1, reduction="sum"),
        COUNTS,
        "rate",
        "poisson_nll?log_input=false&full=true&eps=0.1&reduction=sum",
        counts,
        log_factorial,
        free=nn.PoissonNLLLoss(log_input=False, eps=0.1),
    ),
}
EVERY = [pytest.param(case, id=name) for name, case in CASES.items()]


@dataclass
class Reference:
    """PyTorch's own loss over all data as a function of one vector, and its matrices, dense."""

    case: Case
    model: nn.Module = field(init=False)

    def __post_init__(self):
        torch.manual_seed(1)
        self.model = Headed(self.case.head).double()
        self.names = dict(self.model.named_parameters())
        self.point = torch.cat([p.detach().reshape(-1) for p in self.names.values()])

    def output(self, point: Tensor) -> Any:
        parts = point.split([p.numel() for p in self.names.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(self.names.items(), parts, strict=True)}
        return functional_call(self.model, values, (X,))

    def with_reduction(self, how: str, loss: nn.Module | None = None) -> nn.Module:
        found = own = loss or self.case.loss
        found = type(own).__new__(type(own))
        found.__dict__ = {**own.__dict__, "reduction": how}
        return found

    def loss(self, point: Tensor) -> Tensor:
        return self.at(self.output(point))

    def at(self, output: Tensor) -> Tensor:
        how = self.case.loss.reduction
        return self.with_reduction("mean" if how == "none" else how)(output, self.case.targets)

    def values(self, point: Tensor) -> Tensor:
        """The terms of which the loss is the sum, one row an example of design section 1."""
        found = self.with_reduction("none")(self.output(point), self.case.targets)
        return found.reshape(N, -1) if found.shape != TOKENS.shape else found.reshape(2 * N, 1)

    @cached_property
    def weight(self) -> float:
        """W, by which the sum of PyTorch's own values is divided."""
        return (self.values(self.point).sum() / self.loss(self.point)).item()

    def hessian(self) -> Tensor:
        return hessian(self.loss, self.point)

    @cached_property
    def jacobian(self) -> Tensor:
        """(outputs, n), the outputs flattened."""
        return jacobian(self.output, self.point).flatten(0, -2)

    def ggn(self) -> Tensor:
        output = self.output(self.point)
        inner = hessian(self.at, output).reshape(2 * [output.numel()])
        return self.jacobian.T @ inner @ self.jacobian

    def fisher_empirical(self) -> Tensor:
        rows = jacobian(lambda point: self.values(point).sum(dim=1), self.point) / self.weight
        return self.case.examples * rows.T @ rows

    def fisher(self) -> Tensor:
        expected = self.of_outputs() if self.case.support is not None else self.of_classes()
        return self.jacobian.T @ expected @ self.jacobian / self.weight

    def of_outputs(self) -> Tensor:
        """The expectation of r r' over labels of single outputs, times the weights of labels: a diagonal matrix."""
        f = self.output(self.point).flatten()
        assert self.case.support is not None
        labels = self.case.support.expand(len(f), -1)
        spread = f[:, None].expand_as(labels).clone().requires_grad_()
        values = self.with_reduction("none", self.case.free)(spread, labels)
        slope = torch.autograd.grad(values.sum(), spread)[0]
        p = (self.case.base(labels) - values).softmax(dim=1).detach()
        weights = self.label_weights()
        return torch.diag((p * slope**2).sum(dim=1) * weights)

    def label_weights(self) -> Tensor:
        """The weights of the data's labels, by the ratio of slopes with and without weights on a random output."""
        if self.case.free is None or isinstance(self.case.loss, nn.PoissonNLLLoss):
            return torch.ones(self.case.targets.numel(), dtype=D)
        at = self.output(self.point).detach().requires_grad_()
        bends = []
        for loss in (self.case.loss, self.case.free):
            found = self.with_reduction("none", loss)(at, self.case.targets).sum()
            slope = torch.autograd.grad(found, at, create_graph=True)[0]
            bends.append(torch.autograd.grad(slope.sum(), at)[0])
        if isinstance(self.case.loss, nn.BCELoss):
            return WEIGHTS.expand(N, K).flatten()
        return (bends[0] / bends[1]).flatten().detach()

    def of_classes(self) -> Tensor:
        """The expectation of r r' over classes, times the weights of the data's labels: blocks, one a target."""
        output = self.output(self.point)
        count = output.numel() // K
        place = torch.arange(output.numel()).reshape(output.shape).movedim(1, -1).reshape(count, K)
        rows = output.movedim(1, -1).reshape(count, K)
        p = rows.softmax(dim=1)
        total = torch.zeros(output.numel(), output.numel(), dtype=D)
        for i in range(count):
            for c in range(K):
                label = torch.tensor([c])
                if isinstance(self.case.loss, nn.KLDivLoss):
                    slope = -F.one_hot(label, K)[0].to(D)
                else:
                    loss = self.case.free or self.case.loss
                    slope = jacobian(lambda f, label=label, loss=loss: loss(f[None], label), rows[i])
                block = p[i, c] * torch.outer(slope, slope) * self.class_weight(i)
                total[place[i][:, None], place[i]] += block
        return total

    def class_weight(self, i: int) -> float:
        loss, targets = self.case.loss, self.case.targets
        if targets.is_floating_point():
            return 1.0
        label = targets.reshape(-1)[i].item()
        if label == -100:
            return 0.0
        weights = torch.ones(K, dtype=D) if loss.weight is None else loss.weight
        smooth = getattr(loss, "label_smoothing", 0.0)
        return ((1 - smooth) * weights[label] + smooth / K * weights.sum()).item()

    def problem(self, sizes: int = N, **options) -> Problem:
        return Problem(
            self.model, own_loss(self.case.loss), cut_batches(X, self.case.targets, torch.arange(N), sizes), **options
        )


def matrix(problem: Problem, name: str, **options) -> Tensor:
    return dense_matrix(Curvature(problem, name, **options))


@pytest.mark.parametrize("case", EVERY)
def test_value_is_pytorchs_own_over_all_data(case):
    reference = Reference(case)
    for size in (N, 3):
        found = evaluate(reference.problem(size)).loss
        assert found == pytest.approx(reference.loss(reference.point).item(), rel=1e-12)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "fisher-empirical"])
@pytest.mark.parametrize("case", EVERY)
def test_matrices_against_dense_ones(case, name):
    reference = Reference(case)
    if name == "ggn" and case.linear:
        with pytest.raises(SpectraError, match=r"`curvature` ggn: is zero: the loss is linear .*; ask for hessian"):
            Curvature(reference.problem(), name)
        assert reference.ggn().abs().max() == 0
        return
    expected = getattr(reference, name.replace("-", "_"))()
    for options in ({}, {"products": 10**9}):
        found = matrix(reference.problem(4), name, **options)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())


def repeated(problem: Problem, times: int, **options) -> Problem:
    """The problem with all its examples again and again, each time with other indices."""
    batch = problem.batches[0]
    targets = pytree.tree_map(lambda y: y.repeat(times, *(1 for _ in y.shape[1:])), batch.targets)
    many = Batch(batch.inputs.repeat(times, 1), targets, torch.arange(N * times))
    return replace(problem, batches=[many], **options)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("case", EVERY)
def test_draws_converge_to_the_expectation_and_do_not_depend_on_batches(case):
    reference = Reference(case)
    expected = matrix(reference.problem(), "fisher") * (400 if case.loss.reduction == "sum" else 1)
    found = matrix(repeated(reference.problem(), 400, mc_samples=3), "fisher-mc")
    assert (found - expected).norm() <= 0.12 * expected.norm()
    parts = matrix(reference.problem(3, mc_samples=4), "fisher-mc")
    whole = matrix(reference.problem(mc_samples=4), "fisher-mc")
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12 * whole.abs().max().item())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.function or case.typed])
def test_functions_and_names_are_the_module(name):
    case = CASES[name]
    expected = own_loss(case.loss)
    rows, made = torch.rand(N, K, dtype=D, generator=seeded(1)).log_softmax(1).exp(), []
    for loss in (expected, own_loss(case.function) if case.function else expected, build_loss(case.typed)):
        assert type(loss) is type(expected)
        if case.targets.is_floating_point() or case.targets.ndim == 1:
            made.append((loss.total(rows, case.targets).item(), loss.weight(case.targets), loss.reduction))
    assert len(set(made)) == 1
    assert loss_name(build_loss(loss_name(expected))) == loss_name(expected)


OWN = """
import torch.nn.functional as F
from torch import nn

def powers(output, target, reduction="mean"):
    found = (output - target).abs() ** 3
    return found.sum() if reduction == "sum" else found.mean()

class Sums(nn.Module):
    reduction = "sum"

    def forward(self, output, target):
        return ((output - target).abs() ** 3).sum()
"""


@pytest.mark.parametrize("typed", ["own.py:powers?reduction=sum", "own.py:Sums"])
def test_sums_of_ones_own(typed, tmp_path, monkeypatch):
    """Second derivatives of a sum are N K times those of the mean, products of gradients its square."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    model, scale = Reference(CASES["mse"]).model, N * K
    sums, means = (
        Problem(model, build_loss(spec), cut_batches(X, REAL, torch.arange(N), 4)) for spec in (typed, "own.py:powers")
    )
    assert evaluate(sums).loss == pytest.approx(scale * evaluate(means).loss, rel=1e-12)
    for name, factor in (("hessian", scale), ("ggn", scale), ("fisher-empirical", scale**2)):
        torch.testing.assert_close(matrix(sums, name), factor * matrix(means, name), rtol=1e-9, atol=1e-9)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.typed])
def test_what_is_typed(name, tmp_path, monkeypatch, capfd):
    case = CASES[name]
    reference = Reference(case)
    monkeypatch.chdir(tmp_path)
    np.savez("points.npz", x=X.numpy(), y=case.targets.numpy())
    torch.save(reference.model.state_dict(), "weights.pt")
    Path("nets.py").write_text(MODEL.format(head=case.head, folder=str(Path(__file__).parent)))
    line = "trace --model nets.py:build --checkpoint weights.pt --data points.npz --dtype float64 --method dense --json"
    names = ["hessian", "ggn", "fisher", "fisher-empirical"]
    for curvature in names:
        status = run([*line.split(), "--loss", case.typed, "--curvature", curvature])
        out, err = capfd.readouterr()
        if curvature == "ggn" and case.linear:
            assert (status, out, err.count("\n")) == (2, "", 1), err
            assert "is zero" in err
            assert "--curvature ggn" in err
            continue
        assert status == 0, err
        record = json.loads(out)
        expected = getattr(reference, curvature.replace("-", "_"))().trace().item()
        assert record["results"][0]["trace"] == pytest.approx(expected, rel=1e-6)
        assert record["problem"]["loss"] == case.typed
        found = spectra.trace(reference.model, case.loss, (X, case.targets), curvature=curvature, method="dense")
        assert found.trace == pytest.approx(expected, rel=1e-6)


MODEL = """
import sys
sys.path.insert(0, {folder!r})
from test_torch_losses import Headed

def build():
    return Headed({head!r}).double()
"""
