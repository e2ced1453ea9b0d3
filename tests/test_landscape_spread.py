"""Curvature and slope of single examples: closed forms, a dense matrix for each example, and their means."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import BY_NAME, CASES, floats, labels, mlp, name_of
from torch import nn
from torch.nn.utils import parameters_to_vector

from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.evaluation import cut_batches
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.directions.spread import gathered, per_example, spread
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import MeanSquaredError
from spectra.problem.problem import Problem, Processes

NAMES = [name for name in MATRICES if not definition(name).depends_on_batches]


def test_linear_regression_by_hand():
    """c_i = 2 |D x_i|^2 / K and s_i = 2 r_i'D x_i / K for the direction D of a weight, residuals r."""
    x, y, model = floats(9, 4), floats(9, 3), nn.Linear(4, 3, bias=False).double()
    problem = Problem(model, MeanSquaredError(), cut_batches(x, y, torch.arange(9), 4), weight_decay=0.4)
    d = floats(12)
    curvatures, slopes = per_example(problem, "hessian", [d])
    moved = x @ d.view(3, 4).T
    decay = 0.4 * d @ d, 0.4 * parameters_to_vector(problem.leaves) @ d
    assert curvatures[0] == pytest.approx((2 * moved.square().sum(1) / 3 + decay[0]).numpy(), rel=1e-12)
    by_hand = 2 * ((model(x) - y) * moved).sum(1) / 3 + decay[1]
    assert slopes[0] == pytest.approx(by_hand.detach().numpy(), rel=1e-12)


def test_a_dense_hessian_for_each_example():
    """The model's own curvature too, and a loss with class weights and smoothing."""
    x, y, weights = floats(8, 3), labels(8, below=3), torch.tensor([1.0, 2.0, 0.5]).double()
    model, d = mlp().double(), floats(31)
    problem = Problem(model, CrossEntropy(weights, label_smoothing=0.1), cut_batches(x, y, torch.arange(8), 5))
    theta = parameters_to_vector(model.parameters()).detach()
    scale = 8 / weights[y].sum()  # so that the mean over examples is PyTorch's weighted mean

    def loss(t, i):
        parts = dict(zip(problem.parameters, problem.tensors(theta + t * d), strict=True))
        output = torch.func.functional_call(model, parts, x[i : i + 1])
        options = {"weight": weights, "label_smoothing": 0.1, "reduction": "sum"}
        return scale * nn.functional.cross_entropy(output, y[i : i + 1], **options)

    zero = torch.zeros((), dtype=torch.float64)
    first, second = torch.func.grad(loss), torch.func.grad(torch.func.grad(loss))
    curvatures, slopes = per_example(problem, "hessian", [d])
    assert curvatures[0] == pytest.approx([second(zero, i).item() for i in range(8)], rel=1e-10)
    assert slopes[0] == pytest.approx([first(zero, i).item() for i in range(8)], rel=1e-10)
    assert curvatures.min() < 0


def cases():
    return [case for case in CASES if case.kind != "custom"] + [BY_NAME["custom, values"], BY_NAME["custom, sequences"]]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", cases(), ids=name_of)
def test_means_are_those_of_the_matrix(case):
    problem = case.problem()
    both = floats(2, problem.size)
    for name in NAMES:
        if definition(name).needs_distribution and case.kind == "custom":
            continue
        curvatures, slopes = per_example(problem, name, both)
        matrix = Curvature(problem, name)
        assert curvatures.shape == slopes.shape == (2, problem.examples)
        expected = [(d @ (matrix @ d)).item() for d in both]
        assert curvatures.mean(axis=1) == pytest.approx(expected, rel=1e-10, abs=1e-15)
        assert slopes.mean(axis=1) == pytest.approx((both @ mean_gradient(problem)).numpy(), rel=1e-10)
        if name != "hessian" and case.kind != "custom":
            assert curvatures.min() >= 0


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "fisher-mc"])
def test_weight_decay_shifts_them(name):
    problem = BY_NAME["mlp"].problem(weight_decay=0.7)
    d = floats(problem.size)
    curvatures, slopes = per_example(problem, name, [d])
    assert curvatures.mean() == pytest.approx((d @ (Curvature(problem, name) @ d)).item(), rel=1e-10)
    theta = parameters_to_vector(problem.leaves).detach()
    assert slopes.mean() == pytest.approx(((mean_gradient(problem) + 0.7 * theta) @ d).item(), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_batches_change_nothing(name):
    case = BY_NAME["weights, smoothing and ignored"]
    whole = per_example(case.problem(sizes=[7]), name, [floats(31)])
    parts = per_example(case.problem(sizes=[2, 1, 4]), name, [floats(31)])
    for one, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(one, rel=1e-12)


def test_the_empirical_fisher_squares_slopes():
    problem = BY_NAME["sequence, classes last"].problem()
    d = floats(problem.size)
    squares, slopes = per_example(problem, "fisher-empirical", [d])
    assert squares == pytest.approx(slopes**2, rel=1e-12)
    about_mean, _ = per_example(problem, "gradient-covariance", [d])
    assert about_mean == pytest.approx((slopes - slopes.mean()) ** 2, rel=1e-12)


def test_batches_have_no_examples():
    with pytest.raises(ValueError, match="fisher-batch is not a mean over examples"):
        per_example(BY_NAME["mlp"].problem(), "fisher-batch", [floats(31)])


@dataclass(frozen=True)
class Threads(Processes):
    """Threads in place of processes."""

    count: int = 3
    parts: list = field(default_factory=lambda: [None] * 3)
    barrier: Barrier = field(default_factory=lambda: Barrier(3))

    def total(self, part):
        self.parts[self.rank] = part
        self.barrier.wait()
        found = sum(self.parts)
        self.barrier.wait()
        return found


def test_parts_of_processes_are_joined_in_order():
    whole, first = floats(2, 2, 7), Threads()
    ranks = [Threads(rank, 3, first.parts, first.barrier) for rank in range(3)]
    parts = whole.split([4, 0, 3], dim=2)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(gathered, parts, ranks):
            assert torch.equal(found, whole)


def test_the_numbers_of_a_spread():
    values = torch.randn(4001, generator=seeded(), dtype=torch.float64).numpy() + 0.5
    found = spread(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(found.standard_deviation / 4001**0.5)
    assert found.standard_deviation == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / 4000))
    assert found.negative == np.count_nonzero(values < 0) / 4001
    ordered = np.sort(values)
    assert found.quantiles == pytest.approx([ordered[round(4000 * q)] for q in (0.05, 0.25, 0.5, 0.75, 0.95)])
    assert found.signal_to_noise == pytest.approx(abs(values.mean()) / found.standard_deviation)
    assert spread(-values).signal_to_noise == found.signal_to_noise
    alike = spread(np.full(3, 2.0))
    assert (alike.mean, alike.standard_deviation, alike.signal_to_noise) == (2.0, 0.0, None)
    assert spread(np.array([2.0])).standard_deviation == 0.0
