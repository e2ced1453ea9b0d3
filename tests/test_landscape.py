"""The loss along directions against closed forms and models with other parameters; what is predicted; what is left."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import BY_NAME, SOME, chosen, floats, labels, mlp, name_of
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from spectra.curvature.displacement import displaced, losses
from spectra.curvature.evaluation import cut_batches
from spectra.curvature.operator import Curvature
from spectra.directions.point import Point
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs
from spectra.layerwise.parameter_blocks import channel_of
from spectra.operator import Counting
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.problem.problem import Problem
from spectra.surfaces.directions import filter_normalised, find_directions, numbered, random_direction
from spectra.surfaces.landscape import FLOOR, RISE, Grid, default_radius, landscape
from spectra.surfaces.quadratic import SHARE, quadratic, range_of_validity

X, Y = floats(20, 4), floats(20, 3)


def problem_of(model, x, y, loss, size=7, **options) -> Problem:
    return Problem(model.double().eval(), loss, cut_batches(x, y, torch.arange(len(x)), size), **options)


def linear(**options) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return problem_of(nn.Linear(4, 3), X, Y, MeanSquaredError(), **options)


def network(**options) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return problem_of(mlp(4, 5, 3), X, labels(20, below=3), CrossEntropy(), **options)


def directions_of(problem, *names, name="hessian", tolerance=1e-10):
    operator = Counting(Curvature(problem, name))
    found, good = find_directions(problem, operator, names, {}, seeded(), tolerance, None, None)
    assert good
    return found, operator


def looked_at(problem, *along, name="hessian", radius=None, points=None):
    names = dict.fromkeys(direction for one in along for direction in one)
    directions, operator = directions_of(problem, *names, name=name)
    return landscape(problem, operator, name, Point.of(problem), directions, along, Grid(radius, points))


# The loss elsewhere


def test_a_quadratic_loss_is_its_prediction():
    """Linear regression: no departure, on any line and in any plane, with weight decay too."""
    for decay in (0.0, 0.3):
        problem = linear(weight_decay=decay)
        found = looked_at(
            problem, ("1",), ("3",), ("lowest",), ("random 1",), ("1", "2"), ("2", "random 2"), radius=3.0
        )
        assert found.converged
        for name, line in found.lines.items():
            assert np.abs(line.departure).max() < 1e-12 * line.loss.max(), name
            assert line.loss.max() > 1.5 * line.loss.min()
            assert line.holds == (-3.0, 3.0, True, True)
        for plane in found.planes.values():
            assert np.abs(plane.loss - plane.prediction).max() < 1e-12 * plane.loss.max()


def test_linear_regression_by_hand():
    problem = linear(weight_decay=0.3)
    d, t = floats(15), np.array([-2.0, 0.0, 0.5])
    weight, bias = problem.leaves
    for value, found in zip(t, losses(problem, d[None], t[:, None]), strict=True):
        w, b = weight.detach() + value * d[:12].view(3, 4), bias.detach() + value * d[12:]
        theta = torch.cat([w.flatten(), b])
        by_hand = ((X @ w.T + b - Y) ** 2).mean() + 0.15 * theta @ theta
        assert found == pytest.approx(by_hand.item(), rel=1e-14)


def test_softmax_regression_by_hand():
    y = labels(20, below=3)
    model = nn.Linear(4, 3)
    problem, d = problem_of(model, X, y, CrossEntropy()), floats(15)
    for value in (-1.5, 0.7):
        logits = X @ (model.weight + value * d[:12].view(3, 4)).T + model.bias + value * d[12:]
        by_hand = (logits.logsumexp(1) - logits[torch.arange(20), y]).mean().item()
        assert losses(problem, d[None], np.array([[value]])) == [pytest.approx(by_hand, rel=1e-14)]


@pytest.mark.parametrize("case", [*SOME, BY_NAME["tied weights"]], ids=name_of)
def test_losses_are_those_of_a_model_with_these_parameters(case):
    """Whatever the batches: PyTorch's own mean of a copy that has other parameters."""
    problem = case.problem()
    both = floats(2, problem.size)
    z = np.array([[0.3, -0.2], [0.0, 0.0], [-0.1, 0.4]])
    inputs, targets = case.data()
    expected = []
    for point in torch.tensor(z):
        other = copy.deepcopy(problem.model)
        flat = parameters_to_vector(other.parameters())
        vector_to_parameters(flat.detach() + point @ both, other.parameters())
        output = other(**inputs) if isinstance(inputs, dict) else other(inputs)
        expected.append(case.mean(output, targets).item())
    assert losses(problem, both, z) == pytest.approx(expected, rel=1e-12)
    again = case.problem(sizes=[3, 1, 3], order=torch.randperm(7, generator=seeded()))
    assert losses(again, both, z) == pytest.approx(expected, rel=1e-12)


def test_only_chosen_parameters_move():
    model = mlp(4, 5, 3).double()
    problem = problem_of(model, X, labels(20, below=3), CrossEntropy(), parameters=chosen(model, "0.*"))
    before = [p.data_ptr() for p in model.parameters()]
    with displaced(problem.leaves, problem.tensors(torch.ones(problem.size, dtype=torch.float64))):
        moved = [p.data_ptr() != there for p, there in zip(model.parameters(), before, strict=True)]
    assert moved == [True, True, False, False]


def test_scaling_the_loss_scales_all_but_the_range():
    values = CustomLoss(lambda output, y: nn.functional.cross_entropy(output, y, reduction="none"))
    scaled = CustomLoss(lambda output, y: 8 * nn.functional.cross_entropy(output, y, reduction="none"))
    a, b = (
        looked_at(problem_of(network().model, X, labels(20, below=3), loss), ("1",)).lines["1"]
        for loss in (values, scaled)
    )
    assert b.t == pytest.approx(a.t, rel=1e-9)
    assert b.loss == pytest.approx(8 * a.loss, rel=1e-9)
    assert b.departure == pytest.approx(8 * a.departure, abs=1e-9)
    assert b.holds[:2] == pytest.approx(a.holds[:2], rel=1e-6)


# The parameters are as they were


class Failing(nn.Module):
    """Fails at its call `at`."""

    def __init__(self, error, at=3):
        super().__init__()
        self.layer, self.error, self.left = nn.Linear(4, 3), error, at
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.left -= 1
        if not self.left:
            raise self.error
        return self.layer(x)


def state(model):
    """What a user may have of the parameters, buffers and modes."""
    tensors = [(p, p.detach().clone()) for p in (*model.parameters(), *model.buffers())]
    facts = [(id(p), p.data_ptr(), p._version, p.requires_grad, p.is_leaf) for p, _ in tensors]
    gradients = [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return tensors, facts, gradients, [m.training for m in model.modules()]


def assert_unchanged(model, before):
    tensors, facts, gradients, modes = before
    now = state(model)
    assert now[1] == facts
    assert now[3] == modes
    for (_, held), (_, there) in zip(tensors, now[0], strict=True):
        assert torch.equal(held, there)
    for (own, value), (there, kept) in zip(gradients, now[2], strict=True):
        assert own == there
        assert value is None or torch.equal(value, kept)


@pytest.mark.parametrize("case", [*SOME, BY_NAME["tied weights"], BY_NAME["LSTM"]], ids=name_of)
def test_the_model_is_left_as_it_was(case):
    problem = case.problem()
    first = problem.leaves[0]
    first.grad = torch.ones_like(first)
    problem.model.train(False)
    before = state(problem.model)
    looked_at(problem, ("1",), ("1", "random 1"), points=3)
    assert_unchanged(problem.model, before)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_and_so_it_is_after_an_error(error):
    model = Failing(error)
    problem = problem_of(model, X, Y, MeanSquaredError(), size=20)
    before = state(model)
    with pytest.raises((SpectraError, KeyboardInterrupt)):
        losses(problem, floats(1, 15), np.linspace(0, 1, 5)[:, None])
    assert_unchanged(model, before)


def test_what_overflows_is_nan_and_no_error():
    problem = problem_of(nn.Linear(4, 3), X, Y, CustomLoss(lambda f, y: (f - y).square().exp()))
    found = losses(problem, floats(1, 15), np.array([[0.0], [1e3], [0.1]]))
    assert [math.isfinite(value) for value in found] == [True, False, True]
    assert math.isnan(found[1])


# Directions


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
def test_eigenvectors_by_rank(name):
    problem = network()
    dense = Curvature(problem, name) @ torch.eye(problem.size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(dense)
    order = values.abs().argsort(descending=True)
    directions, _ = directions_of(problem, "1", "4", "2", name=name)
    assert list(directions) == ["1", "4", "2"]
    for key, d in directions.items():
        place = order[int(key) - 1]
        assert d.eigenvalue == pytest.approx(values[place].item(), rel=1e-10)
        assert abs(d.vector @ vectors[:, place]) == pytest.approx(1, abs=1e-8)
        assert d.vector[d.vector.abs().argmax()] > 0
        assert (d.kind, d.source) == ("eigenvector", "computed")


def test_the_lowest():
    problem = network()
    dense = Curvature(problem, "hessian") @ torch.eye(problem.size, dtype=torch.float64)
    found = directions_of(problem, "lowest")[0]["lowest"]
    assert found.eigenvalue == pytest.approx(torch.linalg.eigvalsh(dense)[0].item(), rel=1e-10)
    assert found.eigenvalue < 0
    assert (dense @ found.vector - found.eigenvalue * found.vector).norm() < 1e-8


def test_known_eigenpairs_spend_no_products():
    problem = network()
    pairs = eigenpairs(Curvature(problem, "hessian"), 3, generator=seeded(), tolerance=1e-10)
    operator = Counting(Curvature(problem, "hessian"))
    known = {"LM": (pairs, "earlier/eig.json")}
    found, good = find_directions(problem, operator, ["2", "random 1"], known, seeded(), 1e-3, None, None)
    assert good
    assert operator.products == 0
    assert (found["2"].source, found["random 1"].source) == ("earlier/eig.json", "drawn")
    assert found["2"].eigenvalue == pairs.values[1].item()


def test_a_random_direction_has_the_norms_of_the_filters():
    """Each filter's own norm; what has fewer than two dimensions stays where it is."""
    problem = BY_NAME["convolution, BatchNorm"].problem()
    d = random_direction("random 1", problem, seeded())
    for part, p in zip(problem.tensors(d.vector), problem.leaves, strict=True):
        if p.ndim < 2:
            assert not part.any()
        else:
            assert part.flatten(1).norm(dim=1).tolist() == pytest.approx(p.detach().flatten(1).norm(dim=1).tolist())
    other = random_direction("random 1", problem, seeded())
    assert torch.equal(d.vector, other.vector)
    assert abs(d.vector @ random_direction("random 2", problem, seeded(1)).vector) < 0.8 * d.vector.norm() ** 2


def test_random_directions_are_drawn_by_the_seed():
    """One after the other, whatever else is asked for: the same for every matrix, and others for another seed."""
    problem = network()
    alone = directions_of(problem, "random 1", "random 2")[0]
    beside = directions_of(problem, "1", "random 1", "lowest", "random 2", name="ggn", tolerance=1e-3)[0]
    other = directions_of(replace(problem, seed=1), "random 1")[0]
    for name in alone:
        assert torch.equal(alone[name].vector, beside[name].vector)
    assert not torch.allclose(alone["random 1"].vector, alone["random 2"].vector)
    assert not torch.allclose(alone["random 1"].vector, other["random 1"].vector)


def test_a_filter_that_is_scaled_scales_its_part():
    drawn, p = floats(3, 2, 2), floats(2, 3, 2).transpose(0, 1).contiguous()
    scales = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)[:, None, None]
    filters = channel_of(None, p)
    expected = scales * filter_normalised(drawn, p, filters)
    assert torch.allclose(filter_normalised(drawn, scales * p, filters), expected, rtol=1e-14, atol=0)
    seven, one = (filter_normalised(times * drawn, p, filters) for times in (7, 1))
    assert torch.allclose(seven, one, rtol=1e-14, atol=0)


def test_filters_of_transposed_convolutions_are_their_outputs():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(27, 3)).double()
    problem = problem_of(model, floats(5, 2, 2, 2), labels(5, below=3), CrossEntropy())
    part = problem.tensors(random_direction("random 1", problem, seeded()).vector)[0]
    own = model[0].weight.detach()
    norms = [[x.movedim(i, 0).flatten(1).norm(dim=1).tolist() for x in (part, own)] for i in (0, 1)]
    assert norms[1][0] == pytest.approx(norms[1][1])
    assert norms[0][0] != pytest.approx(norms[0][1])


def test_no_filter_is_an_error():
    model = mlp(4, 5, 3).double()
    problem = problem_of(model, X, labels(20, below=3), CrossEntropy(), parameters=chosen(model, "*bias"))
    with pytest.raises(SpectraError, match=r"`along` random: .*; check `params`"):
        random_direction("random 1", problem, seeded())


def test_names():
    """Every random direction is another one; an eigenvector is one wherever it is named."""
    along = [("1",), ("random",), ("1", "random"), ("1",), ("random", "random")]
    assert numbered(along) == [("1",), ("random 1",), ("1", "random 2"), ("random 3", "random 4")]


def test_a_rank_beyond_the_last():
    with pytest.raises(SpectraError, match="`along` 44: a matrix with 43 rows"):
        directions_of(network(), "44")


# Predictions


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_slope_and_curvature_against_autograd(decay):
    problem = network(weight_decay=decay)
    both = floats(2, problem.size)
    theta = parameters_to_vector(problem.leaves).detach()

    def objective(z):
        parts = dict(zip(problem.parameters, problem.tensors(theta + z @ both), strict=True))
        output = torch.func.functional_call(problem.model, parts, X)
        return nn.functional.cross_entropy(output, labels(20, below=3)) + decay * (theta + z @ both).square().sum() / 2

    zero, point = torch.zeros(2, dtype=torch.float64), Point.of(problem)
    model = quadratic(Curvature(problem, "hessian"), point.loss, point.gradient, list(both))
    assert model.loss == pytest.approx(objective(zero).item(), rel=1e-14)
    assert model.slopes == pytest.approx(torch.autograd.functional.jacobian(objective, zero).numpy(), rel=1e-12)
    assert model.curvatures == pytest.approx(torch.autograd.functional.hessian(objective, zero).numpy(), rel=1e-10)
    z = np.array([[0.2, -0.1]])
    by_hand = model.loss + z[0] @ model.slopes + z[0] @ model.curvatures @ z[0] / 2
    assert model(z) == pytest.approx(by_hand, rel=1e-14)
    assert model.along(1)(z[:, 1:]) == pytest.approx(model(np.array([[0.0, -0.1]])), rel=1e-14)


def test_the_departure_is_of_third_order():
    """Ten times nearer, a thousand times smaller; with another matrix than the Hessian, of second."""
    for name, order in (("hessian", 3), ("fisher-empirical", 2)):
        far, near = (looked_at(network(), ("1",), name=name, radius=r, points=3).lines["1"] for r in (0.02, 0.002))
        ratio = far.departure[[0, 2]] / near.departure[[0, 2]]
        assert np.log10(ratio) == pytest.approx(order, abs=0.05)


def test_an_eigenvector_has_its_eigenvalue_for_curvature():
    found = looked_at(network(), ("1",), ("2",), ("lowest",), points=3)
    for i, d in enumerate(found.directions.values()):
        assert found.model.curvatures[i, i] == pytest.approx(d.eigenvalue, rel=1e-9)


def test_where_a_prediction_holds():
    """The departure a t^3 of c t^2 / 2 comes to the share SHARE of it at SHARE c / (2 a)."""
    t, c, a = np.linspace(-1, 1, 201), 2.0, 0.5
    end = SHARE * c / (2 * a)
    found = range_of_validity(t, a * t**3, c * t**2 / 2)
    assert found[:2] == pytest.approx((-end, end), rel=1e-12)
    assert found[2:] == (False, False)
    assert range_of_validity(t, a * np.maximum(t, 0) ** 3, c * t**2 / 2) == (-1.0, pytest.approx(end), True, False)
    assert range_of_validity(t, a * t**3, -c * t**2 / 2)[:2] == pytest.approx((-end, end), rel=1e-12)
    beyond = np.where(t > 0.055, np.nan, 0.0)
    assert range_of_validity(t, beyond, c * t**2 / 2)[1] == pytest.approx(0.05)
    steep = range_of_validity(t, 10 * t**2, c * t**2 / 2)
    assert steep == (0.0, 0.0, False, False)
    assert math.copysign(1, steep.start) == 1
    assert range_of_validity(t, 0 * t, 0 * t) == (0.0, 0.0, False, False)


def test_the_default_radius():
    problem = network()
    found, point = looked_at(problem, ("1",), ("random 1",)), Point.of(problem)
    line, eigenvector = found.lines["1"], found.directions["1"]
    assert line.t[-1] == default_radius(eigenvector, found.model.curvatures[0, 0], point)
    for curvature in (50.0, -50.0):
        radius = default_radius(eigenvector, curvature, point)
        assert 50 * radius**2 / 2 == pytest.approx(RISE * point.loss)
    assert found.lines["random 1"].t[-1] == 1.0
    assert (len(line.t), line.t[20], line.t[0]) == (41, 0.0, -line.t[-1])
    assert line.loss[20] == pytest.approx(point.loss, rel=1e-14)
    flat = default_radius(eigenvector, 1e-30, point)
    assert flat == default_radius(eigenvector, 0.0, point) == point.norm
    fitted = Point(0.0, point.gradient, point.norm)
    assert default_radius(eigenvector, 2.0, fitted) == pytest.approx((RISE * FLOOR) ** 0.5)


def test_a_plane_holds_its_lines():
    """Rows run along the second direction: the middle ones are the lines of both."""
    found = looked_at(network(), ("1",), ("random 1",), ("1", "random 1"), radius=0.5, points=5)
    plane = found.planes["1", "random 1"]
    assert plane.loss[2] == pytest.approx(found.lines["1"].loss, rel=1e-13)
    assert plane.loss[:, 2] == pytest.approx(found.lines["random 1"].loss, rel=1e-13)
    assert plane.prediction[2] == pytest.approx(found.lines["1"].prediction, rel=1e-13)
    assert plane.prediction[:, 2] == pytest.approx(found.lines["random 1"].prediction, rel=1e-13)
    assert found.evaluations == 5 + 5 + 25
    d, e = (d.vector for d in found.directions.values())
    assert plane.cosine == pytest.approx((d @ e / d.norm() / e.norm()).item())


@pytest.mark.parametrize("each", [True, False])
def test_a_loss_of_a_batch_has_no_curvature_of_single_examples(each):
    def squares(model, batch):
        values = (model(batch[0]) - batch[1]).square().mean(1)
        return values if each else values.mean()

    batches = [replace(batch, inputs=(batch.inputs, batch.targets), targets=None) for batch in linear().batches]
    problem = replace(linear(), loss=BatchLoss(squares, "squares"), batches=batches)
    found = looked_at(problem, ("random",), radius=1.0, points=5)
    reason = "squares returns one number for a batch, so its examples have no gradients of their own"
    assert [*found.spread] == (["random"] if each else [])
    assert found.without == (
        "" if each else f"no curvature of single examples: {reason}; return one value for each example"
    )
