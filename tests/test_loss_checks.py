"""A user's own loss: chance in it, examples that it ties together, no second derivative, memory beyond a line."""

import random
from itertools import product as product_of

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import floats
from torch import nn

from spectra.curvature.checks.loss_checks import DRAWS
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.footprint import footprint
from spectra.curvature.engine.loss_memory import beyond_line
from spectra.curvature.engine.meter import Meter
from spectra.curvature.evaluation import cut_batches, fitting_batch_size
from spectra.curvature.matrices import definition
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem

X, Y = floats(64, 3), floats(64, 2)
LABELS = torch.arange(64) % 2


def problem_of(loss, size=64, targets=Y):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return Problem(model, CustomLoss(loss, "mine"), cut_batches(X, targets, torch.arange(64), size))


def product(problem, name="hessian", **settings):
    return Curvature(problem, name, **settings) @ torch.ones(problem.size, dtype=problem.dtype)


def square(o, t):
    return (o - t) ** 2


def dropped(o, t):
    return (F.dropout(o, 0.5) - t) ** 2


def noisy(o, t):
    return (o - t + 1e-6 * torch.randn_like(o)) ** 2


def permuted(o, t):
    return square(o, t) + (o - o[torch.randperm(len(o))]) ** 2


def by_numpy(o, t):
    return np.random.rand() * square(o, t)  # noqa: NPY002


def by_python(o, t):
    return random.random() * square(o, t)


def seldom(o, t):
    return square(o, t) * (2 if random.random() < 0.3 else 1)


OWN = np.random.default_rng(0)


def by_its_own(o, t):
    return OWN.random() * square(o, t)


def harmless(o, t):
    torch.rand(3)
    return square(o, t)


@pytest.mark.parametrize("loss", [dropped, noisy, permuted, by_numpy, by_python, seldom, by_its_own])
def test_chance_is_refused(loss):
    with pytest.raises(SpectraError, match="`loss` mine: its value changes from call to call"):
        product(problem_of(loss))


def test_generators_are_left_as_they_were():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for loss in (harmless, square):
        assert product(problem_of(loss)).equal(product(problem_of(square)))
    assert torch.get_rng_state().equal(states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert 0.7**DRAWS < 0.01  # seldom noticed too late


def masked(o, t):
    mask = (torch.arange(len(t)) % 3 > 0).to(o)[:, None] * (t[:, :1] > -0.5)
    return (mask * square(o, t)).sum() / mask.sum().clamp(min=1)


def weighted(o, t):
    w = t[:, 0].exp()
    return (w * square(o, t).mean(dim=1)).sum() / w.sum()


def pairs(o, t):
    return ((o[None] - o[:, None]) ** 2).sum(-1).mean(1) + ((o - t) ** 2).sum(1)


def contrastive(o, t):
    """SimCLR's: with one example in a batch it is 0, whatever the model."""
    z = F.normalize(o, dim=1)
    return (z @ z.T).logsumexp(dim=1) - (z * z).sum(dim=1)


def standardised(o, t):
    return ((o - o.mean(0)) / o.std(0) - t) ** 2


def summed(o, t):
    return square(o, t).sum()


TIED = [masked, weighted, pairs, contrastive, summed]


@pytest.mark.parametrize(("loss", "size"), [*product_of(TIED, [1, 2, 7, 32]), (standardised, 2), (standardised, 32)])
def test_batches_of_a_loss_that_ties_examples_are_refused(loss, size):
    with pytest.raises(SpectraError, match=r"`loss` mine: its value for a batch .*`batch_size`"):
        product(problem_of(loss, size))


@pytest.mark.parametrize("loss", [masked, weighted, pairs, contrastive, standardised])
def test_all_in_one_batch(loss):
    assert product(problem_of(loss)).isfinite().all()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_means_and_values_are_taken_in_any_batches(size):
    expected = product(problem_of(square))
    for loss in (square, lambda o, t: square(o, t).mean(), lambda o, t: square(o, t).mean(dim=1)):
        torch.testing.assert_close(product(problem_of(loss, size)), expected)


def ctc(o, t):
    length = torch.full((len(o),), 4)
    logs = F.pad(o, (1, 0)).log_softmax(1)[None].expand(4, -1, -1)
    return F.ctc_loss(logs, t[:, None] + 1, length, length // 4, reduction="none")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o):
        ctx.save_for_backward(o)
        return o**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


@pytest.mark.parametrize(("loss", "targets"), [(ctc, LABELS), (lambda o, t: Once.apply(o - t), Y)])
def test_no_second_derivative(loss, targets):
    for name in ("hessian", "ggn"):
        with pytest.raises(SpectraError, match=r"`loss` mine: has no second derivative .*fisher-empirical"):
            product(problem_of(loss, targets=targets), name)
    problem = problem_of(loss, targets=targets)
    assert product(problem, "fisher-empirical").norm() > 0
    assert fitting_batch_size(problem, 1000) == 1000


def triplets(o, t):
    apart = (o[None] - o[:, None]).norm(dim=2)
    return (apart[:, :, None] - apart[:, None, :] + 1).relu().mean(dim=(1, 2)) + square(o, t).sum(1)


@pytest.mark.parametrize(("loss", "count"), [(pairs, 1000), (triplets, 150), (contrastive, 1500)])
def test_memory_beyond_a_line(loss, count):
    """Foretold from a few examples, against what a product of many takes; and batches of a size that fits."""
    problem = problem_of(loss)
    many = Problem(
        problem.model, problem.loss, cut_batches(floats(count, 3), floats(count, 2), torch.arange(count), count)
    )
    with twice_differentiable(problem.model):
        costs = footprint(definition("hessian").linearise, problem)
        with Meter(list(problem.model.parameters())) as meter:
            definition("hessian").linearise(many, many.batches[0])(torch.ones(problem.size, dtype=problem.dtype))
    assert meter.peak <= 1.05 * costs.peak(3 * count)
    assert costs.peak(3 * count) <= 1.5 * meter.peak
    fitting = fitting_batch_size(problem, 10**6, memory=meter.peak)
    assert 0.2 * count <= fitting <= count
    with pytest.raises(SpectraError, match="`memory`"):
        product(many, memory=meter.peak // 4, check=False)


def test_a_line_stays_a_line():
    sizes = [2, 4, 8, 16, 32]
    for each in (lambda b: 100 + 8 * b, lambda b: 1000 + 80 * b + 4 * (b // 3)):
        assert beyond_line(sizes, [each(b) for b in sizes])(1e6) == 0
    square_of = beyond_line(sizes, [100 + 8 * b + 4 * b * b for b in sizes])
    assert square_of(1000) == pytest.approx(4 * 1000**2, rel=0.01)
