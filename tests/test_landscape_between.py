"""The loss between checkpoints and along training: barriers, planes of trajectories and steps against closed forms."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import BY_NAME, CASES, DEVICES, SOME, floats, name_of
from test_landscape import assert_unchanged, linear, network, problem_of, state
from torch import nn

from spectra.curvature.evaluation import mean_loss
from spectra.curvature.operator import Curvature
from spectra.directions.other_checkpoint import read_other_checkpoint
from spectra.directions.point import Point
from spectra.directions.training import CHECKPOINT
from spectra.errors import SpectraError
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.surfaces.barrier import barrier
from spectra.surfaces.directions import COMPONENT, EIGENVECTOR, RANDOM, Direction, numbered
from spectra.surfaces.example_losses import example_losses
from spectra.surfaces.landscape import ROOM, Grid, between, landscape
from spectra.surfaces.plane import frame, side
from spectra.surfaces.training_directions import TrainingDirectionMaker
from spectra.surfaces.trajectory import nearest_plane


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def given(problem, *names, checkpoint=None, optimizer=None):
    return TrainingDirectionMaker(problem, Point.of(problem).gradient, checkpoint, None, optimizer)(names)


def looked_at(problem, *along, points=None, radius=None, more=None, **options):
    """The landscape along directions of training, and those in `more`."""
    found = given(problem, *{name for names in along for name in names}, **options)
    found.directions.update(more or {})
    told = numbered(along)
    names = dict.fromkeys(name for one in told for name in one)
    directions = {name: found.directions[name] for name in names}
    matrix, grid = Curvature(problem, "hessian"), Grid(radius, points)
    return landscape(problem, matrix, "hessian", Point.of(problem), directions, told, grid, paths=found.paths)


def saved(problem, path: str, change=lambda name, value: value + 0.3) -> Path:
    """A checkpoint of the problem's model with other values."""
    held = {name: change(name, value.clone()) for name, value in problem.model.state_dict().items()}
    torch.save(held, path)
    return Path(path)


# Barriers


def product(weights, x, scale=2.0):
    """y = sum_i a_i b_i x, of two hidden units with these weights a = b, fitted to y = scale x."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.as_tensor(weights, dtype=torch.float64).view_as(layer.weight))
    return problem_of(model, x[:, None], scale * x[:, None], MeanSquaredError(), size=3)


@pytest.mark.parametrize("points", [41, 9])
def test_the_barrier_between_permuted_units(points):
    """Two units in the other order: the loss is 0 at both ends and s^2 mean(x^2) / 4 in the middle, in closed form."""
    x, scale = floats(8), 2.0
    problem = product([scale**0.5, 0.0], x)
    saved(problem, "other.pt", lambda _, value: value.flip(0) if value.shape[0] == 2 else value.flip(1))
    line = looked_at(problem, ("checkpoint:other.pt",), points=points).lines["checkpoint:other.pt"]
    found, t = line.barrier, line.t
    assert line.loss == pytest.approx(4 * scale**2 * t**2 * (1 - t) ** 2 * (x**2).mean().item(), abs=1e-12)
    assert (found.start, found.end) == pytest.approx((0, 0), abs=1e-14)
    assert found.t == pytest.approx(0.5, abs=1e-12)
    assert found.height == pytest.approx(scale**2 / 4 * (x**2).mean().item(), rel=1e-12)
    by_hand = scale**2 / 4 * (x**2).std().item() / 8**0.5
    assert found.standard_error == pytest.approx(by_hand, rel=1e-12)
    assert found.present
    assert len(t) == points
    assert {0.0, 1.0} <= set(t.tolist())


def test_the_maximum_between_grid_points_is_found():
    """t (1 - t)^2 over a sloping chord has its maximum 4/27 at 1/3; the grid's error bounds what is left."""
    t = between(15, 0.2)

    def loss(at):
        at = np.asarray(at)
        return 1 + 0.3 * at + at * (1 - at) ** 2

    calls = []

    def evaluate(more):
        calls.extend(more)
        return loss(more)

    found = barrier(t, loss(t), evaluate, lambda _: None, 1e-16)
    assert found.t == pytest.approx(1 / 3, abs=0.1 / 16)
    assert 0 <= 4 / 27 - found.height <= 1.1 * found.grid_error
    assert found.grid_error < 1e-5
    assert 0 < len(calls) <= 12
    assert (found.standard_error, found.present) == (None, True)
    assert found.without_error
    whole = barrier(t, loss(t), evaluate, lambda at: [*(2 * loss([at])), 0.0], 1e-16)
    above = 2 * (loss(whole.t) - (1 - whole.t) * loss(0) - whole.t * loss(1))
    assert whole.standard_error == pytest.approx(abs(above) / 2, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rise_within_its_error_is_no_barrier(sign):
    """One example rises and another falls: the mean rises by less than it is known to."""
    t, rng = np.linspace(0, 1, 11), np.random.default_rng(0)
    each = 0.01 + sign * rng.normal(size=50)
    mean = each.mean() if each.mean() > 0 else -each.mean()
    each = each * np.sign(each.mean())

    def loss(at):
        return 4 * np.asarray(at) * (1 - np.asarray(at)) * mean

    found = barrier(t, loss(t), loss, lambda at: (4 * at * (1 - at) * each).tolist(), 1e-16)
    assert found.height == pytest.approx(mean)
    assert found.standard_error == pytest.approx(each.std(ddof=1) / 50**0.5)
    assert found.present == (mean > 2 * found.standard_error + found.grid_error + found.rounding)
    assert not found.present


def test_a_convex_loss_has_no_barrier():
    problem = linear(weight_decay=0.1)
    saved(problem, "other.pt")
    line = looked_at(problem, ("checkpoint:other.pt",)).lines["checkpoint:other.pt"]
    found = line.barrier
    assert (found.present, found.height, found.standard_error) == (False, 0.0, 0.0)
    assert np.abs(line.departure).max() < 1e-12 * line.loss.max()
    assert line.holds[2:] == (True, True)


def test_a_loss_that_is_not_finite_between():
    found = barrier(
        np.linspace(0, 1, 5), np.array([1.0, 2, np.nan, 2, 1]), lambda _: np.zeros(0), lambda _: None, 1e-16
    )
    assert np.isnan(found.height)
    assert (found.t, found.present) == (0.5, None)


def test_coordinates_between_checkpoints():
    for points in (3, 5, 7, 9, 25, 41, 101):
        for beyond in (0.0, 0.1, 1 / 6, 2.0):
            t = between(points, beyond)
            assert len(t) == points
            assert (np.diff(t) > 0).all()
            assert {0.0, 1.0} <= set(t.tolist())
            assert np.count_nonzero((t > 0) & (t < 1)) >= 1
            assert t[0] == -t[-1] + 1 or t[0] == pytest.approx(1 - t[-1])


# Losses of examples


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.sampled(12)
def test_losses_of_examples_have_the_mean_loss(case):
    problem = case.problem()
    found = example_losses(problem)
    if found is None:
        assert "mean" in case.name
        return
    assert len(found) == problem.examples
    assert found.mean() == pytest.approx(mean_loss(problem), rel=1e-12)
    order = torch.arange(6, -1, -1)
    again = example_losses(case.problem(sizes=[3, 4], order=order))
    assert sorted(again) == pytest.approx(sorted(found), rel=1e-12)


@pytest.mark.parametrize("name", ["class weights", "ignored targets", "bce", "mse of sequences"])
def test_losses_of_examples_are_those_of_pytorch(name):
    case = BY_NAME[name]
    problem, (x, y) = case.problem(), case.data()
    output = problem.model(x).detach()
    if name == "mse of sequences":
        expected = (output - y).square().flatten(1).mean(1)
    elif name == "bce":
        expected = nn.functional.binary_cross_entropy_with_logits(output, y, reduction="none").flatten(1).mean(1)
    else:
        weight = case.options.get("weight")
        weight = weight if weight is None else weight.double()
        each = nn.functional.cross_entropy(output, y, weight=weight, reduction="none")
        kept = y != -100
        scale = kept.sum() if weight is None else weight[y].sum()
        expected = (each * kept.sum() / scale)[kept]
    assert example_losses(problem) == pytest.approx(expected.numpy(), rel=1e-12)


def test_one_number_for_a_batch_is_no_loss_of_examples():
    loss = CustomLoss(lambda output, y: (output - y).square().mean())
    problem = problem_of(nn.Linear(4, 3), floats(20, 4), floats(20, 3), loss)
    assert example_losses(problem) is None
    saved(problem, "other.pt")
    found = looked_at(problem, ("checkpoint:other.pt",)).lines["checkpoint:other.pt"].barrier
    assert found.present is False


# Checkpoints


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_of_batch_norm_go_with_the_way(device):
    """At t = 1 the loss is the other checkpoint's own; between, that of the interpolated state dict."""
    problem = BY_NAME["convolution, BatchNorm"].problem(device=device)
    saved(problem, "other.pt", lambda name, v: v if v.dtype == torch.int64 else 1.5 * v + 0.2)
    before = state(problem.model)
    found = looked_at(problem, ("checkpoint:other.pt",), points=9)
    assert_unchanged(problem.model, before)
    line = found.lines["checkpoint:other.pt"]
    assert np.isnan(line.prediction).all()
    assert line.holds is None
    here, there = problem.model.state_dict(), torch.load("other.pt")
    buffers = dict(problem.model.named_buffers())
    for t, loss in zip(line.t, line.loss, strict=True):
        other = copy.deepcopy(problem.model)
        kept = {name: min(max(t, 0.0), 1.0) if name in buffers else t for name in here}
        held = {n: v + kept[n] * (there[n].to(v) - v) if v.is_floating_point() else v for n, v in here.items()}
        other.load_state_dict(held)
        assert loss == pytest.approx(mean_loss(replace(problem, model=other, parameters={})), rel=1e-12)
    (note,) = given(problem, "checkpoint:other.pt").notes
    assert f"{sum(b.is_floating_point() for b in buffers.values())} buffers differ" in note
    assert "BatchNorm" in note


def test_what_is_not_chosen_stays():
    problem = BY_NAME["convolution, BatchNorm"].problem()
    first = dict(list(problem.parameters.items())[:1])
    saved(problem, "other.pt", lambda name, v: v if v.dtype == torch.int64 else 1.5 * v + 0.2)
    some = replace(problem, parameters=first)
    found = given(some, "checkpoint:other.pt")
    assert "keep their values from here" in found.notes[0]
    way = found.directions["checkpoint:other.pt"]
    assert way.buffers == {}
    (own,) = first.values()
    assert torch.allclose(way.vector, (0.5 * own + 0.2).detach().flatten())


def test_a_checkpoint_is_read_without_a_trace():
    problem = network()
    matrix = Curvature(problem, "hessian")
    before = state(problem.model)
    saved(problem, "other.pt")
    there = read_other_checkpoint(problem, "other.pt", None, "`along` checkpoint:")
    assert_unchanged(problem.model, before)
    assert torch.allclose(there.step(problem), torch.full((problem.size,), 0.3, dtype=torch.float64))
    matrix @ torch.ones(problem.size, dtype=torch.float64)  # which refuses parameters that have changed


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda own: own, "`along` checkpoint:other.pt: has the same parameters as this checkpoint"),
        (lambda own: dict(list(own.items())[1:]), "`along` checkpoint:other.pt: missing 0.weight"),
        (lambda own: {n: v[..., :1] for n, v in own.items()}, "`along` checkpoint:other.pt: "),
        (lambda own: {n: v * torch.inf for n, v in own.items()}, "`along` checkpoint:other.pt: .* not finite"),
    ],
)
def test_checkpoints_that_do_not_fit(content, told):
    problem = network()
    torch.save(content(problem.model.state_dict()), "other.pt")
    before = state(problem.model)
    with pytest.raises(SpectraError, match=told):
        given(problem, "checkpoint:other.pt")
    assert_unchanged(problem.model, before)


# Trajectories


@pytest.mark.parametrize("held", [1, 2, 3, 50])
def test_the_nearest_plane_against_a_singular_value_decomposition(held):
    rows = floats(6, 30) * torch.tensor([5.0, 3, 1, 1, 0, 2])[:, None]
    left, values, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    calls = []

    def row(i):
        calls.append(i)
        return rows[i].clone()

    found = nearest_plane(row, 6, held)
    assert found.shares == pytest.approx(values[:2] ** 2 / (values**2).sum(), rel=1e-12)
    both = torch.stack(found.directions).numpy()
    assert both @ both.T == pytest.approx(np.eye(2), abs=1e-12)
    assert np.abs((both * right[:2]).sum(axis=1)) == pytest.approx(1, abs=1e-12)
    assert np.abs(found.coordinates) == pytest.approx(np.abs(left[:, :2] * values[:2]), abs=1e-10)
    assert found.coordinates == pytest.approx(rows.numpy() @ both.T, abs=1e-10)
    rest = rows.numpy() - found.coordinates @ both
    assert found.distances == pytest.approx(np.linalg.norm(rest, axis=1), abs=1e-6)
    assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(values[2:]), rel=1e-9)
    assert len(calls) <= 7 + 6 + sum(6 - first for first in range(0, 6, held))


def test_points_on_a_line_span_no_plane():
    rows = torch.outer(torch.tensor([1.0, 0.0, -2.0]), floats(9).float())
    assert nearest_plane(lambda i: rows[i], 3, 2) is None
    assert nearest_plane(lambda i: rows[i], 1, 2) is None
    assert nearest_plane(lambda i: torch.zeros(9), 3, 2) is None


def trajectory(problem, steps=(10, 2, 30)):
    """Checkpoints at random places, named by these steps."""
    moves = floats(len(steps), problem.size)
    for step, move in zip(steps, moves, strict=True):
        parts = dict(zip(problem.parameters, problem.tensors(0.3 * move), strict=True))
        saved(problem, f"run-{step}.pt", lambda name, v, parts=parts: v + parts[name])
    return dict(zip(steps, 0.3 * moves, strict=True))


def test_a_trajectory_in_its_plane():
    """The order is that of the steps, losses are the checkpoints' own, and those in the plane are of projections."""
    problem = network()
    moves = trajectory(problem)
    found = looked_at(problem, ("path:run-*.pt",), points=5)
    plane, d = found.planes["PC 1", "PC 2"], torch.stack([d.vector for d in found.directions.values()])
    assert [mark.name for mark in plane.marks] == ["run-2", "run-10", "run-30"]
    assert (plane.path.counts, [mark.step for mark in plane.marks]) == ("training step", [2, 10, 30])
    theta = problem.vector([p.detach() for p in problem.leaves])
    for mark in plane.marks:
        move = moves[mark.step]
        x, y = (d @ move).tolist()
        assert (mark.x, mark.y) == pytest.approx((x, y), abs=1e-10)
        assert mark.distance == pytest.approx((move - x * d[0] - y * d[1]).norm().item(), abs=1e-7)
        for loss, at in ((mark.loss, move), (mark.loss_in_plane, x * d[0] + y * d[1])):
            other = copy.deepcopy(problem.model)
            nn.utils.vector_to_parameters(theta + at, other.parameters())
            assert loss == pytest.approx(mean_loss(replace(problem, model=other, parameters={})), rel=1e-12)
    assert plane.x[0] < min(0, *(mark.x for mark in plane.marks))
    assert plane.x[-1] > max(0, *(mark.x for mark in plane.marks))
    assert 0.0 in plane.x.tolist()
    assert 0.0 in plane.y.tolist()
    assert not plane.orthogonal
    assert found.evaluations == 25 + 6


def test_trajectories_that_are_none():
    problem = network()
    with pytest.raises(SpectraError, match=r"`along` path:run-\*.pt: matches no checkpoint"):
        given(problem, "path:run-*.pt")
    saved(problem, "run-1.pt", lambda _, value: value)
    with pytest.raises(SpectraError, match=r"`along` path:run-\*.pt: matches only run-1.pt"):
        given(problem, "path:run-*.pt")
    saved(problem, "run-2.pt")
    with pytest.raises(SpectraError, match=r"`along` path:run-\*.pt: its 2 checkpoints and this one lie on one line"):
        given(problem, "path:run-*.pt")


def test_names_of_trajectories():
    assert numbered([("path:a",), ("1",), ("path:a",)]) == [("PC 1", "PC 2"), ("1",)]
    assert numbered([("path:a",), ("path:b",)]) == [
        ("PC 1 of path 1", "PC 2 of path 1"),
        ("PC 1 of path 2", "PC 2 of path 2"),
    ]


# Planes with directions of training


def test_a_plane_through_three_checkpoints():
    """Orthogonal coordinates: a quadratic loss is its prediction, and the checkpoints are where their losses are."""
    problem = linear()
    for name, seed in (("b.pt", 15), ("c.pt", 16)):
        move = dict(zip(problem.parameters, problem.tensors(floats(seed)[:15]), strict=True))
        saved(problem, name, lambda n, v, move=move: v + move[n])
    names = ("checkpoint:b.pt", "checkpoint:c.pt")
    found = looked_at(problem, names, points=9)
    plane = found.planes[names]
    assert plane.orthogonal
    assert np.abs(plane.loss - plane.prediction).max() < 1e-12 * plane.loss.max()
    d, e = (found.directions[name].vector for name in names)
    b, c = plane.marks
    assert (b.x, b.y) == pytest.approx((1, 0), abs=1e-12)
    assert (c.x, c.y) == pytest.approx(((d @ e / (d @ d)).item(), 1), abs=1e-12)
    for mark, vector in ((b, d), (c, e)):
        moved = problem.tensors(vector)
        other = copy.deepcopy(problem.model)
        with torch.no_grad():
            for p, by in zip(other.parameters(), moved, strict=True):
                p += by
        assert mark.loss_in_plane == pytest.approx(mean_loss(replace(problem, model=other, parameters={})), rel=1e-12)
    left = e - c.x * d
    i, j = 1, 2  # the loss at a point of the grid is that at theta + x d + y (e less its part along d)
    at = plane.x[j] * d + plane.y[i] * left
    other = copy.deepcopy(problem.model)
    with torch.no_grad():
        for p, by in zip(other.parameters(), problem.tensors(at), strict=True):
            p += by
    assert plane.loss[i, j] == pytest.approx(mean_loss(replace(problem, model=other, parameters={})), rel=1e-12)


def test_coordinates_are_made_orthogonal_where_one_is_of_training():
    d, e = floats(5), floats(7)[:5]
    share = (d @ e / (d @ d)).item()
    for kinds, expected in (
        ((EIGENVECTOR, RANDOM), "as they are"),
        ((COMPONENT, COMPONENT), "as they are"),
        (("gradient", EIGENVECTOR), "of its length"),
        (("gradient", CHECKPOINT), "to the point"),
        ((CHECKPOINT, "update"), "to the point"),
    ):
        both = [Direction("a", kinds[0], "", d), Direction("b", kinds[1], "", e)]
        place = torch.tensor(frame(both, share))
        first, second = place @ torch.stack([d, e])
        assert torch.equal(first, d)
        if expected == "as they are":
            assert torch.equal(second, e)
            continue
        assert second @ first == pytest.approx(0, abs=1e-12)
        length = e.norm() if expected == "of its length" else (e - share * d).norm()
        assert second.norm() == pytest.approx(length.item())


def test_parallel_directions_span_no_plane():
    problem = linear()
    saved(problem, "b.pt", lambda _, value: value + 0.3)
    saved(problem, "c.pt", lambda _, value: value - 0.6)
    with pytest.raises(SpectraError, match=r"`along` checkpoint:b\.pt,checkpoint:c\.pt: the directions are parallel"):
        looked_at(problem, ("checkpoint:b.pt", "checkpoint:c.pt"))


def test_a_side_holds_its_points():
    for points in (3, 7, 25):
        for start, stop, marks in ((0, 0, [1.0]), (-1, 2, [5.0, -3.0]), (0, 0, [-2.0]), (0, 0, []), (-0.5, 2, [])):
            x = side(points, start, stop, marks)
            assert len(x) == points
            assert 0.0 in x.tolist()
            assert np.diff(x) == pytest.approx(x[1] - x[0])
            assert x[0] <= min(start, 0, *marks)
            assert x[-1] >= max(stop, 0, *marks)


# Steps


def test_the_line_along_the_gradient():
    """Along -g in a quadratic loss, t is a learning rate: the loss is back where it was at 2 g'g / g'Hg."""
    problem = linear()
    found = looked_at(problem, ("gradient",))
    line, d = found.lines["gradient"], found.directions["gradient"]
    gradient = torch.autograd.grad(nn.functional.mse_loss(problem.model(floats(20, 4)), floats(20, 3)), problem.leaves)
    g = problem.vector(gradient)
    assert torch.allclose(d.vector, -g, rtol=1e-12)
    curvature = (g @ (Curvature(problem, "hessian") @ g)).item()
    critical = 2 * (g @ g).item() / curvature
    assert line.t[-1] == pytest.approx(ROOM * critical, rel=1e-9)
    assert line.t[0] == pytest.approx(-line.t[-1] / 4)
    assert line.t[8] == 0.0
    assert np.interp(critical, line.t, line.loss) == pytest.approx(line.loss[8], rel=2e-2)
    assert line.loss == pytest.approx(line.prediction, rel=1e-12)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_next_step_is_at_one(optimizer):
    """The loss at t = 1 is that after a step of the optimizer with the gradient of all data."""
    problem = network()
    x, y = problem.batches[0].inputs, problem.batches[0].targets
    x, y = (torch.cat([getattr(batch, which) for batch in problem.batches]) for which in ("inputs", "targets"))
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    own = getattr(torch.optim, optimizer)(problem.model.parameters(), lr=0.1, **options)

    def step(model, stepping):
        stepping.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        stepping.step()

    step(problem.model, own)
    own.zero_grad()
    torch.save({"model": problem.model.state_dict(), "optimizer": own.state_dict()}, "here.pt")
    found = looked_at(problem, ("update",), ("momentum",), checkpoint="here.pt", points=41)
    line = found.lines["update"]
    other = copy.deepcopy(problem.model)
    stepping = getattr(torch.optim, optimizer)(other.parameters(), lr=0.1, **options)
    stepping.load_state_dict(own.state_dict())
    step(other, stepping)
    theta = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in (problem.model, other)]
    assert torch.allclose(found.directions["update"].vector, theta[1] - theta[0], rtol=1e-6, atol=1e-9)
    after = mean_loss(replace(problem, model=other, parameters={}))
    one = looked_at(problem, ("update",), checkpoint="here.pt", radius=1.0, points=3).lines["update"]
    assert one.t[-1] == 1.0
    assert one.loss[-1] == pytest.approx(after, rel=1e-6)
    assert line.t[-1] >= 2.0
    assert "momentum" in found.lines


def test_an_optimizer_that_is_missing():
    problem = network()
    with pytest.raises(SpectraError, match="`optimizer`: update needs the optimizer's state"):
        given(problem, "update")
    saved(problem, "here.pt")
    with pytest.raises(SpectraError, match="holds no optimizer state"):
        given(problem, "momentum", checkpoint="here.pt")
    with pytest.raises(SpectraError, match="it has no option nam"):
        given(problem, "momentum", optimizer="here.pt?nam=Adam")


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_all_of_it_leaves_the_model_as_it_was(case):
    problem = case.problem()
    trajectory(problem, steps=(1, 2)) if all(n in problem.parameters for n in problem.model.state_dict()) else None
    saved(problem, "other.pt", lambda _, v: v + 0.1 if v.is_floating_point() else v)
    before = state(problem.model)
    names = [("checkpoint:other.pt",), ("gradient",), ("gradient", "checkpoint:other.pt")]
    looked_at(problem, *names, *([("path:run-*.pt",)] if Path("run-1.pt").exists() else []), points=3)
    assert_unchanged(problem.model, before)
