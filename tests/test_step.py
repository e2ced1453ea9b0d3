"""The next step in closed form, and against dense references: slopes, curvatures, steps and shares."""

import math

import numpy as np
import pytest
import torch
from helpers import seeded, with_spectrum
from torch import Tensor, nn

import spectra
from spectra.directions.point import Point
from spectra.directions.training import Direction, gradient_direction
from spectra.errors import SpectraError
from spectra.krylov.results import Eigenpairs
from spectra.layerwise.parameter_blocks import diagonal_blocks, parameter_blocks
from spectra.operator import Deflated
from spectra.steps.alignment import alignment
from spectra.steps.curvatures import curvature_along
from spectra.steps.line_search import FALLS, LOST, NEVER, RISES, search_line
from spectra.steps.run import followed_by
from spectra.steps.slopes import slopes


def linear(n: int = 6, count: int = 20, seed: int = 0, size: int | None = None, dtype=torch.float64) -> spectra.Problem:
    """Linear regression, whose loss is quadratic."""
    x = torch.randn(count, n, generator=seeded(seed), dtype=torch.float64).to(dtype)
    y = torch.randn(count, 1, generator=seeded(seed + 1), dtype=torch.float64).to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Linear(n, 1, bias=False).to(dtype)
    return spectra.Problem(
        model, spectra.MeanSquaredError(), spectra.cut_batches(x, y, torch.arange(count), size or count)
    )


def hessian_of(problem: spectra.Problem) -> Tensor:
    x = torch.cat([batch.inputs for batch in problem.batches])
    return 2 * x.T @ x / len(x)


def scalar(function, start: float, dtype=torch.float64) -> spectra.Problem:
    """A loss that is a function of one parameter."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, start)
    one = torch.ones(1, 1, dtype=dtype)
    loss = spectra.CustomLoss(lambda output, target: function(output))
    return spectra.Problem(model, loss, spectra.cut_batches(one, one, torch.arange(1), 1))


def line_of(problem: spectra.Problem, d: Tensor, curvature: float | None = None, **options):
    slope = float(Point.of(problem).gradient @ d)
    return search_line(problem, d, slope, curvature, **{"radius": 0.01 / float(d.norm()), **options})


# Best and critical step


@pytest.mark.parametrize("guessed", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_the_critical_step_is_twice_the_best_one(seed, guessed):
    problem = linear(seed=seed)
    gradient, h = Point.of(problem).gradient, hessian_of(problem)
    for d in (-gradient, -gradient + 0.3 * torch.randn(6, generator=seeded(seed), dtype=torch.float64)):
        slope, curvature = float(gradient @ d), float(d @ h @ d)
        best = -slope / curvature
        found = line_of(problem, d, curvature if guessed else None)
        for step, expected in ((found.best, best), (found.critical, 2 * best)):
            assert abs(step.t - expected) <= step.error <= 2e-5 * expected
        loss = Point.of(problem).loss
        assert found.critical.loss == pytest.approx(loss, rel=1e-5)
        assert found.best.loss == pytest.approx(loss + slope * best / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("function", "start", "best", "critical"),
    [
        (lambda f: f**4, 1.0, 1.0, 2.0),
        (lambda f: f.exp() - f, 1.0, 1.0, None),  # back at the other root of e^x - x = e - 1
        (lambda f: -(2 * math.pi * f).cos(), 0.25, 0.25, 0.5),  # and back again, for ever
        (lambda f: (f - 1).abs() ** 1.5, 4.0, 3.0, 6.0),
    ],
    ids=["quartic", "exponential", "cosine", "power"],
)
def test_steps_of_functions_of_one_parameter(function, start, best, critical):
    problem = scalar(function, start)
    found = line_of(problem, torch.tensor([-1.0], dtype=torch.float64))
    assert abs(found.best.t - best) <= found.best.error < 0.1
    if critical is None:
        x = start - found.critical.t
        assert math.exp(x) - x == pytest.approx(math.e - 1, rel=1e-5)
    else:
        assert abs(found.critical.t - critical) <= found.critical.error < 1e-4


def test_reasons_where_there_is_no_step():
    down = torch.tensor([-1.0], dtype=torch.float64)
    never = line_of(scalar(lambda f: f.exp(), 1.0), down)
    assert never.critical.reason == NEVER
    assert never.best.reason == FALLS
    up = line_of(scalar(lambda f: f**2, 1.0), -down)
    assert up.best.reason == up.critical.reason == RISES
    low = scalar(lambda f: (f - 1) ** 2 + 1, 1.0 + 2e-5, torch.float32)  # the loss falls by less than float32 shows
    lost = line_of(low, down.float(), 2.0)
    assert lost.best.reason == lost.critical.reason == LOST
    assert None is lost.best.t is lost.critical.error
    overflows = line_of(scalar(lambda f: (f - 1) ** 2 + (-(f**5)).exp(), 8.0), down, radius=0.1)
    assert np.isnan(overflows.loss).any()
    assert 0 < overflows.critical.t < math.inf


@pytest.mark.parametrize("tilt", [0.0, 1e-15])
def test_where_the_slope_is_zero_the_loss_may_fall(tilt):
    """As it does at a maximum; at a minimum it rises, and a constant does neither."""
    d = torch.tensor([1.0], dtype=torch.float64)
    options = {"radius": 0.01, "slope_error": 1e-15}
    top = search_line(scalar(lambda f: (f**2 - 1) ** 2, 0.0), d, tilt, -4.0, **options)
    assert abs(top.best.t - 1) <= top.best.error < 1e-4
    assert abs(top.critical.t - 2**0.5) <= top.critical.error < 1e-4
    far = search_line(scalar(lambda f: f**4 - f**2, 0.0), d, tilt, -2.0, **options | {"radius": 8.0})
    assert abs(far.best.t - 0.5**0.5) <= far.best.error < 1e-3  # though the loss is above l(0) where it is looked first
    bottom = search_line(scalar(lambda f: f**2, 0.0), d, tilt, 2.0, **options)
    assert bottom.best.reason == bottom.critical.reason == RISES
    level = search_line(scalar(lambda f: 0 * f + 1, 0.0), d, 0.0, 0.0, **options)
    assert level.best.reason == level.critical.reason == LOST


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_in_the_errors(dtype):
    """In float32 too the steps lie within their errors of those in float64."""
    exact = linear(30, 200, seed=5)
    gradient, h = Point.of(exact).gradient, hessian_of(exact)
    best = float(gradient @ gradient / (gradient @ h @ gradient))
    found = line_of(linear(30, 200, seed=5, dtype=dtype), -gradient.to(dtype), 1 / best * float(gradient @ gradient))
    assert abs(found.best.t - best) <= found.best.error < 0.05 * best
    assert abs(found.critical.t - 2 * best) <= found.critical.error < 1e-3 * best
    assert found.rounding < 1e3 * torch.finfo(dtype).eps


def test_a_large_constant_hides_digits_of_the_loss():
    """Of a loss that float32 knows to 1e-3 the steps are known no better, and their errors say so."""
    found = line_of(scalar(lambda f: 1e4 + (f - 1) ** 2, 4.0, torch.float32), torch.tensor([-1.0]), 2.0)
    assert 1e-4 < found.rounding < 1e-2
    assert abs(found.critical.t - 6) <= found.critical.error < 1e-2
    assert found.critical.error > 5e-5
    assert abs(found.best.t - 3) <= found.best.error < 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_and_their_errors(dtype):
    problem, exact = linear(30, 200, seed=2, dtype=dtype), linear(30, 200, seed=2)
    true = Point.of(exact).gradient
    vectors = [torch.randn(30, generator=seeded(i), dtype=torch.float64).to(dtype) for i in range(8)]
    found, errors = slopes(problem, Point.of(problem).gradient, vectors)
    for slope, error, d in zip(found, errors, vectors, strict=True):
        size = float(true.norm() * d.double().norm())
        assert abs(slope - float(true @ d.double())) <= 3 * error < 1e4 * torch.finfo(dtype).eps * size


def test_a_slope_without_a_second_derivative_has_no_error():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad

    class Net(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    x = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    problem = spectra.Problem(
        Net(3, 1).double(), spectra.MeanSquaredError(), spectra.cut_batches(x, x[:, :1], torch.arange(5), 5)
    )
    gradient = Point.of(problem).gradient
    assert slopes(problem, gradient, [gradient]) == ([pytest.approx(float(gradient @ gradient))], [None])


# Curvature, within and between layers


def network(size: int = 15) -> spectra.Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = torch.randn(15, 4, generator=seeded(), dtype=torch.float64)
    y = torch.randint(0, 3, (15,), generator=seeded(1))
    return spectra.Problem(model, spectra.CrossEntropy(), spectra.cut_batches(x, y, torch.arange(15), size))


def dense_hessian(problem: spectra.Problem) -> Tensor:
    """By torch.autograd.functional, row by row."""
    shapes = {name: p.shape for name, p in problem.model.named_parameters()}
    x, y = (torch.cat([getattr(batch, name) for batch in problem.batches]) for name in ("inputs", "targets"))

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(problem.model, named, (x,)), y)

    return torch.autograd.functional.hessian(loss, nn.utils.parameters_to_vector(problem.model.parameters()).detach())


@pytest.mark.parametrize("size", [15, 4])
def test_curvature_splits_within_and_between_layers(size):
    problem = network(size)
    h, blocks = dense_hessian(problem), parameter_blocks(problem, "layer")
    d = torch.randn(len(h), generator=seeded(7), dtype=torch.float64)
    operator = spectra.Curvature(problem, "hessian")
    own = diagonal_blocks(operator, blocks, problem, "hessian")
    found = curvature_along(operator, own, blocks, Direction("d", "gradient", d, d.norm().item()), 1e-14)
    assert found.value == pytest.approx(float(d @ h @ d), rel=1e-10)
    ends = np.cumsum([0, 25, 18, 12])
    for layer, start, end in zip(found.layers, ends[:-1], ends[1:], strict=True):
        part = torch.zeros_like(d)
        part[start:end] = d[start:end]
        expected = [part @ part / (d @ d), part @ h @ d, part @ h @ part]
        assert [layer.share, layer.part, layer.own] == pytest.approx(list(map(float, expected)), rel=1e-9)
    assert found.within == pytest.approx(sum(layer.own for layer in found.layers))
    assert found.within + found.between == pytest.approx(found.value)
    assert sum(layer.part for layer in found.layers) == pytest.approx(found.value)
    assert abs(found.between) > 1e-3 * abs(found.value)
    without = curvature_along(operator, None, blocks, Direction("d", "gradient", d, d.norm().item()), 1e-14)
    assert (without.value, without.within, without.layers[0].own) == (found.value, None, None)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_rounding_of_curvatures_is_within_what_is_told(name):
    """Products in float32 against those in float64, along random directions and along a low eigenvector."""
    exact, single = network(), network()
    single = spectra.Problem(
        single.model.float(),
        single.loss,
        spectra.cut_batches(single.batches[0].inputs.float(), single.batches[0].targets, torch.arange(15), 15),
    )
    low = torch.linalg.eigh(dense_hessian(exact)).eigenvectors[:, 0]
    for d in (low, *torch.randn(4, 55, generator=seeded(9), dtype=torch.float64)):
        found = []
        for problem in (single, exact):
            own, blocks = d.float().to(problem.dtype), parameter_blocks(problem, "layer")
            operator = spectra.Curvature(problem, name)
            noise = max(spectra.check_operator(operator), torch.finfo(problem.dtype).eps)
            alone = diagonal_blocks(operator, blocks, problem, name)
            along = Direction("d", "gradient", own, own.double().norm().item())
            found.append(curvature_along(operator, alone, blocks, along, noise))
        one, other = found
        assert abs(one.value - other.value) <= one.error + other.error < 1e-4 * abs(other.value)
        assert abs(one.within - other.within) <= one.split_error + other.split_error
        assert abs(one.between - other.between) <= one.split_error + other.split_error


# Shares


def pairs_of(matrix: Tensor, vectors: Tensor) -> Eigenpairs:
    """Rayleigh quotients of orthonormal rows, with their true residuals."""
    images = vectors @ matrix
    values = (images * vectors).sum(dim=1)
    order = values.abs().argsort(descending=True)
    residuals = (images - values[:, None] * vectors).norm(dim=1)
    return Eigenpairs(values[order], vectors[order], residuals[order], residuals[order], 0, True)


def true_shares(matrix: Tensor, d: Tensor, k: int) -> np.ndarray:
    values, vectors = torch.linalg.eigh(matrix)
    leading = vectors[:, values.abs().argsort(descending=True)[:k]]
    return ((leading.T @ d).square().cumsum(0) / d.square().sum()).numpy()


def test_shares_in_exact_eigenvectors():
    matrix = with_spectrum([9.0, -7, 5, 3, 1, 0.5, 0.1, 0])
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    exact = pairs_of(matrix, vectors.T[order][:5])
    d = torch.randn(8, generator=seeded(2), dtype=torch.float64)
    found = alignment(matrix, exact, 4, d)
    np.testing.assert_allclose(found.share, true_shares(matrix, d, 4), atol=1e-13)
    np.testing.assert_allclose(found.upper - found.lower, 0, atol=1e-6)
    for j in range(4):  # of an eigenvector: all behind its rank, nothing before it
        found = alignment(matrix, exact, 4, exact.vectors[j])
        np.testing.assert_allclose(found.share, np.arange(4) >= j, atol=1e-13)


SPECTRA = {
    "gaps": [9.0, -7, 5, 3, 1.5, 1, 0.5, 0.2, 0.1, 0],
    "a crowd": [9.0, 5.001, 5, -5, 4.999, 1, 0.5, 0.2, 0.1, 0],
    "copies": [9.0, 5, 5, 5, 5, 5, 1, 0.5, 0.1, 0],
    "none": [1.0] * 10,
}


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bounds_hold_whatever_the_vectors(spectrum, noise):
    """For vectors that are wrong by any angle, in crowds too, where the bounds come from the nearest gaps."""
    matrix, widths = with_spectrum(SPECTRA[spectrum]), []
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors.T[values.abs().argsort(descending=True)][:6]
    for seed in range(20):
        shift = torch.randn(rows.shape, generator=seeded(seed), dtype=torch.float64)
        turned = torch.linalg.qr((rows + noise * shift).T).Q.T
        pairs = pairs_of(matrix, turned)
        d = torch.randn(10, generator=seeded(seed + 100), dtype=torch.float64)
        found, true = alignment(matrix, pairs, 5, d), true_shares(matrix, d, 5)
        rest = SPECTRA[spectrum]
        size = sorted(map(abs, rest), reverse=True)
        # Where the true space is not unique, no share in it is the truth.
        unique = np.array([size[j] > size[j + 1] for j in range(5)])
        # Nor are the computed ones the leading ones, where the vectors are wrong altogether: that is for `complete`.
        if noise <= 1e-3:
            assert ((found.lower - 1e-12 <= true) & (true <= found.upper + 1e-12))[unique].all()
        assert (np.diff(found.lower) >= 0).all()
        assert (np.diff(found.upper) >= 0).all()
        assert ((found.lower <= found.share) & (found.share <= found.upper)).all()
        widths.append(found.upper - found.lower)
    if spectrum == "gaps" and noise == 1e-6:
        assert np.max(widths) < 1e-3
    if spectrum == "copies":
        assert np.min(np.array(widths)[:, 1:4]) > 1e-2  # inside of five copies nothing is known
    if noise == 1.0:
        assert np.max(widths) == pytest.approx(1, abs=0.3)


def test_the_whole_space_holds_all_of_it():
    matrix = with_spectrum([3.0, 2, 1])
    d = torch.randn(3, generator=seeded(), dtype=torch.float64)
    found = alignment(matrix, pairs_of(matrix, torch.linalg.eigh(matrix).eigenvectors.T), 3, d)
    assert (found.share[2], found.lower[2], found.upper[2]) == pytest.approx((1, 1, 1))


# Invariances


def test_steps_do_not_depend_on_the_batches():
    d = gradient_direction(Point.of(network()).gradient).vector
    first, other = line_of(network(), d), line_of(network(4), d)
    for one, again in ((first.best, other.best), (first.critical, other.critical)):
        assert abs(one.t - again.t) <= one.error + again.error
        assert again.loss == pytest.approx(one.loss, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_steps_do_not_depend_on_the_scale_of_the_loss(scale):
    down = torch.tensor([-1.0], dtype=torch.float64)
    one, again = (line_of(scalar(lambda f, c=c: c * ((f - 1) ** 2 + 0.1 * f**4), 3.0), down) for c in (1.0, scale))
    assert again.critical.t == pytest.approx(one.critical.t, rel=1e-5)
    assert again.best.t == pytest.approx(one.best.t, rel=1e-4)


def test_a_direction_of_twice_the_length_takes_half_the_steps():
    problem = network()
    d = -Point.of(problem).gradient
    one, twice = line_of(problem, d), line_of(problem, 2 * d)
    assert twice.critical.t == pytest.approx(one.critical.t / 2, rel=1e-5)
    assert twice.best.t == pytest.approx(one.best.t / 2, rel=1e-4)


def test_parameters_are_left_as_they_were():
    problem = network()
    before = [p.detach().clone() for p in problem.leaves]
    line_of(problem, -Point.of(problem).gradient)
    assert all(torch.equal(p, b) for p, b in zip(problem.leaves, before, strict=True))


def test_no_direction_is_zero():
    with pytest.raises(SpectraError, match="gradient: it is zero"):
        gradient_direction(torch.zeros(3))
    with pytest.raises(SpectraError, match="not finite"):
        gradient_direction(torch.tensor([math.inf, 0.0]))


def test_values_behind_taken_eigenvectors_are_within_their_residuals():
    """Taken vectors are not exact, so that a value of their complement is off from the matrix's by as much as they."""
    exact = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]).double()
    matrix, own = torch.diag(exact), torch.eye(6).double()
    vectors = torch.linalg.qr((own[:2] + 0.3 * own[2:4]).T).Q.T
    values = (vectors @ matrix * vectors).sum(dim=1)
    residuals = torch.linalg.vector_norm(vectors @ matrix - values[:, None] * vectors, dim=1)
    taken = Eigenpairs(values, vectors, residuals, residuals, products=0, converged=True)
    found = followed_by(taken, spectra.eigenpairs(Deflated(matrix, vectors), 1))
    assert 1e-2 < (exact - found.values[2]).abs().min() <= found.residuals[2]
