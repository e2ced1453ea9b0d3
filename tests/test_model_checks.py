"""Chance in a model, and examples that do not stand alone: each kind is refused, and what only looks like it is not."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Lambda
from test_model_hooks import assert_equal, dense, plain, problem, reference
from torch import nn

import spectra
from spectra.errors import SpectraError
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem


class Layer(nn.Module):
    """A network of which the hidden layer goes through a function of itself and the layer."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function, self.calls = nn.Linear(3, 4), nn.Linear(4, 2), function, 0
        self.own, self.numpy = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def forward(self, x):
        self.calls += 1
        return self.last(self.function(self.first(x).tanh(), self))


def of(function, sizes=(5, 4)) -> Problem:
    torch.manual_seed(3)
    return problem(Layer(function), sizes=sizes)


def forked(h, _):
    """The same draw at each call, unless the global generator is elsewhere."""
    with torch.random.fork_rng(devices=[]):
        return h * torch.rand(4).to(h)


CHANCE = {
    "dropout": lambda h, _: F.dropout(h, 0.3, training=True),
    "noise": lambda h, _: h + 0.1 * torch.randn_like(h),
    "a fork of the generator": forked,
    "its initial seed": lambda h, _: h * (1 + torch.initial_seed() % 7),
    "a generator of its own": lambda h, layer: h + torch.rand(4, generator=layer.own).to(h),
    "numpy": lambda h, _: h * np.random.rand(),  # noqa: NPY002
    "a generator of numpy's": lambda h, layer: h * layer.numpy.random(),
    "random": lambda h, _: h * random.random(),
    "permutation": lambda h, _: h[:, torch.randperm(4, device=h.device)],
    "seldom": lambda h, _: h * 2 if random.random() < 0.1 else h,
    "seldom, of its own": lambda h, layer: h * 2 if layer.numpy.random() < 0.1 else h,
    "every fifth call": lambda h, layer: h * 2 if layer.calls % 5 == 0 else h,
}


@pytest.mark.parametrize("kind", CHANCE)
def test_chance_in_the_model_is_refused(kind):
    given = of(CHANCE[kind])
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(SpectraError, match=r"^`model`: its output changes from call to call .*model\.eval\(\)$"):
        spectra.Curvature(given, "hessian").prepare()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def seeded(h, _):
    """Fixed random features."""
    return h * torch.rand(4, generator=torch.Generator().manual_seed(1)).to(h)


HARMLESS = {
    "drawn in vain": lambda h, _: h + 0 * torch.rand(4).to(h),
    "a fixed seed": seeded,
    "no dropout": lambda h, _: F.dropout(h, 0.0, training=True),
    "calls are counted": lambda h, layer: h + 0 * layer.calls,
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_draws_without_effect_is_taken(kind):
    assert dense(of(HARMLESS[kind])).count_nonzero()


def in_halves(h, _):
    """The last four examples are normalised together."""
    return torch.cat([h[:-4], h[-4:] - h[-4:].mean(0)]) if len(h) > 4 else h


def last_normalised(h, _):
    return torch.cat([h[:1], h[1:] / h[1:].abs().amax().clamp(min=0.1)])


SHARED = {
    "mean": lambda h, _: h - h.mean(0) / 2,
    "largest of all": lambda h, _: h / h.abs().max(),
    "second half": in_halves,
    "all but the first": last_normalised,
    "size": lambda h, _: h * len(h) ** 0.5,
    "large batches": lambda h, _: h - h.mean(0) if len(h) > 6 else h,
    "single examples": lambda h, _: h - h.mean(0) if len(h) > 1 else h,
    "odd sizes": lambda h, _: 2 * h if len(h) % 2 else h,
    "place": lambda h, _: h * torch.linspace(1, 2, len(h), dtype=h.dtype)[:, None],
    "neighbour": lambda h, _: h + h.roll(1, 0),
    "sum so far": lambda h, _: h.cumsum(0),
    "pairs": lambda h, _: h if len(h) % 2 else h + h.unflatten(0, (-1, 2)).flip(1).flatten(0, 1),
    "order": lambda h, _: h * (1 + h[:, :1].argsort(0).argsort(0)),
}


@pytest.mark.parametrize("sizes", [(8, 1), (8, 8)], ids=str)
@pytest.mark.parametrize("kind", SHARED)
def test_outputs_that_depend_on_the_batch_are_refused(kind, sizes):
    with pytest.raises(SpectraError, match=r"^`model`: its output for an example depends on the other examples"):
        spectra.Curvature(sixteen(SHARED[kind], sizes), "hessian").prepare()


def sixteen(function, sizes) -> Problem:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(1)
    count = sum(sizes)
    x, y = (torch.randn(count, k, generator=generator, dtype=torch.float64) for k in (3, 2))
    batches = [Batch(x[part], y[part], part) for part in torch.arange(count).split(list(sizes))]
    return Problem(Layer(function).double(), spectra.MeanSquaredError(), batches)


def test_a_dependence_that_shows_only_when_batches_are_merged():
    given = sixteen(lambda h, _: h - h.mean(0) if len(h) > 8 else h, (8, 8))
    with pytest.raises(SpectraError, match="depends on the other examples in the batch"):
        spectra.Curvature(given, "hessian").prepare()
    assert dense(given, memory=0).count_nonzero()  # which takes the batches as they are


def test_a_dependence_that_shows_only_in_a_later_batch():
    given = sixteen(lambda h, _: torch.where((h > 0.99).any(), h - h.mean(0), h), (4, 4, 4, 4))
    large = torch.zeros(4, 3, dtype=torch.float64)
    large[1] = 50.0
    first = given.batches[0]
    batches = [Batch(0.1 * b.inputs, b.targets, b.indices) for b in given.batches[:-1]]
    last = given.batches[-1]
    batches.append(Batch(0.1 * last.inputs + large, last.targets, last.indices))
    assert len(first) == 4
    with pytest.raises(SpectraError, match="depends on the other examples in the batch"):
        spectra.Curvature(Problem(given.model, given.loss, batches), "hessian", memory=0).prepare()


def test_rounding_of_other_sizes_and_orders_is_no_dependence():
    for seed in range(5):
        torch.manual_seed(seed)
        layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]
        model = nn.Sequential(nn.Linear(3, 64), *layers, nn.Linear(64, 2))
        given = problem(model, dtype=torch.float32)
        spectra.Curvature(given, "ggn", check=False).prepare()


def test_one_output_that_is_small_is_measured_by_the_others():
    """An example whose output nearly vanishes is rounding, and no dependence."""
    model = nn.Sequential(plain(), Lambda(lambda y: torch.where(y.abs() < 0.3, y * 1e-12, y)))
    assert dense(problem(model, dtype=torch.float32), check=False).isfinite().all()


def test_the_reference_is_what_the_layers_above_would_have():
    assert_equal(dense(problem(plain())), reference(plain()))
