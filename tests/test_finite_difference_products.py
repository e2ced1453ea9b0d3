"""Products by differences of gradients: exact on a quadratic, off by a known truncation on a quartic, by the right
powers of the step on a network; and what comes of them has that error in it.
"""

import json
import math
import shlex
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import seeded
from networks import BY_NAME, DEVICES
from torch import nn

import spectra
from spectra.cli import run
from spectra.curvature.finite_differences import ORDERS, FiniteDifferences, best_step
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.correction import with_correction
from spectra.krylov.dense import dense_eigenpairs
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.hutch_plus_plus import hutch_plus_plus
from spectra.krylov.hutchinson import hutchinson
from spectra.krylov.power import power_iteration
from spectra.krylov.streams import stream
from spectra.krylov.xtrace import xtrace
from spectra.operator import Counting, in_ieee, random_vectors, reference
from spectra.problem.losses import CustomLoss, MeanSquaredError
from spectra.product_checks import check_operator, measure_noise
from spectra.resume.journal import CheckpointedOperator, Journal

SMOOTH = ["mlp", "convolution, BatchNorm", "LayerNorm, dropout", "fused attention", "tied weights", "mse"]
FORMS = [*ORDERS]


def problem_of(model, loss, x, y=None, sizes=None, **options):
    y = torch.zeros(len(x)) if y is None else y
    batches = spectra.cut_batches(x, y, torch.arange(len(x)), sizes or len(x))
    return spectra.Problem(model, loss, batches, **options)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def dense(problem):
    """The exact Hessian (n, n), checked in its own tests."""
    found = Curvature(problem, "hessian", products=0) @ torch.eye(problem.size, dtype=problem.dtype)
    return (found + found.T) / 2


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


# The products


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [None, 0.3])
@pytest.mark.parametrize("form", FORMS)
def test_a_quadratic_loss_has_no_truncation(form, step, device):
    """The Hessian of a linear model under mse is 2 X'X / NK for each of K outputs, at whatever step."""
    model = nn.Linear(5, 3, bias=False).double()
    x, y = drawn(20, 5), drawn(20, 3, seed=2)
    problem = problem_of(model.to(device), MeanSquaredError(), x.to(device), y.to(device), 7, weight_decay=0.2)
    matrix = FiniteDifferences(problem, form, step)
    wanted = torch.kron(torch.eye(3, dtype=torch.float64), 2 * x.T @ x / 60) + 0.2 * torch.eye(15, dtype=torch.float64)
    vectors = drawn(15, 4, seed=3).to(device)
    allowed = 1e-13 if step else 100 * torch.finfo(torch.float64).eps / matrix.step
    assert relative((matrix @ vectors).cpu(), wanted @ vectors.cpu()) < allowed


class Quartic(nn.Module):
    """The loss is the mean over rows a of sum_j a_j w_j^4 / 24, whose gradient is a cubic."""

    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(drawn(n, seed=4))

    def forward(self, a):
        return (a * self.w**4 / 24).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("step", [0.1, 1e-3])
@pytest.mark.parametrize("form", FORMS)
def test_the_truncation_of_a_cubic_gradient_is_known(form, step):
    model, a = Quartic(6), drawn(9, 6)
    problem = problem_of(model, CustomLoss(lambda output, target: output[:, 0]), a)
    matrix = FiniteDifferences(problem, form, step)
    a, w, v = a.mean(dim=0), model.w.detach(), drawn(6, seed=5)
    r = step * w.norm() / v.norm()
    truncation = r**2 * a * v**3 / 6 + (r * a * w * v**2 / 2 if form == "forward" else 0)
    off = (matrix @ v) - a * w**2 * v / 2
    assert relative(off, truncation) < 1e-6


def smooth():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return problem_of(model, spectra.CrossEntropy(), drawn(40, 6), torch.randint(4, (40,), generator=seeded(1)))


def errors(problem, form, steps):
    """The error over |H v|, in the mean over eight vectors, for each step."""
    hessian, vectors = dense(problem), drawn(problem.size, 8, seed=7)
    exact = hessian @ vectors
    return [relative(FiniteDifferences(problem, form, step) @ vectors, exact) for step in steps]


@pytest.mark.parametrize("form", FORMS)
def test_errors_fall_and_rise_with_the_step_as_theory_has_it(form):
    problem, order = smooth(), ORDERS[form]
    longer, shorter = errors(problem, form, [2e-3, 1e-3])
    assert math.log2(longer / shorter) == pytest.approx(order, abs=0.05)
    longer, shorter = errors(problem, form, [1e-10, 1e-12])
    assert math.log10(shorter / longer) / 2 == pytest.approx(1, abs=0.15)
    best, *others = errors(problem, form, [best_step(form, torch.float64), 1e-3, 1e-12])
    assert best < 20 * torch.finfo(torch.float64).eps ** (order / (order + 1))
    assert best < min(others)


@pytest.mark.parametrize("form", FORMS)
def test_products_are_proportional_to_their_vectors(form):
    matrix = FiniteDifferences(smooth(), form)
    vector = drawn(matrix.shape[0])
    torch.testing.assert_close(matrix @ (2**20 * vector), 2**20 * (matrix @ vector), rtol=1e-12, atol=0)
    assert not (matrix @ torch.zeros_like(vector)).any()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMOOTH)
def test_columns_and_batches_change_nothing(name, form):
    """Several batches, tied and frozen parameters, buffers, weight decay."""
    problem = BY_NAME[name].problem()
    frozen = dict([*problem.parameters.items()][1:])
    given = spectra.Problem(problem.model, problem.loss, problem.batches, frozen, weight_decay=0.3)
    matrix = FiniteDifferences(given, form)
    vectors = drawn(given.size, 3)
    together = matrix @ vectors
    singly = torch.stack([matrix @ column for column in vectors.T], dim=1)
    assert torch.equal(together, singly)
    assert relative(together, dense(given) @ vectors) < (1e-8 if form == "central" else 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_block_is_that_of_its_own_parameters(form):
    problem = smooth()
    matrix = FiniteDifferences(problem, form)
    vector = drawn(32, seed=2)
    (block,) = matrix.times_blocks([(slice(2, 3), vector)])
    assert relative(block, dense(problem)[56:88, 56:88] @ vector) < 1e-5


def test_memory_is_kept_within():
    problem = smooth()
    least = FiniteDifferences(problem)
    least.prepare()
    matrix = FiniteDifferences(problem, "forward", memory=4 * least.peak_bytes)
    exact = reference(matrix)
    vector = drawn(problem.size)
    assert relative(matrix @ vector, exact @ vector) < 1e-5
    assert matrix.peak_bytes <= 4 * least.peak_bytes
    with pytest.raises(SpectraError, match=r"`memory`: a product of one .* takes .* bytes, more than 10;"):
        FiniteDifferences(problem, memory=10) @ vector


# The model


class Interrupting(nn.Module):
    """A network whose forward is interrupted at the call that `left` counts down to."""

    def __init__(self, error):
        super().__init__()
        self.layer, self.error, self.left = nn.Linear(4, 3), error, math.inf

    def forward(self, x):
        self.left -= 1
        if self.left <= 0:
            raise self.error
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("no")], ids=str)
def test_parameters_are_left_as_they_were(error):
    model = Interrupting(error).double()
    problem = problem_of(model, spectra.CrossEntropy(), drawn(9, 4), torch.arange(9) % 3)
    matrix = FiniteDifferences(problem)
    vector = drawn(problem.size)
    matrix @ vector
    before = [(p, p.data_ptr(), p._version, p.detach().clone()) for p in model.parameters()]
    if error is not None:
        model.left = 2
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else SpectraError):
            matrix @ vector
        assert model.left == 0  # so that it was between the two gradients
    else:
        eigenpairs(matrix, 2)
    for p, (same, place, version, values) in zip(model.parameters(), before, strict=True):
        assert p is same
        assert (p.data_ptr(), p._version) == (place, version)
        assert torch.equal(p, values)


# What comes of them


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "LayerNorm, dropout"])
def test_rounding_alone_is_no_reason_to_refuse(name, form, seed):
    matrix = FiniteDifferences(BY_NAME[name].problem(dtype=torch.float32), form)
    assert 0 < check_operator(matrix, seeded(seed)) < 0.1
    counted = Counting(matrix)
    assert in_ieee(counted) is counted  # methods take products as they are
    noise = measure_noise(counted, seeded(seed))
    assert (counted.products, counted.ieee_products) == (6, 3)
    fresh = torch.randn(matrix.shape[0], 8, generator=seeded(9))
    off = (matrix @ fresh) - (Curvature(matrix.problem, "hessian") @ fresh)
    assert (off.norm(dim=0) <= 4 * noise.norm * fresh.norm(dim=0)).all()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("solve", [eigenpairs, dense_eigenpairs])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [None, 3e-2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "mse"])
def test_eigenvalues_are_off_by_no_more_than_is_said(name, form, step, dtype, solve):
    """At a long step the truncation is far above what the search converges to."""
    hessian = dense(BY_NAME[name].problem())
    counted = Counting(FiniteDifferences(BY_NAME[name].problem(dtype=dtype), form, step))
    pairs = solve(counted, 3, generator=seeded(1), max_products=200)
    vectors = pairs.vectors.double()
    left = (hessian @ vectors.T - vectors.T * pairs.values).norm(dim=0)
    rounding = 1e-5 * hessian.norm() if dtype == torch.float32 else 1e-12
    assert (left <= pairs.residuals + rounding).all()
    off = (torch.linalg.eigvalsh(hessian)[None] - pairs.values[:, None]).abs().min(dim=1).values
    assert (off <= pairs.residuals + rounding).all()
    assert torch.equal(pairs.error_estimates, pairs.residuals)
    assert counted.products == pairs.products <= 200
    assert counted.ieee_products == 3
    if step:
        assert pairs.residuals.max() > 1e-4 * pairs.values.abs().max()


def test_power_iteration_has_residuals_of_exact_products_too():
    problem = BY_NAME["mse"].problem()
    pairs = power_iteration(FiniteDifferences(problem, step=3e-2), 1, generator=seeded(1), max_products=150)
    (vector,) = pairs.vectors
    left = (dense(problem) @ vector - vector * pairs.values).norm().item()
    assert pairs.residuals.item() == pytest.approx(left, rel=1e-6)
    assert left > 1e-4


def test_what_a_search_has_excluded_is_widened_by_the_error():
    """A diagonal Hessian, whose third and fourth eigenvalues are nearer to each other than the truncation is long."""
    a = torch.cat([torch.tensor([9.0, 7.0, 5.0, 4.999999]), torch.linspace(-1, 1, 200)]).double()

    class Diagonal(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(len(a), dtype=torch.float64))

        def forward(self, x):
            w = self.w - 1
            return x * (a * (w**2 / 2 + w**3)).sum() + 0 * self.w.sum()

    problem = problem_of(Diagonal(), CustomLoss(lambda output, target: output[:, 0]), torch.ones(4, 1).double())
    for k, complete in ((2, True), (3, False)):
        pairs = eigenpairs(FiniteDifferences(problem, "forward", 1e-4), k, generator=seeded(1), largest_basis=60)
        assert pairs.complete is complete


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("method", "share"), [(xtrace, 1 / 2), (hutch_plus_plus, 1 / 3)])
def test_the_truncation_is_in_the_error_of_a_trace(method, share, form):
    """So many probes leave nothing to chance."""
    problem = smooth()
    found = with_correction(method, share)(
        FiniteDifferences(problem, form, 5e-2), rtol=0.05, probes=3 * problem.size, generator=seeded(1)
    )
    plain = method(Curvature(problem, "hessian"), rtol=0.05, probes=3 * problem.size, generator=seeded(1))
    truth = dense(problem).trace().item()
    assert plain.standard_error < 1e-6 * truth
    assert 1e-4 * truth < abs(found.value - truth) < found.standard_error


class Kink(nn.Module):
    """The Hessian is the identity; the first unit vector alone is displaced so far that it crosses a kink."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 40, dtype=torch.float64))
        length = best_step("central", torch.float64) * self.w.detach().norm().item()
        self.kink = self.w[0].item() + 0.5 * length

    def forward(self, x):
        return (0.5 * self.w.square().sum() + 0.01 * torch.relu(self.w[0] - self.kink)) * x


def test_a_kink_that_one_unit_vector_crosses_is_in_the_error_of_a_trace():
    problem = problem_of(Kink(), CustomLoss(lambda f, y: f.flatten()), torch.ones(1, 1, dtype=torch.float64))
    for most in (None, 60):  # the second leaves too few products to compare all with exact ones
        operator = FiniteDifferences(problem)
        found = with_correction(xtrace, 1 / 2)(operator, rtol=0.01, generator=seeded(), max_products=most)
        assert abs(found.value - 40) > 100
        assert abs(found.value - 40) <= 1.001 * found.standard_error
        assert not found.converged


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_by_signs_is_off_by_no_more_than_its_error(form):
    problem = smooth()
    matrix = FiniteDifferences(problem, form)
    found = with_correction(hutchinson)(matrix, rtol=0.2, generator=seeded(1), max_products=200)
    assert found.converged
    assert abs(found.value - dense(problem).trace().item()) < 3 * found.standard_error


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    matrix = FiniteDifferences(smooth())

    class Ending(Counting):
        def __matmul__(self, vectors):
            if self.products == 12:
                raise KeyboardInterrupt
            return super().__matmul__(vectors)

    def answer(operator):
        counted = Counting(operator)
        generator = seeded(1)
        check_operator(counted, generator)
        counted.noise = measure_noise(counted, generator)
        return eigenpairs(counted, 3, generator=generator), counted

    whole, counted = answer(matrix)
    with closing(Journal(tmp_path / "hessian")) as journal, pytest.raises(KeyboardInterrupt):
        answer(CheckpointedOperator(Ending(matrix), journal))
    made = Counting(matrix)
    with closing(Journal(tmp_path / "hessian")) as journal:
        again, told = answer(CheckpointedOperator(made, journal))
    assert torch.equal(again.values, whole.values)
    assert torch.equal(again.residuals, whole.residuals)
    assert (told.products, told.ieee_products) == (counted.products, counted.ieee_products)
    assert made.products < counted.products - 5


# Where there are no exact products


class Once(torch.autograd.Function):
    """tanh with a derivative that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (1 - torch.tanh(x) ** 2)


class Detached(torch.autograd.Function):
    """tanh whose second derivative is wrong, since its first is made of a value outside the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = torch.tanh(x.detach())
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * (1 - ctx.y**2)


class Crooked(torch.autograd.Function):
    """tanh whose first derivative is wrong already: what is differenced then is the derivative of no function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (1 - torch.tanh(x) ** 2) * (1 + torch.sin(5 * x) / 3)


class Activation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_activation(function, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Activation(function), nn.Linear(8, 4)).to(dtype)
    return problem_of(model, spectra.CrossEntropy(), drawn(40, 6).to(dtype), torch.arange(40) % 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("function", "why"),
    [(Once.apply, "model: a layer has no second derivative"), (Detached.apply, "autograd gives a wrong derivative")],
)
def test_errors_are_estimated_where_no_exact_product_is(function, why, form):
    matrix = FiniteDifferences(with_activation(function), form, 1e-2)
    found = measure_noise(matrix, seeded(1))
    assert why in matrix.not_exact
    assert "`" not in matrix.not_exact
    exact = dense(with_activation(torch.tanh))
    vector = random_vectors(matrix, 1, seeded(1))[0]
    truth = relative(matrix @ vector, exact @ vector)
    assert truth <= found.random <= 4 * truth
    pairs = eigenpairs(matrix, 3, generator=seeded(1))
    left = (exact @ pairs.vectors.T - pairs.vectors.T * pairs.values).norm(dim=0)
    assert (left <= pairs.residuals).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_of_no_function_is_refused(form, dtype):
    matrix = FiniteDifferences(with_activation(Crooked.apply, dtype), form)
    with pytest.raises(SpectraError, match="the matrix is not symmetric"):
        check_operator(matrix, seeded())


@pytest.mark.parametrize("form", FORMS)
def test_kinks_are_told_of_and_refused_where_they_are_all(form):
    problem = with_activation(torch.abs)
    few, many = (FiniteDifferences(problem, form, step) for step in (1e-6, 0.03))
    assert measure_noise(few, seeded()).relative < 1e-3
    with pytest.raises(SpectraError, match=r"`difference_step` 0.03: products by .* use a smaller step if"):
        measure_noise(many, seeded())


# The command line

NET = """
import torch

def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

class Layer(torch.nn.Module):
    def forward(self, x):
        return Once.apply(x)

def once():
    model = mlp()
    model[2] = Layer()
    return model
"""
PROBLEM = "--model net.py:mlp --data digits --samples 60 --device cpu"
BY_DIFFERENCES = "--products finite-difference"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path


def printed(line, capfd, status=0):
    capfd.readouterr()
    assert run(shlex.split(line)) == status
    return json.loads(capfd.readouterr().out)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("products", ["finite-difference", "forward-difference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_figure_in_the_result_is_that_of_one_random_product(folder, capfd, products, dtype):
    found = printed(f"eig {PROBLEM} -k 3 --tol 0.01 --dtype {dtype} --products {products} --out a --json", capfd)
    (result,) = found["results"]
    told = result["finite_difference"]
    form = {"finite-difference": "central", "forward-difference": "forward"}[products]
    assert (told["form"], told["estimated"], told["not_exact"]) == (form, False, None)
    assert told["step"] == best_step(form, getattr(torch, dtype))

    problem = spectra.load_problem(
        model="net.py:mlp", loss="cross_entropy", data="digits", samples=60, dtype=dtype, device="cpu"
    ).problem
    weights = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])
    assert told["length"] == pytest.approx(told["step"] * weights.norm().item(), rel=1e-5)
    generator = stream(0)
    random_vectors(FiniteDifferences(problem), 2, generator)  # that the check of symmetry takes
    v = random_vectors(FiniteDifferences(problem), 1, generator)[0]
    r = told["length"] / v.norm().item()

    def slopes(step):
        torch.nn.utils.vector_to_parameters(weights + step * v, problem.model.parameters())
        gradient = spectra.mean_gradient(problem)
        torch.nn.utils.vector_to_parameters(weights.clone(), problem.model.parameters())
        return gradient

    exact = Curvature(problem, "hessian") @ v
    ends = (slopes(r), slopes(-r), 2 * r) if form == "central" else (slopes(r), slopes(0.0), r)
    error = relative((ends[0] - ends[1]) / ends[2], exact)
    assert told["error"] == pytest.approx(error, rel=0.3)  # rounding is all that there is to compare

    assert result["ieee_products"] == 3 + 3
    assert told["error"] <= result["noise"] < 1e-2
    again = printed("eig --config a --trust --json", capfd)
    assert again["results"][0]["eigenvalues"] == result["eigenvalues"]
    assert again["results"][0]["finite_difference"] == told
    assert spectra.load_result("a").results[0].finite_difference.error == told["error"]
    capfd.readouterr()
    assert run(shlex.split(f"eig {PROBLEM} -k 3 --tol 0.01 --dtype {dtype} --products {products}")) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert f"{result['products']} (6 exact)" in out
    assert f"{form} differences with step {told['step']:.2g} have a relative error of {told['error']:.1g}" in out


def test_a_longer_step_stands_in_the_result_and_its_truncation_in_the_figure(folder, capfd):
    line = f"eig {PROBLEM} -k 2 --dtype float64 {BY_DIFFERENCES} --tol 0.5 --json"
    figures = []
    for step in ("0.02", "0.01"):
        (result,) = printed(f"{line} --difference-step {step}", capfd)["results"]
        assert result["finite_difference"]["step"] == float(step)
        figures.append(result["finite_difference"]["error"])
    assert figures[0] == pytest.approx(4 * figures[1], rel=0.05)


def test_traces_and_densities_hold_the_exact_ones(folder, capfd):
    (trace,) = printed(f"trace {PROBLEM} {BY_DIFFERENCES} --rtol 0.1 --json", capfd)["results"]
    (exact,) = printed(f"trace {PROBLEM} --method dense --dtype float64 --json", capfd)["results"]
    assert "finite_difference" not in exact
    assert abs(trace["trace"] - exact["trace"]) < 4 * trace["standard_error"] < 0.4 * abs(exact["trace"])
    assert trace["finite_difference"]["error"] < 1e-2
    (density,) = printed(f"density {PROBLEM} --probes 2 --steps 8 {BY_DIFFERENCES} --json", capfd)["results"]
    (plain,) = printed(f"density {PROBLEM} --probes 2 --steps 8 --json", capfd)["results"]
    assert density["noise_norm"] > 0
    assert density["finite_difference"]["form"] == "central"
    ends = [max(max(map(max, r["nodes"])), 0) for r in (density, plain)]
    assert abs(ends[0] - ends[1]) < 10 * density["noise_norm"] + 1e-3 * ends[1]


def test_eigenvectors_of_exact_products_are_known_to_differences(folder, capfd):
    """They are no further off than the products are, and what these make of them is in the error."""
    printed(f"eig {PROBLEM} -k 3 --tol 1e-6 --out a --json", capfd)
    (trace,) = printed(f"trace {PROBLEM} {BY_DIFFERENCES} --rtol 0.05 --deflate a --json", capfd)["results"]
    assert trace["projected_out"] == 3
    (exact,) = printed(f"trace {PROBLEM} --method dense --dtype float64 --json", capfd)["results"]
    assert abs(trace["trace"] - exact["trace"]) < 4 * trace["standard_error"]


def test_a_layer_without_second_derivative_is_no_obstacle(folder, capfd):
    once = PROBLEM.replace("mlp", "once")
    (result,) = printed(f"eig {once} -k 3 --dtype float64 {BY_DIFFERENCES} --json", capfd)["results"]
    told = result["finite_difference"]
    assert told["estimated"]
    assert "no second derivative" in told["not_exact"]
    (exact,) = printed(f"eig {PROBLEM} -k 3 --dtype float64 --method dense --json", capfd)["results"]
    for value, residual, wanted in zip(result["eigenvalues"], result["residuals"], exact["eigenvalues"], strict=True):
        assert abs(value - wanted) <= residual
    capfd.readouterr()
    assert run(shlex.split(f"eig {once} -k 3 {BY_DIFFERENCES}")) == 0
    assert "there are no exact products: model: a layer has" in " ".join(capfd.readouterr().out.split())
    assert run(shlex.split(f"eig {once} -k 3")) == 2
    assert "a layer has no second derivative" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"eig {BY_DIFFERENCES} --curvature ggn", "--products finite-difference: a difference of gradients is a"),
        ("eig --difference-step 0.1", "--difference-step 0.1: exact products do not use it"),
        (f"eig {BY_DIFFERENCES} --difference-step 0", "Invalid value for '--difference-step'"),
        (f"eig {BY_DIFFERENCES} --precision bf16", "--precision: needs exact products, not finite-difference"),
        (f"density {BY_DIFFERENCES} --compile", "--compile: needs exact products, not finite-difference"),
        (f"eig {BY_DIFFERENCES} --max-products 10", "--max-products 10: products by --products finite-difference are"),
        (f"trace {BY_DIFFERENCES} --method dense", "--method dense: needs exact products, but --products"),
        (f"eig {BY_DIFFERENCES} --difference-step 2", "--difference-step 2: products by central differences are off"),
        ("compare --products finite-difference", "No such option"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(line, told, folder, capfd):
    command, options = line.split(" ", 1)
    assert run(shlex.split(f"{command} {PROBLEM} {options}")) == 2
    err = capfd.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_in_python(folder):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    data = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    result = spectra.eig(network, "cross_entropy", data, k=2, products="finite-difference", device="cpu")
    assert result.finite_difference.form == "central"
    assert result.converged
    with pytest.raises(SpectraError, match="`products` 'difference'"):
        spectra.eig(network, "cross_entropy", data, products="difference")
    with pytest.raises(SpectraError, match="`difference_step` -1"):
        spectra.trace(network, "cross_entropy", data, products="finite-difference", difference_step=-1)
