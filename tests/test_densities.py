"""Losses that name their density: Fisher matrices against integrals over labels, draws against expectations."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from torch import Tensor, nn
from torch import distributions as ds
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import spectra
from spectra.cli import run
from spectra.curvature.evaluation import cut_batches, evaluate
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.inputs.python_objects import own_loss
from spectra.krylov.dense import dense_matrix
from spectra.problem.batch import Batch
from spectra.problem.inverse_transform import inverse_transform
from spectra.problem.problem import Problem

N, K = 8, 4
D = torch.float64
X = torch.randn(N, 3, dtype=D, generator=seeded(3))
REALS = torch.linspace(-80, 80, 40_001, dtype=D)
POSITIVE = torch.linspace(-30, 8, 20_001, dtype=D).exp()
UNIT = torch.linspace(-30, 30, 20_001, dtype=D).sigmoid()
COUNTS = torch.arange(400, dtype=D)


@dataclass(frozen=True)
class Case:
    """A density as a function of outputs (b, 4), and the labels over which it is summed."""

    density: Callable[[Any], ds.Distribution]
    support: Tensor
    targets: Tensor
    discrete: bool = False


real = torch.randn(N, dtype=D, generator=seeded(4))
pairs = torch.randn(N, 2, dtype=D, generator=seeded(5))
bits = (pairs > 0).to(D)
counts = torch.poisson(torch.full((N, 2), 3.0, dtype=D), generator=seeded(6))
labels = torch.randint(2, (N, 2), generator=seeded(7))
CASES = {
    "Normal": Case(lambda o: ds.Normal(o[:, 0], F.softplus(o[:, 1]) + 0.3), REALS, real),
    "Normal of two": Case(lambda o: ds.Normal(o[:, :2], o[:, 2:].exp()), REALS, pairs),
    "Independent": Case(lambda o: ds.Independent(ds.Normal(o[:, :2], o[:, 2:].exp()), 1), REALS, pairs),
    "Laplace": Case(lambda o: ds.Laplace(o[:, 0] * o[:, 1], o[:, 2].exp() + 0.2), REALS, real),
    "LogNormal": Case(lambda o: ds.LogNormal(o[:, 0], F.softplus(o[:, 1]) + 0.3), POSITIVE, real.exp()),
    "Poisson": Case(lambda o: ds.Poisson(o[:, :2].exp() + o[:, 2:] ** 2), COUNTS, counts, True),
    "Exponential": Case(lambda o: ds.Exponential(o[:, :2].exp()), POSITIVE, pairs.exp()),
    "Gamma": Case(lambda o: ds.Gamma(F.softplus(o[:, :2]) + 1, o[:, 2:].exp()), POSITIVE, pairs.exp()),
    "Beta": Case(lambda o: ds.Beta(F.softplus(o[:, 0]) + 1, F.softplus(o[:, 1]) + 1), UNIT, real.sigmoid()),
    "Bernoulli": Case(lambda o: ds.Bernoulli(logits=o[:, :2]), COUNTS[:2], bits, True),
    "Bernoulli of probs": Case(lambda o: ds.Bernoulli(probs=o[:, :2].sigmoid()), COUNTS[:2], bits, True),
    "Geometric": Case(lambda o: ds.Geometric(logits=o[:, :2] + 1), COUNTS, counts, True),
    "Binomial": Case(lambda o: ds.Binomial(7, logits=o[:, :2]), COUNTS[:8], counts.clamp(max=7), True),
    "NegativeBinomial": Case(lambda o: ds.NegativeBinomial(2.5, logits=o[:, :2] - 1), COUNTS, counts, True),
    "Categorical": Case(lambda o: ds.Categorical(logits=o.view(-1, 2, 2)), COUNTS[:2], labels, True),
    "Categorical of probs": Case(lambda o: ds.Categorical(probs=o.exp()), COUNTS[:4], labels[:, 0], True),
}
EVERY = [pytest.param(case, id=name) for name, case in CASES.items()]


class Net(nn.Module):
    """Outputs (b, 4), whole or in parts."""

    def __init__(self, parts: Callable[[Tensor], Any] = lambda z: z):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, K))
        self.parts = parts

    def forward(self, x):
        return self.parts(self.body(x))


def build(parts: Callable[[Tensor], Any] = lambda z: z) -> Net:
    torch.manual_seed(2)
    return Net(parts).double()


def problem_of(loss: Any, targets: Any, size: int = N, model: nn.Module | None = None, **options) -> Problem:
    return Problem(model or build(), own_loss(loss), cut_batches(X, targets, torch.arange(N), size), **options)


def matrix(problem: Problem, name: str, **options) -> Tensor:
    return dense_matrix(Curvature(problem, name, **options))


def outputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The outputs (N, K) of the body, and their derivatives (N, K, n)."""
    names = dict(model.named_parameters())
    point = torch.cat([p.detach().reshape(-1) for p in names.values()])

    def output(point: Tensor) -> Tensor:
        parts = point.split([p.numel() for p in names.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(names.items(), parts, strict=True)}
        return functional_call(model.body, {k.removeprefix("body."): v for k, v in values.items()}, (X,))

    return output(point), jacobian(output, point)


def fisher(case: Case) -> Tensor:
    """The mean of J'E[r r']J over examples, and over the labels of each, by sums over the support."""
    found, slopes = outputs(build())
    total = torch.zeros(slopes.shape[2], slopes.shape[2], dtype=D)
    y = case.support
    widths = torch.ones_like(y) if case.discrete else torch.gradient(y)[0]
    for f, jac in zip(found, slopes, strict=True):
        spread = f.expand(len(y), -1).clone().requires_grad_()
        density = case.density(spread)
        while isinstance(density, ds.Independent):
            density = density.base_dist
        labels = y.view(-1, *(1 for _ in density.batch_shape[1:])).expand(density.batch_shape)
        logs = density.log_prob(labels).reshape(len(y), -1)
        for j in range(logs.shape[1]):
            r = torch.autograd.grad(logs[:, j].sum(), spread, retain_graph=True)[0]
            p = logs[:, j].detach().exp() * widths
            assert p.sum().item() == pytest.approx(1, abs=1e-4)
            independent = isinstance(case.density(f[None]), ds.Independent)
            total += jac.T @ ((p[:, None] * r).T @ r) @ jac / (1 if independent else logs.shape[1])
    return total / N


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", EVERY)
def test_fisher_is_the_integral_over_labels(case):
    expected = fisher(case)
    for size, options in ((N, {}), (3, {"products": 10**9})):
        found = matrix(problem_of(case.density, case.targets, size), "fisher", **options)
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4 * expected.abs().max().item())


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", EVERY)
def test_draws_converge_to_the_expectation_and_do_not_depend_on_batches(case):
    problem = problem_of(case.density, case.targets)
    expected = matrix(problem, "fisher")
    times = 400
    targets = case.targets.repeat(times, *(1 for _ in case.targets.shape[1:]))
    many = replace(problem, batches=[Batch(X.repeat(times, 1), targets, torch.arange(N * times))], mc_samples=3)
    found = matrix(many, "fisher-mc")
    assert (found - expected).norm() <= 0.12 * expected.norm()
    parts, whole = (
        matrix(problem_of(case.density, case.targets, size, mc_samples=3), "fisher-mc", products=products)
        for size, products in ((3, 100), (N, 10**9))
    )
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12 * whole.abs().max().item())


@pytest.mark.parametrize("case", EVERY)
def test_numbers_drawn_have_their_distribution(case):
    """Of ten thousand numbers the shares below some bounds are the probabilities, by sums over the support."""
    count = 10_000
    numbers = torch.rand(6, count, dtype=D, generator=seeded(9))
    output = torch.tensor([0.3, -0.4, 0.2, 0.5], dtype=D).expand(count, -1)
    density = case.density(output)
    found = inverse_transform(density, lambda j: numbers[j], D).reshape(count, -1)[:, 0]
    one = case.density(output[:1].expand(len(case.support), -1))
    while isinstance(one, ds.Independent):
        one = one.base_dist
    shape = one.batch_shape[1:]
    logs = one.log_prob(case.support.view(-1, *(1 for _ in shape)).expand(-1, *shape)).reshape(len(case.support), -1)
    widths = torch.ones_like(case.support) if case.discrete else torch.gradient(case.support)[0]
    below = (logs[:, 0].exp() * widths).cumsum(0)
    for share in (0.1, 0.4, 0.8):
        place = int((below < share).sum())
        bound = case.support[place]
        assert (found <= bound).to(D).mean().item() == pytest.approx(below[place].item(), abs=0.025)


def test_the_loss_is_minus_the_logarithm_of_the_density():
    case = CASES["Normal of two"]
    values = lambda o, y: -ds.Normal(o[:, :2], o[:, 2:].exp()).log_prob(y)  # noqa: E731
    ours, theirs = (problem_of(loss, case.targets, 3) for loss in (case.density, values))
    assert evaluate(ours).loss == pytest.approx(evaluate(theirs).loss, rel=1e-12)
    for name in ("hessian", "ggn", "fisher-empirical", "gradient-covariance"):
        torch.testing.assert_close(matrix(ours, name), matrix(theirs, name), rtol=1e-10, atol=1e-12)


PAIRS = {
    "tuple": lambda z: (z[:, :2], F.softplus(z[:, 2:]) + 0.1),
    "mapping": lambda z: {"mean": z[:, :2], "var": F.softplus(z[:, 2:]) + 0.1},
}


@pytest.mark.parametrize("head", PAIRS)
@pytest.mark.parametrize("loss", [nn.GaussianNLLLoss(), nn.GaussianNLLLoss(full=True, eps=0.4, reduction="sum")])
def test_gaussian_with_learnt_variance(head, loss):
    """The loss of ours against PyTorch's own, and its Fisher matrices against those of torch.distributions.Normal."""
    model = build(PAIRS[head])
    found, slopes = outputs(model)
    weight = 1.0 if loss.reduction == "sum" else N * 2

    def value(z: Tensor) -> Tensor:
        mean, variance = PAIRS["tuple"](z)
        return loss(mean, pairs, variance)

    ours = problem_of(loss, pairs, 3, model)
    assert evaluate(ours).loss == pytest.approx(value(found).item(), rel=1e-12)
    flat = slopes.flatten(0, 1)
    apart = torch.cat(PAIRS["tuple"](found), dim=1)
    inner = jacobian(lambda z: torch.cat(PAIRS["tuple"](z), dim=1), found).reshape(N * K, N * K) @ flat
    bend = hessian(lambda z: loss(z[:, :2], pairs, z[:, 2:]), apart).reshape(N * K, N * K)
    expected = inner.T @ bend @ inner
    torch.testing.assert_close(matrix(ours, "ggn"), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())

    clamped = PAIRS["tuple"](found)[1].clamp(min=loss.eps)
    information = torch.cat([1 / clamped, 1 / (2 * clamped**2)], dim=1).flatten()
    expected = (inner.T * information) @ inner / weight
    torch.testing.assert_close(matrix(ours, "fisher"), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())

    expected = empirical(loss, found, slopes, weight)
    torch.testing.assert_close(
        matrix(ours, "fisher-empirical"), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
    )
    many = repeated(ours, 400)
    found_mc, exact = matrix(many, "fisher-mc"), matrix(many, "fisher")
    assert (found_mc - exact).norm() <= 0.12 * exact.norm()


def each(loss: nn.GaussianNLLLoss, mean: Tensor, variance: Tensor) -> Tensor:
    """PyTorch's values, summed over the targets of an example."""
    return F.gaussian_nll_loss(mean, pairs, variance, full=loss.full, eps=loss.eps, reduction="none").sum(dim=1)


def empirical(loss: nn.GaussianNLLLoss, found: Tensor, slopes: Tensor, weight: float) -> Tensor:
    by_output = jacobian(lambda z: each(loss, *PAIRS["tuple"](z)), found)  # (N, N, K)
    gradients = torch.einsum("abk,bkn->an", by_output, slopes) / weight
    return N * gradients.T @ gradients


def repeated(problem: Problem, times: int) -> Problem:
    """The problem with all its examples again and again, each time with other indices."""
    many = Batch(X.repeat(times, 1), pairs.repeat(times, 1), torch.arange(N * times))
    return replace(problem, batches=[many], mc_samples=3)


def test_outputs_of_several_tensors():
    whole = problem_of(CASES["Normal of two"].density, pairs, 3)
    apart = problem_of(
        lambda o: ds.Normal(o["mu"], o["log_sigma"].exp()),
        pairs,
        3,
        build(lambda z: {"mu": z[:, :2], "log_sigma": z[:, 2:]}),
    )
    for name in ("hessian", "ggn", "fisher", "fisher-mc", "fisher-empirical"):
        torch.testing.assert_close(matrix(apart, name), matrix(whole, name), rtol=1e-9, atol=1e-11)


class Drawn:
    """A Gaussian of variance 1 about the first two outputs, with a draw of its own."""

    def __call__(self, output, target):
        return (output[:, :2] - target) ** 2 / 2

    def draw(self, output, uniform):
        numbers = torch.stack([uniform(0), uniform(1)], dim=1)
        return output[:, :2] + 2**0.5 * torch.erfinv(2 * numbers - 1)


def test_a_loss_with_a_method_that_draws():
    mine, named = problem_of(Drawn(), pairs, 3), problem_of(lambda o: ds.Normal(o[:, :2], 1.0), pairs)
    torch.testing.assert_close(matrix(mine, "fisher-mc"), matrix(named, "fisher-mc"), rtol=1e-9, atol=1e-11)
    with pytest.raises(SpectraError, match=r"`curvature` fisher: a loss with a method draw .*; use fisher-mc"):
        Curvature(mine, "fisher")


@pytest.mark.parametrize(
    ("density", "name", "words"),
    [
        (
            lambda o: ds.StudentT(3.0, o[:, 0]),
            "fisher",
            "no closed form for the Fisher information of StudentT .*; use fisher-mc",
        ),
        (lambda o: ds.StudentT(3.0, o[:, 0]), "fisher-mc", "StudentT has no inverse .* a method draw"),
        (
            lambda o: ds.NegativeBinomial(o[:, 0].exp(), logits=o[:, 1]),
            "fisher",
            "NegativeBinomial whose total_count depends on the output",
        ),
        (lambda o: ds.Normal(o.mean(), 1.0), "fisher-mc", r"batch_shape \(\) for 8 examples"),
        (lambda o: o.sum(), "hessian", "takes the output alone, and returned a Tensor; return a torch.distributions"),
        (lambda o, t: ds.Normal(o[:, 0], 1.0), "hessian", "returned a distribution; take the output alone"),
        (lambda o: ds.Poisson(o[:, 0].exp()), "hessian", "the targets do not fit its Poisson"),
    ],
)
def test_what_has_no_information_or_draws_says_so(density, name, words, monkeypatch):
    monkeypatch.setattr(ds.Distribution, "_validate_args", False)  # as after torch.compile
    targets = real.abs() + 0.5 if "fit" in words else real.abs().ceil()
    with pytest.raises(SpectraError, match=words):
        Curvature(problem_of(density, targets), name) @ torch.ones(28, dtype=D)


def test_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.distributions import Normal\n"
        "def build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 4))\n"
        "def normal(output, *, least=0.0):\n    return Normal(output[:, :2], output[:, 2:].exp() + least)\n"
    )
    np.savez("points.npz", x=X.numpy(), y=pairs.numpy())
    line = "trace --model mine.py:build --data points.npz --method dense --json --dtype float64 --loss"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    for name in ("hessian", "ggn", "fisher", "fisher-mc", "fisher-empirical"):
        assert run([*line.split(), "mine.py:normal?least=0.1", "--curvature", name]) == 0
        found = json.loads(capfd.readouterr().out)["results"][0]["trace"]
        loss = partial(lambda o, *, least: ds.Normal(o[:, :2], o[:, 2:].exp() + least), least=0.1)
        again = spectra.trace(model, loss, (X, pairs), curvature=name, method="dense")
        assert found == pytest.approx(again.trace, rel=1e-5)


@pytest.mark.parametrize("options", ["", "?full=true&eps=0.4&reduction=sum"])
def test_gaussian_with_learnt_variance_on_the_command_line(options, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("pair.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n"
        "        self.body = nn.Linear(3, 4)\n"
        "    def forward(self, x):\n        z = self.body(x)\n        return z[:, :2], z[:, 2:].exp()\n"
    )
    np.savez("points.npz", x=X.numpy(), y=pairs.numpy())
    line = "trace --model pair.py:Pair --data points.npz --method dense --json --dtype float64 --curvature fisher"
    assert run([*line.split(), "--loss", f"gaussian_nll{options}"]) == 0
    record = json.loads(capfd.readouterr().out)
    torch.manual_seed(0)
    layer = nn.Linear(3, 4)
    variance = layer.double()(X)[:, 2:].exp()
    scale = 1.0 if options else 1 / (2 * N)
    clamped = variance.clamp(min=0.4 if options else 1e-6)
    squares = 1 + X.square().sum(dim=1, keepdim=True)  # of a linear layer with a bias
    expected = (squares * (1 / clamped + variance**2 / (2 * clamped**2))).sum().item() * scale
    assert record["results"][0]["trace"] == pytest.approx(expected, rel=1e-5)
    assert record["problem"]["loss"] == f"gaussian_nll{options}"
