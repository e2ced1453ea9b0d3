"""The noise scale of the gradient: closed forms, dense references, exact averages over samples, and coverage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import BY_NAME, DEVICES, floats, labels, mapped, mlp
from torch import nn
from torch.nn.utils import parameters_to_vector

import spectra
from spectra.curvature.evaluation import cut_batches
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.problem.problem import Problem
from spectra.steps import noise_scale as module
from spectra.steps.deviations import BetweenExamples, Deviations
from spectra.steps.ratio import Ratio
from spectra.steps.sampled import Sampled

D = 4
SIGMA = torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)  # variances of the inputs
DELTA, NOISE = torch.tensor([0.3, -0.2, 0.5, 0.4], dtype=torch.float64), 0.7


def regression(n: int, seed: int, delta=DELTA, **settings) -> Problem:
    """y = noise, inputs N(0, SIGMA), weights `delta`: the loss is (delta'x - y)^2."""
    drawn = torch.randn(n, D + 1, generator=seeded(seed), dtype=torch.float64)
    x, y = drawn[:, :D] * SIGMA.sqrt(), NOISE * drawn[:, D:]
    model = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(delta[None])
    return Problem(model, MeanSquaredError(), cut_batches(x, y, torch.arange(n), 1000), **settings)


def scales_of_regression() -> tuple[float, float]:
    """With S the covariance of inputs: g = 2 S d, H = 2 S, C = 4 ((d'S d + s^2) S + S d d'S), by Isserlis' theorem."""
    s, sd = SIGMA.diag(), SIGMA * DELTA
    c = 4 * ((DELTA @ sd + NOISE**2) * s + torch.outer(sd, sd))
    g, h = 2 * sd, 2 * s
    return (c.trace() / (g @ g)).item(), ((h @ c).trace() / (g @ h @ g)).item()


def dense(problem: Problem, loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of single examples (N, n) and the Hessian of their mean, by torch.func.

    `loss(model output, targets)` is PyTorch's own for single examples.
    """
    model, names = problem.model, list(problem.parameters)
    theta = parameters_to_vector(problem.leaves).detach()
    x, y = (torch.cat([getattr(b, part) for b in problem.batches]) for part in ("inputs", "targets"))

    def value(t, x, y):
        parts = dict(zip(names, problem.tensors(t), strict=True))
        return loss(torch.func.functional_call(model, parts, (x[None],)), y[None]) + problem.weight_decay * t @ t / 2

    pairs = list(zip(x, y, strict=True))
    gradients = torch.stack([torch.func.grad(value)(theta, *pair) for pair in pairs])
    hessian = torch.autograd.functional.hessian(lambda t: sum(value(t, *pair) for pair in pairs) / len(pairs), theta)
    return gradients, hessian


def network(width: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return mlp(width=width).double()


def classifier(**settings) -> Problem:
    x, y = floats(12, 3), labels(12, below=3)
    return Problem(network(), CrossEntropy(), cut_batches(x, y, torch.arange(12), 5), **settings)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("population", [True, False])
def test_dense_reference(population, decay):
    problem = classifier(weight_decay=decay)
    gradients, hessian = dense(problem, nn.functional.cross_entropy)
    g, c = gradients.mean(0), torch.cov(gradients.T, correction=0)
    top, bottom, full_top, full_bottom = c.trace(), g @ g, (hessian @ c).trace(), g @ hessian @ g
    if not population:
        bottom, full_bottom = bottom - top / 11, full_bottom - full_top / 11
        top, full_top = top * 12 / 11, full_top * 12 / 11
    found = spectra.noise_scale(problem, population=population)
    for one, expected in ((found.simple, [top, bottom]), (found.full, [full_top, full_bottom])):
        numbers = [one.ratio.numerator, one.ratio.denominator]
        assert numbers == pytest.approx([number.item() for number in expected], rel=1e-9)


def test_deviations_are_those_of_dense_gradients():
    problem = classifier()
    gradients, hessian = dense(problem, nn.functional.cross_entropy)
    x = gradients - gradients.mean(0)
    deviations, weights = Deviations.of(problem), floats(3, 12)
    assert torch.allclose(deviations.squares(), x.square().sum(1), rtol=1e-10)
    assert torch.allclose(deviations.transposed_times(weights), weights @ x, rtol=1e-10, atol=1e-13)
    assert torch.allclose(deviations.times(list(gradients[:3])), gradients[:3] @ x.T, rtol=1e-10, atol=1e-13)
    matrix = BetweenExamples(deviations, hessian)
    for vectors in (floats(12), floats(12, 5)):
        assert torch.allclose(matrix @ vectors, x @ hessian @ x.T @ vectors / 12, rtol=1e-10, atol=1e-13)
    assert torch.allclose(BetweenExamples(deviations) @ weights.T, x @ x.T @ weights.T / 12, rtol=1e-10, atol=1e-13)
    assert deviations.products == (2 + 3 + 3) / 2 + 6 + 3 + deviations.factor.products


def test_influences_of_single_examples(monkeypatch):
    """On t = tr(HC): x_i'H x_i + tr(H_i C). On q = g'Hg: 2 x_i'H g + g'H_i g, H_i an example's own Hessian."""
    monkeypatch.setattr(module, "VECTORS", 300)
    problem = classifier(weight_decay=0.5)
    gradients, hessian = dense(problem, nn.functional.cross_entropy)
    each = [
        dense(replace(problem, batches=[batch.part(slice(i, i + 1))]), nn.functional.cross_entropy)[1]
        for batch in problem.batches
        for i in range(len(batch))
    ]
    g, c = gradients.mean(0), torch.cov(gradients.T, correction=0)
    x = gradients - g
    on_t = torch.stack([xi @ hessian @ xi + (own @ c).trace() for xi, own in zip(x, each, strict=True)])
    on_q = torch.stack([2 * xi @ hessian @ g + g @ own @ g for xi, own in zip(x, each, strict=True)])
    expected = torch.cov(torch.stack([on_t, on_q])) / 12  # of the means
    floor = 2 * (hessian @ c @ hessian @ c).trace() / 144
    back = np.linalg.inv([[12 / 11, 0], [-1 / 11, 1]])
    ratio = spectra.noise_scale(problem).full.ratio
    found = back @ ratio.sampling @ back.T
    assert expected[1, 1] > floor
    assert found[1, 1] == pytest.approx(expected[1, 1].item(), rel=1e-10)
    assert found[0, 0] == pytest.approx(expected[0, 0].item(), rel=0.2)
    assert found[0, 1] == pytest.approx(expected[0, 1].item(), rel=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_linear_regression(seed):
    found = spectra.noise_scale(regression(4000, seed), seed=seed)
    for one, expected in zip((found.simple, found.full), scales_of_regression(), strict=True):
        assert abs(one.value - expected) < 4 * one.standard_error
        assert one.standard_error < 0.15 * expected
        low, high = one.interval
        assert low < one.value < high
        assert str(one).endswith(f" 95 %: {low:.3g} to {high:.3g}")


def test_additive_noise():
    """l_i = t'A t / 2 + e_i't: C is the covariance of e, whatever t is, and the curvature of every example A."""
    a, e = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)), floats(40, 3)

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([2.0, -3.0, 4.0], dtype=torch.float64))

        def forward(self, x):
            return (x @ self.theta + self.theta @ a @ self.theta / 2)[:, None]

    loss = CustomLoss(lambda output, target: output.flatten())
    problem = Problem(Quadratic(), loss, cut_batches(e, torch.zeros(40), torch.arange(40), 40))
    found = spectra.noise_scale(problem, population=True)
    c, g = torch.cov(e.T, correction=0), a @ problem.leaves[0].detach() + e.mean(0)
    assert found.simple.value == pytest.approx((c.trace() / (g @ g)).item(), rel=1e-12)
    assert found.simple.standard_error == 0.0
    assert found.full.value == pytest.approx(((a @ c).trace() / (g @ a @ g)).item(), rel=1e-10)


def test_corrections_are_without_bias():
    """The mean over all samples with replacement, 4^3 of them, is what the population of four has; a theorem."""
    population = floats(4, 3).numpy()
    h = np.array([[2.0, 0.3, 0.0], [0.3, -1.0, 0.1], [0.0, 0.1, 0.5]])
    for matrix in (np.eye(3), h):
        mean = population.mean(0)
        c = np.cov(population.T, bias=True)
        found = []
        for chosen in itertools.product(range(4), repeat=3):
            g = population[list(chosen)]
            x, own = g - g.mean(0), g.mean(0)
            t = np.einsum("ij,jk,ik->i", x, matrix, x).mean()
            ratio = Sampled(3, t, own @ matrix @ own, 0.0, None, None).ratio(False)
            found.append([ratio.numerator, ratio.denominator])
        assert np.mean(found, axis=0) == pytest.approx([np.trace(matrix @ c), mean @ matrix @ mean], rel=1e-12)


def test_batches_and_order_change_nothing():
    case = BY_NAME["weights, smoothing and ignored"]
    reference = spectra.noise_scale(case.problem(sizes=[7]))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    for other in (case.problem(sizes=[2, 1, 4]), case.problem(sizes=[3, 4], order=order)):
        found = spectra.noise_scale(other)
        for one, two in ((found.simple, reference.simple), (found.full, reference.full)):
            assert one.ratio.numerator == pytest.approx(two.ratio.numerator, rel=1e-10)
            assert one.ratio.denominator == pytest.approx(two.ratio.denominator, rel=1e-10)
            assert one.ratio.covariance == pytest.approx(two.ratio.covariance, rel=1e-8, abs=1e-16)


@pytest.mark.parametrize("device", DEVICES)
def test_devices_change_nothing(device):
    case = BY_NAME["convolution, BatchNorm"]
    found, reference = (spectra.noise_scale(case.problem(device=place)) for place in (device, "cpu"))
    for one, two in ((found.simple, reference.simple), (found.full, reference.full)):
        assert one.ratio.numerator == pytest.approx(two.ratio.numerator, rel=1e-9)
        assert one.ratio.covariance == pytest.approx(two.ratio.covariance, rel=1e-7, abs=1e-16)
    balls = [spectra.worst_case(case.problem(device=place), adaptive=True) for place in (device, "cpu")]
    assert balls[0].rises == pytest.approx(balls[1].rises, rel=1e-8)


def test_the_scale_of_the_loss_changes_nothing():
    x, y, model = floats(12, 3), floats(12, 3), network()
    found = []
    for c in (1.0, 64.0):
        loss = CustomLoss(lambda output, target, c=c: c * (output - target).square().sum(dim=1))
        problem = Problem(model, loss, cut_batches(x, y, torch.arange(12), 5))
        found.append(spectra.noise_scale(problem, population=True))
    for one, other in zip(*[(noise.simple, noise.full) for noise in found], strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-10)
        assert one.standard_error == pytest.approx(other.standard_error, rel=1e-8)


def test_intervals_cover():
    """95 % intervals of samples of 100 examples, and of 70 for the full noise scale."""
    simple, full = scales_of_regression()
    held = 0
    for seed in range(60):
        low, high = spectra.noise_scale(regression(100, 1000 + seed), None, check=False).simple.interval
        held += low <= simple <= high
    assert held >= 51  # of 57, but for chance and the skewness of few examples
    held = 0
    for seed in range(12):
        low, high = spectra.noise_scale(regression(70, 2000 + seed), check=False, seed=seed).full.interval
        held += low <= full <= high
    assert held >= 9


def test_a_gradient_that_is_noise():
    """Weights at the true ones: the gradient is zero but for the sample, and the data give a lower bound alone."""
    bounds = []
    for seed in range(8):
        found = spectra.noise_scale(regression(100, seed, torch.zeros(D).double()), check=False)
        for one in (found.simple, found.full):
            if one.value is None:
                assert one.standard_error is None
                assert "not resolved" in one.reason
                bounds.append(one.interval[0])
                assert one.interval[1] == math.inf
                assert str(one).startswith(f"{one.reason}; at least ")
    assert len(bounds) >= 12
    assert np.median(bounds) > 20


def test_a_gradient_that_training_has_made_zero():
    """At the solution of least squares |g|^2 - tr C / (N - 1) is far below zero, which a random sample's never is."""
    x, y = floats(200, 40), floats(200, 1)
    model = nn.Linear(40, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    problem = Problem(model, MeanSquaredError(), cut_batches(x, y, torch.arange(200), 200))
    found = spectra.noise_scale(problem)
    for one in (found.simple, found.full):
        assert one.value is None
        assert "as after training on these examples" in one.reason
        assert math.isnan(one.interval[0])
    found = spectra.noise_scale(problem, population=True)
    for one in (found.simple, found.full):  # what is left of the gradient is rounding
        assert one.value is None
        assert "is lost in rounding" in one.reason
        assert math.isnan(one.interval[0])


def test_the_noise_of_a_signal_that_is_zero(monkeypatch):
    """At a gradient of zero |g|^2 varies from sample to sample by 2 tr(CC) / N^2, and g'Hg by 2 tr(HCHC) / N^2."""
    monkeypatch.setattr(module, "VECTORS", 80)
    x, y, model = floats(60, 3), floats(60, 1), nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    problem = Problem(model, MeanSquaredError(), cut_batches(x, y, torch.arange(60), 60))
    gradients, hessian = dense(problem, nn.functional.mse_loss)
    c = torch.cov(gradients.T, correction=0)
    found, back = spectra.noise_scale(problem), np.linalg.inv([[60 / 59, 0], [-1 / 59, 1]])
    for one, matrix in ((found.simple, torch.eye(3).double()), (found.full, hessian)):
        variance = (back @ one.ratio.sampling @ back.T)[1, 1]
        assert variance == pytest.approx(2 * (matrix @ c @ matrix @ c).trace().item() / 60**2, rel=0.35)


def test_negative_curvature_is_no_batch_size():
    loss = CustomLoss(lambda output, target: -(output + 3 * target).square().sum(dim=1))
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    problem = Problem(model, loss, cut_batches(floats(50, 2), torch.ones(50, 1).double(), torch.arange(50), 50))
    found = spectra.noise_scale(problem, population=True)
    assert found.simple.value > 0
    assert found.full.value is None
    assert "g'Hg is below zero" in found.full.reason
    assert math.isnan(found.full.interval[0])


@pytest.mark.parametrize("name", ["sequence, classes last", "convolution, BatchNorm"])
def test_estimated_and_exact_squares_agree(name, monkeypatch):
    problem = BY_NAME[name].problem()
    exact = spectra.noise_scale(problem, None)
    assert exact.simple.ratio.probes[0, 0] == 0
    assert exact.full is None
    monkeypatch.setattr(module, "EXACT_WORK", 0)
    found = spectra.noise_scale(problem, None)  # so few examples that their matrix is made whole
    ratio, other = found.simple.ratio, exact.simple.ratio
    assert ratio.numerator == pytest.approx(other.numerator, rel=1e-10)
    assert ratio.sampling == pytest.approx(other.sampling, rel=1e-10)
    assert (found.unit == "target") == (found.note is not None) == name.startswith("sequence")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["sequence, classes last", "transformer layer, tied head"])
def test_whole_sequences(name):
    """The covariance of the gradients of sequences, each M times its share in the mean loss over all targets."""
    case = BY_NAME[name]
    model, (inputs, targets) = case.model(), case.data()
    parameters = [p for p in model.parameters() if p.requires_grad]
    each = []
    for i in range(len(targets)):
        chosen = mapped(lambda x, i=i: x[i : i + 1], inputs)
        output = model(**chosen) if isinstance(chosen, dict) else model(chosen)
        each.append(
            parameters_to_vector(torch.autograd.grad(case.values(output, targets[i : i + 1]).sum(), parameters))
        )
    problem = case.problem()
    counted = [i for i in range(len(targets)) if (targets[i] != -100).any()]
    gradients = torch.stack(each)[counted] * len(counted) / problem.weight
    found = spectra.noise_scale(problem, by="item", population=True)
    g, c = gradients.mean(0), torch.cov(gradients.T, correction=0)
    assert (found.examples, found.unit, found.note) == (len(counted), "item", None)
    assert torch.allclose(g, spectra.mean_gradient(problem), rtol=1e-8)
    assert found.simple.ratio.numerator == pytest.approx(c.trace().item(), rel=1e-9)
    assert found.simple.ratio.denominator == pytest.approx((g @ g).item(), rel=1e-9)
    hessian = Curvature(problem, "hessian") @ torch.eye(problem.size).double()
    assert found.full.ratio.numerator == pytest.approx((hessian @ c).trace().item(), rel=1e-8, abs=1e-12)
    order = torch.arange(len(targets)).flip(0)
    sampled = [spectra.noise_scale(case.problem(order=some), by="item").full.ratio for some in (order, order.flip(0))]
    assert sampled[0].covariance == pytest.approx(sampled[1].covariance, rel=1e-7, abs=1e-14)


def test_random_vectors_tell_their_error(monkeypatch):
    x, y = floats(100, 3), labels(100, below=3)
    problem = Problem(network(8), CrossEntropy(), cut_batches(x, y, torch.arange(100), 100))
    gradients, _ = dense(problem, nn.functional.cross_entropy)
    c = torch.cov(gradients.T, correction=0)
    ggn = Curvature(problem, "ggn", check=False) @ torch.eye(problem.size).double()
    monkeypatch.setattr(module, "EXACT_WORK", 0)
    settings = {"population": True, "max_products": 12, "check": False}
    found = [spectra.noise_scale(problem, "ggn", seed=seed, **settings) for seed in range(4)]
    for part, expected in (("simple", c.trace()), ("full", (ggn @ c).trace())):
        ratios = [getattr(noise, part).ratio for noise in found]
        off = np.array([(ratio.numerator - expected.item()) / ratio.errors[0] for ratio in ratios])
        assert (np.abs(off) < 5).all()
        assert np.std(off) > 0.2
        assert all(0 < ratio.errors[0] < 0.6 * expected for ratio in ratios)
    again = spectra.noise_scale(problem, "ggn", seed=2, **settings)
    assert again.full.value == found[2].full.value != found[3].full.value


def test_fieller():
    """T / q with independent errors: closed form, and no upper end where q may be zero."""
    zero = np.zeros((2, 2))
    exact = Ratio(6.0, 2.0, zero, zero)
    assert (exact.value, exact.standard_error, exact.interval) == (3.0, 0.0, (3.0, 3.0))
    found = Ratio(6.0, 2.0, np.diag([0.04, 0.0]), np.diag([0.0, 0.01]))
    assert found.standard_error == pytest.approx(math.hypot(0.1, 0.15))
    assert found.sampling_error == pytest.approx(0.15)
    for r in found.interval:
        assert (6 - 2 * r) ** 2 == pytest.approx(1.96**2 * (0.04 + 0.01 * r**2), rel=1e-10)
    open_above = Ratio(6.0, 0.1, np.diag([0.04, 0.01]), zero)
    low, high = open_above.interval
    assert high == math.inf
    assert open_above.value is None
    assert (6 - 0.1 * low) ** 2 == pytest.approx(1.96**2 * (0.04 + 0.01 * low**2), rel=1e-10)
    assert Ratio(0.1, 0.1, np.diag([0.04, 0.01]), zero).interval == (0.0, math.inf)
    assert Ratio(1.0, 0.0, zero, zero).interval == (math.inf, math.inf)
    assert Ratio(0.0, 2.0, zero, zero).interval == (0.0, 0.0)  # no noise at all


def test_a_noise_scale_is_short_when_it_is_printed():
    found = spectra.noise_scale(classifier(), population=True)
    parts = f"simple {found.simple}, full (hessian) {found.full}; of 12 examples in {found.products} products"
    assert repr(found) == f"Noise({parts})"


def test_refusals():
    with pytest.raises(SpectraError, match="a covariance needs two examples or more, got 1"):
        spectra.noise_scale(regression(1, 0))
    with pytest.raises(SpectraError, match="`name` fisher-empirical: is not a second derivative"):
        spectra.noise_scale(classifier(), "fisher-empirical")
    with pytest.raises(SpectraError, match="`by` 'token': expected one of example, item"):
        spectra.noise_scale(classifier(), by="token")
    with pytest.raises(SpectraError, match=r"`problem`: expected a Problem, .*, got Sequential"):
        spectra.noise_scale(network())
    with pytest.raises(SpectraError, match="`max_products` 3: expected an integer of 4 or more"):
        spectra.noise_scale(classifier(), max_products=3)
    loss = CustomLoss(lambda output, target: (output - output.mean(0)).square().sum() / len(output))
    x = floats(6, 3)
    with pytest.raises(SpectraError, match="no gradients of their own"):
        spectra.noise_scale(Problem(network(), loss, cut_batches(x, x, torch.arange(6), 6)))
