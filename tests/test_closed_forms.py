"""Matrices with a known answer, so that autograd is not checked against autograd."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from networks import BY_NAME, DEVICES, SOME, floats, labels, name_of
from torch import nn

from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.keyed_uniforms import uniforms
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.krylov.dense import dense_matrix
from spectra.problem.batch import Batch
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.problem.problem import Problem

pytestmark = pytest.mark.usefixtures("batches_as_given")

N, D, C = 20, 4, 3
COVARIANCE = "gradient-covariance"
X = floats(N, D)


def problem(model, loss, targets, inputs=X, device="cpu", **settings) -> Problem:
    """In batches of 8, 8 and the rest."""
    parts = torch.arange(len(inputs)).split(8)
    batches = [Batch(inputs[p].to(device), targets[p].to(device), p.to(device)) for p in parts]
    return Problem(model.double().to(device).eval(), loss, batches, **settings)


def matrix(name, *args, **kwargs):
    return dense_matrix(Curvature(problem(*args, **kwargs), name))


def linear(outputs: int, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(D, outputs, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(0 * layer.weight if zero else floats(outputs, D))
    return layer


def assert_close(found, expected, tolerance=1e-12):
    assert (found.cpu() - expected).abs().max() <= tolerance * max(expected.abs().max(), 1e-300)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_linear_regression_is_the_second_moment_of_the_inputs(name, outputs, device):
    """H = G = F = (2 / (N K)) I_K (x) X'X."""
    found = matrix(name, linear(outputs), MeanSquaredError(), floats(N, outputs), device=device)
    assert_close(found, torch.kron(torch.eye(outputs).double(), 2 / (N * outputs) * X.T @ X))


FIRST_USE = """
import sys
sys.path.insert(0, {tests!r})
from test_closed_forms import MeanSquaredError, N, floats, linear, matrix
matrix("ggn", linear(1), MeanSquaredError(), floats(N, 1), device={device!r})
"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_matrix_product_is_the_first_thing_that_autograd_does_in_a_process(device):
    """On CUDA, PyTorch warns where autograd's thread has no context yet; no warning may reach a user."""
    script = FIRST_USE.format(tests=str(Path(__file__).parent), device=device)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_softmax_regression_at_zero_has_each_eigenvalue_classes_minus_one_times(name):
    """{lambda_i(X'X/N)/C, each C - 1 times} and d zeros."""
    values = torch.linalg.eigvalsh(X.T @ X / N) / C
    expected = torch.cat([torch.zeros(D), values.repeat_interleave(C - 1)])
    found = matrix(name, linear(C, zero=True), CrossEntropy(), labels(N, below=C))
    assert_close(torch.linalg.eigvalsh(found), expected.double())


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_softmax_regression_is_the_sum_of_kronecker_products(name):
    """(1/N) sum (diag p - p p') (x) x x'."""
    model = linear(C)
    p = (X @ model.weight.detach().T).softmax(dim=1)
    expected = sum(torch.kron(q.diag() - q.outer(q), x.outer(x)) for q, x in zip(p, X, strict=True)) / N
    assert_close(matrix(name, model, CrossEntropy(), labels(N, below=C)), expected)


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_logistic_regression_with_weight_decay(name):
    """X' diag(sigma (1 - sigma)) X / N + alpha I."""
    model, alpha = linear(1), 0.37
    sigma = (X @ model.weight.detach().T).sigmoid()
    expected = X.T @ (sigma * (1 - sigma) * X) / N + alpha * torch.eye(D).double()
    targets = labels(N, 1, below=2).double()
    assert_close(matrix(name, model, BinaryCrossEntropy(), targets, weight_decay=alpha), expected)


def gradient_matrices(gradients):
    """What the gradients (N, n) of single examples make, in batches of 8, 8 and 4."""
    count = len(gradients)
    return {
        "fisher-empirical": gradients.T @ gradients / count,
        "gradient-covariance": torch.cov(gradients.T, correction=0),
        "fisher-batch": sum(len(b) / count * b.mean(dim=0).outer(b.mean(dim=0)) for b in gradients.split(8)),
    }


GRADIENTS = [name for name in MATRICES if definition(name).loss_power == 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_linear_regression(name, device):
    """g_i = (2 / K) (W x_i - y_i) (x) x_i."""
    model, targets = linear(3), floats(N, 3)
    errors = X @ model.weight.detach().T - targets
    gradients = torch.einsum("ik,id->ikd", 2 / 3 * errors, X).flatten(1)
    found = matrix(name, model, MeanSquaredError(), targets, device=device)
    assert_close(found, gradient_matrices(gradients)[name])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_logistic_regression(name):
    """g_i = (sigma_i - y_i) x_i."""
    model, targets = linear(1), labels(N, 1, below=2).double()
    gradients = ((X @ model.weight.detach().T).sigmoid() - targets) * X
    found = matrix(name, model, BinaryCrossEntropy(), targets)
    assert_close(found, gradient_matrices(gradients)[name])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_softmax_regression_with_class_weights_and_ignored_targets(name):
    """g_i = (N w_i / sum w) (p_i - e_i) (x) x_i for the N examples that count; batches have 3, 6 and 4 of them."""
    model, targets, weights = linear(C), labels(N, below=C), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    targets[torch.arange(N) % 3 == 0] = -100
    kept = targets >= 0
    own = weights[targets[kept]]
    errors = (X @ model.weight.detach().T).softmax(dim=1)[kept] - torch.eye(C).double()[targets[kept]]
    scaled = (kept.sum() * own / own.sum())[:, None] * errors
    gradients = torch.einsum("ik,id->ikd", scaled, X[kept]).flatten(1)
    total, counts = 0, [int(part.sum()) for part in kept.split(8)]
    for part in gradients.split(counts):
        total = total + len(part) / len(gradients) * part.mean(dim=0).outer(part.mean(dim=0))
    expected = gradient_matrices(gradients) | {"fisher-batch": total}
    assert_close(matrix(name, model, CrossEntropy(weights), targets), expected[name])


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_empirical_fisher_is_covariance_and_mean_and_the_batch_fisher_of_single_examples(case):
    """F = C + g g'; batches of one example give F, one batch of all gives g g'."""
    one, all_together = case.problem(sizes=7 * [1]), case.problem(sizes=(7,))
    g = mean_gradient(one)
    fisher, covariance = (dense_matrix(Curvature(one, name)) for name in ("fisher-empirical", "gradient-covariance"))
    assert_close(covariance + g.outer(g), fisher)
    assert_close(dense_matrix(Curvature(all_together, "fisher-batch")), g.outer(g))
    assert_close(dense_matrix(Curvature(one, "fisher-batch")), fisher)


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_mean_gradient_is_what_backward_leaves_for_the_mean_loss(case):
    model, (inputs, targets) = case.model(), case.data()
    case.mean(model(inputs), targets).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert_close(mean_gradient(case.problem()), expected)


def test_mean_of_the_batch_fisher_over_all_splits():
    """Drawn without replacement: g g' + sum over batches of (1/N) (N - |b|) / (N - 1) times the covariance."""
    case, sizes = BY_NAME["mlp"], (2, 2, 1)
    case = replace(case, inputs=case.inputs[:5], targets=case.targets[:5])
    orders = [torch.tensor(order) for order in permutations(range(5)) if order[0] < order[1] and order[2] < order[3]]
    found = [dense_matrix(Curvature(case.problem(sizes, order), "fisher-batch")) for order in orders]
    g, covariance = mean_gradient(case.problem(sizes)), dense_matrix(Curvature(case.problem(sizes), COVARIANCE))
    factor = sum((5 - size) / (5 - 1) / 5 for size in sizes)
    assert len(orders) == 30
    assert_close(sum(found) / 30, g.outer(g) + factor * covariance)


@pytest.mark.parametrize("name", [name for name in MATRICES if name != COVARIANCE])
def test_scalar_deep_linear_network(name):
    """L = (w1 w2 x - y)^2, e = w1 w2 x - y: H = 2x [[w2^2 x, w1 w2 x + e], [., w1^2 x]]."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    w1, w2, x, y = 0.7, -1.3, 2.0, 0.4
    with torch.no_grad():
        model[0].weight.fill_(w1)
        model[1].weight.fill_(w2)
    slope, error = torch.tensor([w2 * x, w1 * x], dtype=torch.float64), w1 * w2 * x - y
    gauss_newton = 2 * slope.outer(slope)
    draw = MeanSquaredError().draw(torch.zeros(1, 1).double(), uniforms(0, torch.zeros(1).long(), 1, 0)).item()
    expected = {
        "hessian": gauss_newton + 2 * error * x * (1 - torch.eye(2).double()),
        "ggn": gauss_newton,
        "fisher": gauss_newton,
        "fisher-mc": draw**2 * slope.outer(slope),
        "fisher-empirical": 4 * error**2 * slope.outer(slope),
        "fisher-batch": 4 * error**2 * slope.outer(slope),
    }
    one = torch.ones(1, 1).double()
    assert_close(matrix(name, model, MeanSquaredError(), y * one, x * one), expected[name])


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
def test_a_loss_of_ones_own_for_which_the_answer_is_known(name):
    """l = exp(f), f = w'x: H = G = mean of exp(f) x x', and exp(2 f) x x' for the empirical Fisher."""
    model = linear(1)
    f = (X @ model.weight.detach().T)[:, 0]
    weights = f.exp() ** (2 if name == "fisher-empirical" else 1)
    own = CustomLoss(lambda output, targets: output.exp())
    assert_close(matrix(name, model, own, torch.zeros(N)), X.T @ (weights[:, None] * X) / N)


def test_hessian_is_the_ggn_where_nothing_is_left_to_fit():
    case = BY_NAME["mse"]
    model = case.model()
    targets = model(X[:, :3]).detach()
    hessian, ggn = (matrix(name, model, MeanSquaredError(), targets, X[:, :3]) for name in ("hessian", "ggn"))
    assert_close(hessian, ggn)


def test_fisher_by_backward_passes_over_every_label():
    """(1/N) sum_i sum_c p_c g_c g_c', where g_c is what loss.backward() leaves for the label c."""
    case = BY_NAME["mlp"]
    model, (inputs, _) = case.model(), case.data()
    expected = 0
    for x in inputs:
        for label in range(3):
            model.zero_grad()
            loss = nn.CrossEntropyLoss()(model(x[None]), torch.tensor([label]))
            loss.backward()
            g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            expected = expected + math.exp(-loss.item()) * g.outer(g) / len(inputs)
    assert_close(dense_matrix(Curvature(case.problem(), "fisher")), expected)


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_trace_of_the_empirical_fisher_is_the_mean_squared_gradient(case):
    """tr = (1/N) sum |g_i|^2, and g_i is what backward() leaves for the example alone."""
    model, (inputs, targets) = case.model(), case.data()
    count = (targets != -100).sum() if case.kind == "cross_entropy" else len(targets)
    weights = case.options.get("weight", torch.ones(3))
    total = weights[targets[targets != -100]].sum() if case.kind == "cross_entropy" else count
    squares = 0
    for x, y in zip(inputs, targets, strict=True):
        model.zero_grad()
        (count / total * case.values(model(x[None]), y[None]).mean()).backward()
        squares = squares + sum((p.grad**2).sum() for p in model.parameters())
    assert_close(dense_matrix(Curvature(case.problem(), "fisher-empirical")).trace(), squares / count)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("ggn", 7 * 2),
        ("fisher", 7 * 2),
        ("fisher-mc", 7 * 1),
        ("fisher-empirical", 7),
        ("gradient-covariance", 7 - 1),
        ("fisher-batch", 2),
    ],
)
def test_rank_is_at_most_examples_times_classes_less_one(name, limit):
    values = torch.linalg.eigvalsh(dense_matrix(Curvature(BY_NAME["mlp"].problem(), name)))
    assert values.min() > -1e-14 * values.max()
    assert (values > 1e-12 * values.max()).sum() == limit


# Chance: the labels of fisher-mc.

DISTRIBUTIONS = [CrossEntropy(), MeanSquaredError(), BinaryCrossEntropy()]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("loss", DISTRIBUTIONS, ids=lambda loss: type(loss).__name__)
def test_monte_carlo_fisher_nears_the_fisher_as_the_root_of_the_samples(loss):
    case = {"CrossEntropy": "mlp", "MeanSquaredError": "mse", "BinaryCrossEntropy": "bce"}[type(loss).__name__]
    inputs, targets = BY_NAME[case].data()
    model = nn.Linear(3, 3).double()

    def error(samples: int) -> float:
        found = [matrix("fisher-mc", model, loss, targets, inputs, mc_samples=samples, seed=seed) for seed in range(12)]
        return (sum((f - fisher).square().sum() for f in found) / len(found)).sqrt().item()

    fisher = matrix("fisher", model, loss, targets, inputs)
    few, many = error(4), error(36)
    assert 2.2 < few / many < 4.1  # 3, give or take what 12 seeds leave open
    assert many < 0.4 * fisher.norm()


@pytest.mark.parametrize("loss", DISTRIBUTIONS, ids=lambda loss: type(loss).__name__)
def test_draws_have_mean_zero_and_the_expected_covariance(loss):
    count = 40_000
    row = torch.tensor([0.3, -1.2, 1.9], dtype=torch.float64)
    draws = loss.draw(row.expand(count, 3), uniforms(3, torch.arange(count), count, 0))
    covariance = loss.expected(row.expand(3, 3), torch.eye(3).double())
    spread = 5 * (covariance.diag() / count).sqrt()
    assert (draws.mean(dim=0).abs() < spread).all()
    assert (draws.T @ draws / count - covariance).abs().max() < 5 * covariance.max() * (3 / count) ** 0.5


def test_uniforms_are_uniform_and_independent():
    """Over examples, positions, draws, samples and seeds: the mean, the variance, and no correlation."""
    count = 20_000

    def numbers(seed=0, first=0, sample=0, draw=0):
        return uniforms(seed, torch.arange(first, first + count // 2), count, sample)(draw)

    base = numbers()
    assert 0 < base.min() < base.max() < 1
    assert abs(base.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(base.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    others = [base.roll(1), base.roll(2), numbers(seed=1), numbers(seed=-1), numbers(sample=1), numbers(draw=1)]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1]) < 5 * count**-0.5
    assert torch.equal(numbers(first=7)[:-14], base[14:])  # they belong to the example, wherever it stands
