"""The largest rise of the loss in a ball: optimality conditions, quadratic losses, and what must change nothing."""

import math

import numpy as np
import pytest
import torch
from helpers import uniform, with_spectrum
from networks import floats, labels, mlp
from torch import nn
from torch.nn.utils import parameters_to_vector

import spectra
from spectra.curvature.evaluation import cut_batches
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.trust_region import maximise_diagonal_in_ball, maximise_in_ball
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.problem.problem import Problem

SPECTRA = {
    "indefinite": np.linspace(-2.0, 3.0, 40),
    "falling": -np.linspace(0.5, 3.0, 40),
    "multiple": np.concatenate([np.full(5, 2.0), uniform(35, -1, 1)]),
    "one number": np.full(40, 1.5),
}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return mlp().double()


def regression(decay: float = 0.0) -> Problem:
    x, y, model = floats(30, 4), floats(30, 2), nn.Linear(4, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(floats(*p.shape))
    return Problem(model, MeanSquaredError(), cut_batches(x, y, torch.arange(30), 11), weight_decay=decay)


def classifier(**settings) -> Problem:
    x, y = floats(20, 3), labels(20, below=3)
    return Problem(network(), CrossEntropy(), cut_batches(x, y, torch.arange(20), 8), **settings)


@pytest.mark.parametrize("radius", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("name", SPECTRA)
def test_conditions_of_a_maximum(name, radius):
    """(lambda I - A) x = b with lambda >= 0 and all eigenvalues, and |x| = rho or lambda = 0: Moré, Sorensen 1983."""
    matrix, b = with_spectrum(SPECTRA[name]), floats(40)
    found = maximise_in_ball(matrix, b, radius, rtol=1e-12, max_products=40)
    x, multiplier = found.x, found.multiplier
    assert torch.allclose(multiplier * x - matrix @ x, b, atol=1e-7 * max(1.0, radius))
    assert multiplier >= max(0.0, SPECTRA[name].max()) - 1e-9
    assert x.norm().item() == pytest.approx(radius, rel=1e-9) or (multiplier == 0 and x.norm() < radius)
    assert found.value == pytest.approx((b @ x + x @ matrix @ x / 2).item(), rel=1e-9)
    few = maximise_in_ball(matrix, b, radius, rtol=0.0, max_products=3)
    assert few.products <= 3
    assert few.value <= found.value * (1 + 1e-12)
    assert found.value <= few.value + few.error + 1e-12 or name == "multiple"


def test_a_ball_in_closed_form():
    b = floats(12)
    alike = maximise_in_ball(torch.eye(12).double() * 3, b, 0.7, rtol=1e-9, max_products=5)
    assert alike.value == pytest.approx((0.7 * b.norm() + 3 * 0.49 / 2).item(), rel=1e-12)
    assert alike.products == 1
    inside = maximise_in_ball(-4 * torch.eye(12).double(), b, 100.0, rtol=1e-9, max_products=5)
    assert inside.value == pytest.approx((b @ b / 8).item(), rel=1e-12)
    assert inside.multiplier == 0


def test_the_hard_case():
    """Where b does not show the largest eigenvalue, x reaches the sphere along its eigenvector."""
    for shown in (0.0, 1e-17):  # so little is lost beside the eigenvalue
        y, multiplier = maximise_diagonal_in_ball(np.array([-1.0, 0.0, 2.0]), np.array([0.3, 0.2, shown]), 5.0)
        assert multiplier == 2.0
        assert y[:2] == pytest.approx([0.1, 0.1])
        assert np.linalg.norm(y) == pytest.approx(5.0)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 3.0])
def test_quadratic_losses(rho, adaptive):
    """The first step in closed form, and by more of them the maximum of the dense quadratic, with weight decay."""
    problem = regression(decay=0.2)
    hessian = Curvature(problem, "hessian") @ torch.eye(problem.size).double()
    theta = parameters_to_vector(problem.leaves).detach()
    t = theta.abs() if adaptive else torch.ones_like(theta)
    b = t * (spectra.mean_gradient(problem) + 0.2 * theta)
    matrix = t[:, None] * hessian * t
    found = spectra.worst_case(problem, rho, adaptive=adaptive, steps=60)
    first = rho * b.norm() + rho**2 * (b @ matrix @ b) / (b @ b) / 2
    assert found.first == pytest.approx(first.item(), rel=1e-10)
    values, vectors = torch.linalg.eigh(matrix)
    y, _ = maximise_diagonal_in_ball(values.numpy(), (vectors.T @ b).numpy(), rho)
    largest = (b @ vectors @ torch.from_numpy(y) + values @ torch.from_numpy(y) ** 2 / 2).item()
    assert found.rise == pytest.approx(largest, rel=1e-6)
    assert found.model.value == pytest.approx(largest, rel=0.01)
    assert found.model.value <= largest * (1 + 1e-12) <= found.model.value + found.model.error
    assert (found.direction / t).norm().item() == pytest.approx(rho, rel=1e-12)
    assert np.diff(found.rises).min() >= 0


def test_where_the_loss_curves_down_most():
    """With eigenvalues -10 to 1 full steps of ascent overshoot; shorter ones find the maximum."""
    a, b = torch.tensor([-10.0, -6.0, 1.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.3, 0.1]).double()

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))

        def forward(self, x):
            return (x @ self.theta + a @ self.theta.square() / 2)[:, None]

    loss = CustomLoss(lambda output, target: output.flatten())
    problem = Problem(Quadratic(), loss, cut_batches(b.repeat(2, 1), torch.zeros(2), torch.arange(2), 2))
    found = spectra.worst_case(problem, 1.0, steps=200)
    order = a.argsort()
    y, _ = maximise_diagonal_in_ball(a[order].numpy(), b[order].numpy(), 1.0)
    largest = b[order].numpy() @ y + a[order].numpy() @ y**2 / 2
    assert found.rise == pytest.approx(largest, rel=1e-6)
    assert found.first < 0.5 * largest
    assert found.model.value == pytest.approx(largest, rel=1e-9)


def test_larger_balls_and_more_steps():
    problem = classifier()
    before = [p.detach().clone() for p in problem.leaves]
    rises = [spectra.worst_case(problem, rho, steps=6, name=None).rise for rho in (0.05, 0.2, 1.0, 3.0)]
    assert np.diff(rises).min() > 0
    few, many = (spectra.worst_case(problem, 1.0, steps=steps) for steps in (2, 9))
    assert few.rises == many.rises[:2]
    assert many.rise > few.first
    assert few.model.value == many.model.value
    assert all(torch.equal(p, q) for p, q in zip(problem.leaves, before, strict=True))
    assert many.direction.norm().item() == pytest.approx(1.0)
    sam = spectra.worst_case(problem, 1.0, steps=1, name=None)
    assert (sam.rises, sam.backward, sam.model) == (few.rises[:1], 1, None)
    assert sam.forward == 1 + 7 + 1  # the gradient's, those that tell rounding, and the first step's
    assert 0 < sam.rounding < 1e-12


def test_the_rise_is_that_of_the_loss():
    problem = classifier(weight_decay=0.1)
    found = spectra.worst_case(problem, 0.5, steps=3)

    def loss() -> float:
        return spectra.mean_loss(problem) + 0.05 * sum(p.square().sum().item() for p in problem.leaves)

    start = loss()
    with torch.no_grad():
        for p, d in zip(problem.leaves, problem.tensors(found.direction), strict=True):
            p.add_(d)
    assert found.rise == pytest.approx(loss() - start, rel=1e-9)


def test_adaptive_balls_are_those_of_rescaled_layers():
    """A ReLU layer times c and the next over c are the same function: the adaptive ball follows, the plain does not."""

    def problem(c: float) -> Problem:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            for p in model[0].parameters():
                p.mul_(c)
            model[2].weight.div_(c)
        return Problem(model, CrossEntropy(), cut_batches(floats(20, 3), labels(20, below=3), torch.arange(20), 20))

    one, other = (spectra.worst_case(problem(c), adaptive=True, steps=4) for c in (1.0, 7.0))
    assert one.rho == 0.5
    assert other.rises == pytest.approx(one.rises, rel=1e-9)
    assert other.model.value == pytest.approx(one.model.value, rel=1e-9)
    plain, moved = (spectra.worst_case(problem(c), steps=1, name=None) for c in (1.0, 7.0))
    assert plain.rho == 0.05
    assert abs(moved.first / plain.first - 1) > 0.5


def test_batches_change_nothing():
    x, y = floats(20, 3), labels(20, below=3)
    found = [
        spectra.worst_case(Problem(network(), CrossEntropy(), cut_batches(x, y, torch.arange(20), size)), 0.5)
        for size in (20, 3)
    ]
    assert found[0].rises == pytest.approx(found[1].rises, rel=1e-10)


def test_without_a_step_of_ascent():
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    problem = Problem(
        model, MeanSquaredError(), cut_batches(floats(5, 3), torch.zeros(5, 1).double(), torch.arange(5), 5)
    )
    found = spectra.worst_case(problem, steps=2)
    assert "the gradient is zero" in found.reason
    assert all(math.isnan(rise) for rise in found.rises)
    assert found.direction is None
    steep = CustomLoss(lambda output, target: (100 * output.square()).exp().sum(dim=1))
    problem = Problem(network(), steep, cut_batches(floats(5, 3), torch.zeros(5, 1).double(), torch.arange(5), 5))
    found = spectra.worst_case(problem, 50.0, name=None)
    assert "not finite" in found.reason


def test_refusals():
    for settings, text in (
        ({"rho": 0.0}, "`rho` 0.0: expected a finite number > 0"),
        ({"steps": 0}, "`steps` 0: expected an integer of 1 or more"),
        ({"adaptive": 2}, "`adaptive` 2: expected True or False"),
    ):
        with pytest.raises(SpectraError, match=text):
            spectra.worst_case(classifier(), **settings)
    with pytest.raises(SpectraError, match=r"`problem`: expected a Problem, .*, got"):
        spectra.worst_case(classifier().model)
