"""Products in lower precision: their stated noise holds, and what comes of them is as good as is said.

A noisy operator stands for a low precision whose noise is known; bfloat16 on the CPU is a real one.
"""

import json
import math
import shlex
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from helpers import Products, expected, known, matrix, seeded, uniform
from networks import BY_NAME
from pretend_device import OnDevice, PretendDevice

import spectra
from spectra.cli import run
from spectra.curvature.engine.precision import LowerPrecision, in_bfloat16
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.correction import with_corrected_diagonal, with_correction
from spectra.krylov.dense import dense_eigenpairs
from spectra.krylov.diagonal import hutchinson_diagonal, xdiag
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.hutch_plus_plus import hutch_plus_plus
from spectra.krylov.hutchinson import hutchinson
from spectra.krylov.power import power_iteration
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.xtrace import xtrace
from spectra.operator import Counting, Deflated, Shifted, in_ieee
from spectra.product_checks import check_operator, measure_noise
from spectra.resume.journal import CheckpointedOperator, Journal
from spectra.spectrum.curves import cumulative

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 is CUDA's")


@dataclass
class Noisy:
    """A matrix A whose products are A v + E A v, with A itself as `ieee`; both count the vectors that they multiply."""

    exact: torch.Tensor
    error: torch.Tensor
    made: dict = field(default_factory=lambda: {"ieee": 0, "noisy": 0})
    device = torch.device("cpu")

    @property
    def shape(self):
        return self.exact.shape

    @property
    def dtype(self):
        return self.exact.dtype

    @property
    def ieee(self):
        return Products(partial(self.multiply, "ieee"), len(self.exact), self.dtype)

    def multiply(self, how, vectors):
        self.made[how] += 1 if vectors.ndim == 1 else vectors.shape[1]
        return self.exact @ vectors

    def __matmul__(self, vectors):
        product = self.multiply("noisy", vectors)
        return product + self.error @ product


def noisy(given, noise, seed=0, bias=0.0, dtype=torch.float64):
    """Noise of that size, relative to products; asymmetric, as rounding is; with a part that has a sign."""
    n = given.n
    error = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64) * noise / n**0.5
    return Noisy(given.matrix.to(dtype, copy=True), (error + bias * torch.eye(n, dtype=torch.float64)).to(dtype))


# What is measured


@pytest.mark.parametrize("noise", [1e-4, 1e-2])
@pytest.mark.parametrize("name", ["network", "softmax", "decay", "flat"])
def test_the_noise_that_is_measured_is_that_of_fresh_vectors(name, noise):
    given = matrix(name)
    operator = Counting(noisy(given, noise))
    found = measure_noise(operator, seeded(1))
    assert (operator.products, operator.ieee_products) == (6, 3)
    fresh = torch.randn(given.n, 20, generator=seeded(2), dtype=torch.float64)
    off = (operator.operator @ fresh) - (given.matrix @ fresh)
    assert (off.norm(dim=0) <= 2 * found.relative * (given.matrix @ fresh).norm(dim=0)).all()
    size = torch.linalg.matrix_norm(operator.operator.error @ given.matrix, 2).item()
    assert size / 4 <= found.norm <= size


def test_a_noisy_matrix_is_checked_in_ieee():
    operator = Counting(noisy(matrix("network"), 0.05))
    assert check_operator(operator, seeded()) < 1e-12
    assert (operator.products, operator.ieee_products) == (3, 3)
    wrong = noisy(matrix("network"), 1e-3)
    wrong.exact[0, 5] += 1.0
    with pytest.raises(SpectraError, match="not symmetric"):
        check_operator(wrong, seeded())


@pytest.mark.parametrize("noise", [0.8, math.nan])
def test_products_that_tell_nothing_are_refused(noise):
    with pytest.raises(SpectraError, match="`precision`: products are off by"):
        measure_noise(noisy(matrix("flat"), noise), seeded())


def test_a_matrix_in_ieee_is_its_own_and_has_no_noise():
    plain = matrix("network").matrix
    for operator in (plain, Counting(plain), Shifted(Counting(plain), 1.0)):
        assert in_ieee(operator) is operator
        assert measure_noise(operator, seeded()).norm == 0


def test_wrappers_are_in_ieee_as_what_they_wrap_is():
    given = matrix("network")
    basis = torch.linalg.qr(torch.randn(given.n, 2, generator=seeded(), dtype=torch.float64)).Q.T.contiguous()
    operator = Counting(Shifted(Deflated(noisy(given, 0.1), basis), 0.5))
    projector = torch.eye(given.n, dtype=torch.float64) - basis.T @ basis
    vector = torch.randn(given.n, generator=seeded(3), dtype=torch.float64)
    wanted = projector @ (given.matrix @ (projector @ vector)) + 0.5 * vector
    torch.testing.assert_close(in_ieee(operator) @ vector, wanted)
    assert not torch.allclose(operator @ vector, wanted, rtol=1e-3)
    assert (operator.products, operator.ieee_products) == (2, 1)


# Eigenpairs


@pytest.mark.sampled(12)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize("noise", [5e-4, 1e-2])
@pytest.mark.parametrize("which", ["LM", "LA", "BE"])
@pytest.mark.parametrize("name", ["network", "softmax", "ghosts", "decay", "multiple top", "flat", "low rank"])
def test_polished_eigenpairs_are_those_of_the_matrix(name, which, noise, tolerance):
    given, k = matrix(name), 5
    if which == "BE" and name in ("decay", "low rank", "softmax", "ghosts"):
        k = 1  # the other end is a crowd at zero, below all noise
    operator = noisy(given, noise)
    counted = Counting(operator)
    pairs = eigenpairs(counted, k, which=which, tolerance=tolerance, generator=seeded(1))
    assert pairs.converged
    left = (given.matrix @ pairs.vectors.T - pairs.vectors.T * pairs.values).norm(dim=0)
    assert (left <= 1.001 * pairs.residuals + 1e-12).all()
    assert (pairs.residuals <= tolerance * pairs.values.abs().clamp(min=1e-9)).all()
    distance = (given.spectrum[None] - pairs.values[:, None]).abs().min(dim=1).values
    assert (distance <= pairs.residuals + 1e-12).all()
    wanted = expected(given.spectrum, k, which)
    gap = noise * given.size  # what noise may have put in another order
    assert ((pairs.values - wanted).abs() <= gap).all()
    if pairs.complete:
        assert ((pairs.values - wanted).abs() <= pairs.residuals + 1e-12).all()
    assert counted.products == pairs.products == sum(operator.made.values())
    assert counted.ieee_products == operator.made["ieee"]


@pytest.mark.parametrize(("noise", "most"), [(5e-4, 8), (1e-2, 16)])
def test_a_few_products_in_ieee_are_enough(noise, most):
    """In ieee alone the edge of a flat spectrum takes some 60; three of `most` measure the noise."""
    counted = Counting(noisy(known(torch.linspace(1, 3, 400)), noise))
    pairs = eigenpairs(counted, 4, generator=seeded(1))
    assert pairs.converged
    assert counted.ieee_products <= most + 3
    alone = Counting(in_ieee(counted.operator))
    assert eigenpairs(alone, 4, generator=seeded(1)).products > 2 * counted.ieee_products


@pytest.mark.parametrize("rest", [8, 120])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_to_be_complete_that_noise_may_hide(seed, rest):
    """The fourth and fifth eigenvalues are nearer to each other than the noise, which changes their order. Of a small
    matrix the search knows all eigenvalues, but for the noise.
    """
    given = known([9.0, 7.0, 5.0, 2.001, 2.0, *uniform(rest, -0.5, 0.5)])
    pairs = eigenpairs(noisy(given, 0.01, seed), 4, tolerance=1e-6, generator=seeded(seed))
    assert pairs.converged
    assert pairs.complete is not True
    clear = eigenpairs(noisy(given, 0.01, seed), 3, tolerance=1e-6, generator=seeded(seed))
    assert clear.complete
    torch.testing.assert_close(clear.values, torch.tensor([9.0, 7.0, 5.0], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [8, 12, 20, 30])
def test_a_budget_that_ends_early_leaves_residuals_that_hold(limit):
    given = matrix("flat")
    operator = noisy(given, 0.01)
    pairs = eigenpairs(operator, 3, tolerance=1e-8, max_products=limit, generator=seeded(1))
    assert sum(operator.made.values()) <= limit + 6
    assert not pairs.converged
    if len(pairs.values):
        left = (given.matrix @ pairs.vectors.T - pairs.vectors.T * pairs.values).norm(dim=0)
        assert (left <= 1.5 * pairs.residuals).all()


@pytest.mark.parametrize("largest", [0, 40])
def test_restarts_lose_nothing(largest):
    given = known(torch.linspace(1, 3, 400) ** 3)
    pairs = eigenpairs(noisy(given, 5e-3), 3, tolerance=1e-5, largest_basis=largest, generator=seeded(1))
    assert pairs.converged
    assert ((pairs.values - expected(given.spectrum, 3, "LM")).abs() <= pairs.residuals).all()


@pytest.mark.parametrize("largest", [None, 0])
@pytest.mark.parametrize("basis", ["device", "host"])
def test_a_basis_on_the_host_is_polished_there(basis, largest):
    given = known(torch.linspace(1, 3, 300) ** 3)

    class NoisyOnDevice(OnDevice):
        @property
        def ieee(self):
            return OnDevice(given.matrix)

    operator = noisy(given, 5e-3)
    pretended = NoisyOnDevice(operator.exact + operator.error @ operator.exact)
    with PretendDevice():
        pairs = eigenpairs(pretended, 3, tolerance=1e-5, basis=basis, largest_basis=largest, generator=seeded(1))
    assert pairs.converged
    assert ((pairs.values - expected(given.spectrum, 3, "LM")).abs() <= pairs.residuals).all()


def test_float32_vectors_reach_what_float32_reaches():
    given = matrix("network")
    pairs = eigenpairs(noisy(given, 5e-3, dtype=torch.float32), 5, tolerance=1e-5, generator=seeded(1))
    assert pairs.converged
    assert ((pairs.values - expected(given.spectrum, 5, "LM")).abs() <= pairs.residuals + 1e-6 * given.size).all()


@pytest.mark.parametrize("method", [power_iteration, dense_eigenpairs])
def test_methods_that_do_not_polish_take_products_in_ieee(method):
    operator = noisy(matrix("network"), 0.01)
    pairs = method(operator, 3, generator=seeded(1))
    assert operator.made["noisy"] == 0
    assert pairs.converged


def test_a_polished_run_that_was_cut_off_goes_on_alike(tmp_path):
    def found(path, calls):
        operator = noisy(matrix("flat"), 5e-3, dtype=torch.float32)
        made, multiply = operator.made, operator.multiply

        def cut(how, vectors):
            if sum(made.values()) >= calls:
                raise KeyboardInterrupt
            return multiply(how, vectors)

        operator.multiply = cut
        journal = Journal(tmp_path / path)
        try:
            counted = Counting(CheckpointedOperator(operator, journal))
            check_operator(counted, seeded(2))
            counted.noise = measure_noise(counted, seeded(2))
            pairs = eigenpairs(counted, 3, tolerance=1e-5, generator=seeded(1))
            return pairs.values.tolist(), pairs.residuals.tolist(), counted.products, counted.ieee_products
        finally:
            journal.close()

    whole = found("whole", 10**9)
    for calls in (2, 5, 8, 40, whole[2] - 10, whole[2] - 1):
        with pytest.raises(KeyboardInterrupt):
            found(str(calls), calls)
        assert found(str(calls), 10**9) == whole


def test_what_is_saved_of_noisy_products_is_trusted_by_one_in_ieee(tmp_path):
    vectors = torch.randn(matrix("flat").n, 2, generator=seeded(), dtype=torch.float64)

    def made():
        journal = Journal(tmp_path / "a")
        operator = CheckpointedOperator(noisy(matrix("flat"), 1e-2), journal)
        found = operator @ vectors[:, 0], in_ieee(operator) @ vectors[:, 1], operator @ vectors[:, 1]
        journal.close()
        return found, operator.operator.made

    first, _ = made()
    again, spent = made()
    assert all(map(torch.equal, first, again))
    assert spent == {"ieee": 1, "noisy": 0}  # that of the sample


# Traces, diagonals, densities


@pytest.mark.parametrize("method", [xtrace, hutchinson, hutch_plus_plus])
def test_traces_have_no_bias_of_the_noise(method):
    """One in a hundred of the trace is noise with a sign; errors are a tenth of that."""
    given, rtol = known([*uniform(300, 0.9, 1.1), 4.0, 3.0]), 1e-3
    truth = given.spectrum.sum().item()
    off = []
    for seed in range(8):
        operator = Counting(noisy(given, 0.01, seed, bias=0.01))
        found = with_correction(method)(operator, rtol=rtol, generator=seeded(seed), max_products=None)
        assert found.converged
        assert found.standard_error <= rtol * abs(found.value)
        assert operator.products == found.products
        assert 8 <= operator.ieee_products < found.products / 2
        off.append((found.value - truth) / found.standard_error)
    assert max(map(abs, off)) < 4
    plain = method(noisy(given, 0.01, bias=0.01), rtol=rtol, generator=seeded())
    assert abs(plain.value - truth) > 4 * rtol * truth


@pytest.mark.parametrize("method", [xdiag, hutchinson_diagonal])
def test_diagonals_have_no_bias_of_the_noise(method):
    given = known(uniform(300, 0.9, 1.1))
    truth = torch.stack([part.sum() for part in given.matrix.diagonal().split(100)])

    def sums(diagonal):
        return torch.stack([part.sum() for part in diagonal.double().split(100)])

    def enough(values, errors):
        return bool((errors <= 2e-3 * values.abs()).all())

    for seed in range(4):
        operator = Counting(noisy(given, 0.01, seed, bias=0.01))
        found = with_corrected_diagonal(method)(operator, sums, enough, generator=seeded(seed))
        assert found.converged
        assert enough(found.sums, found.sum_errors)
        assert ((found.sums - truth).abs() <= 4 * found.sum_errors).all()
        assert operator.products == found.products
        torch.testing.assert_close(sums(found.values), found.sums)


def test_in_ieee_nothing_is_corrected():
    plain = matrix("network").matrix
    found = with_correction(xtrace)(plain, rtol=0.1, generator=seeded(), max_products=None)
    assert found == xtrace(plain, rtol=0.1, generator=seeded())


@pytest.mark.parametrize("seed", range(3))
def test_the_band_of_a_density_allows_for_the_noise(seed):
    """All steps are taken, so that but for the noise every node is an eigenvalue."""
    given = known([-2.0, -1.0, *torch.linspace(-0.02, 1, 28).tolist(), 3.0, 5.0])
    measure = spectral_measure(noisy(given, 0.02, seed), probes=40, steps=given.n, generator=seeded(seed))
    assert 0.02 < measure.noise < 0.12
    grid = torch.linspace(-3, 6, 901).double().numpy()
    truth = (given.spectrum[None] <= torch.from_numpy(grid)[:, None]).double().mean(dim=1).numpy()
    band = cumulative(measure, grid)
    assert ((band.lower <= truth + 1e-12) & (truth <= band.upper + 1e-12)).all()
    off = (measure.nodes[0][measure.weights[0] > 0.01][:, None] - given.spectrum).abs().min(dim=1).values
    assert (off <= 2 * measure.noise).all()


# Networks in bfloat16

NETWORKS = ["mlp", "convolution, BatchNorm", "LayerNorm, dropout", "fused attention", "tied weights", "mse"]


def lower(name, curvature, **settings):
    return Curvature(BY_NAME[name].problem(dtype=torch.float32), curvature, precision="bf16", **settings)


@cache
def dense(name, curvature):
    problem = BY_NAME[name].problem()
    found = Curvature(problem, curvature, products=0) @ torch.eye(problem.size, dtype=torch.float64)
    return (found + found.T) / 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("curvature", ["hessian", "ggn", "fisher-empirical"])
@pytest.mark.parametrize("name", NETWORKS)
def test_products_in_bfloat16_are_off_by_their_noise(name, curvature, monkeypatch):
    matrix = lower(name, curvature)
    found = measure_noise(matrix, seeded(1))
    assert matrix.path.endswith("; in bf16")
    assert 2**-12 < found.relative < 0.03
    fresh = torch.randn(matrix.shape[0], 8, generator=seeded(2))
    exact = (dense(name, curvature) @ fresh.double()).float()
    off = (matrix @ fresh) - exact
    assert off.norm() <= 4 * found.relative * exact.norm()
    assert (off.norm(dim=0) <= 4 * found.norm * fresh.norm(dim=0)).all()
    assert (off.norm(dim=0) > 2**-13 * exact.norm(dim=0)).all()  # so that they are not in ieee
    torch.testing.assert_close(in_ieee(matrix) @ fresh, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())
    for cost in ("TRACING", "LOADING"):  # so that products are traced without a lower precision, too
        monkeypatch.setattr(f"spectra.curvature.engine.products.{cost}", -1.0)
    plain = Curvature(matrix.problem, curvature)
    assert torch.equal(in_ieee(matrix) @ fresh[:, 0], plain @ fresh[:, 0])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_from_bfloat16_are_those_of_float64(name):
    counted = Counting(lower(name, "hessian"))
    pairs = eigenpairs(counted, 3, tolerance=1e-3, generator=seeded(1))
    assert pairs.converged
    assert 3 < counted.ieee_products < counted.products
    values = torch.linalg.eigvalsh(dense(name, "hessian"))
    distance = (values[None] - pairs.values[:, None]).abs().min(dim=1).values
    assert (distance <= pairs.residuals + 1e-5 * values.abs().max()).all()
    if pairs.complete:
        wanted = expected(values, 3, "LM")
        assert ((pairs.values - wanted).abs() <= pairs.residuals + 1e-5 * values.abs().max()).all()


def test_columns_together_have_the_same_noise():
    matrix = lower("mlp", "hessian", products=1000)
    fresh = torch.randn(matrix.shape[0], 16, generator=seeded(2))
    together = matrix @ fresh
    single = torch.stack([matrix @ column for column in fresh.T], dim=1)
    exact = in_ieee(matrix) @ fresh
    assert (together - single).norm() < 0.1 * (single - exact).norm()


def test_operands_alone_are_short():
    """Sums stay in float32: what is added to a product keeps its digits."""
    graph = torch.fx.Graph()
    x, a, b = (graph.placeholder(name) for name in "xab")
    for node, shape in ((x, (3, 5)), (a, (3, 4)), (b, (4, 5))):
        node.meta = {"val": torch.empty(shape, device="meta")}
    node = graph.call_function(torch.ops.aten.addmm.default, (x, a, b), {"beta": 2, "alpha": -3})
    node.meta = {"val": torch.empty(3, 5, device="meta")}
    graph.output(node)
    module = in_bfloat16(torch.fx.GraphModule(torch.nn.Module(), graph))
    x, a, b = (torch.randn(shape, generator=seeded(shape[0] + shape[1])) for shape in ((3, 5), (3, 4), (4, 5)))
    product = a.bfloat16() @ b.bfloat16()
    assert torch.equal(module(x, a, b), 2 * x - 3 * product.float())
    assert module(x, a, b).dtype == torch.float32


def test_settings_for_tf32_hold_inside_of_the_second_half_alone():
    seen = []

    def look(x):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
        return x

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta = {"val": torch.empty(2)}
    made = graph.call_function(look, (x,))
    made.meta = x.meta
    graph.output(made)
    execution = LowerPrecision(torch.fx.GraphModule(torch.nn.Module(), graph), "tf32")
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    execution.graph(1)(torch.ones(2))
    assert seen == [("tf32", "tf32")]
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == before
    other = LowerPrecision(torch.fx.GraphModule(torch.nn.Module(), graph), "bf16")
    assert execution.fingerprint != other.fingerprint  # of which the times are not one another's


def test_products_that_have_no_lower_precision_say_so():
    problem = BY_NAME["mlp"].problem(dtype=torch.float32)
    matrix = Curvature(problem, "fisher-batch", precision="bf16")
    assert matrix.precision == "bf16"
    assert in_ieee(matrix) is matrix
    assert matrix.precision == "ieee"
    assert "in ieee, not bf16: only" in matrix.path


@pytest.mark.parametrize(
    ("precision", "dtype", "told"),
    [
        ("bf16", torch.float64, "`precision` bf16: applies to float32 only, not to float64; use ieee, or"),
        ("tf32", torch.float64, "`precision` tf32: applies to float32 only, not to float64; use ieee, or"),
        ("tf32", torch.float32, "`precision` tf32: the device cpu does not support TF32; use bf16, or ieee"),
        ("fp8", torch.float32, "`precision`.*fp8"),
    ],
)
def test_a_precision_that_is_not_there_is_refused(precision, dtype, told):
    with pytest.raises(SpectraError, match=told):
        Curvature(BY_NAME["mlp"].problem(dtype=dtype), "hessian", precision=precision)


@CUDA
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_on_cuda_are_off_by_their_noise(precision):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("TF32 is of Ampere and later")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 256) for _ in range(3)]
    network = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2]).cuda().eval()
    batch = spectra.Batch(
        torch.randn(512, 256).cuda(), torch.randint(256, (512,)).cuda(), torch.arange(512, device="cuda")
    )
    problem = spectra.Problem(network, spectra.CrossEntropy(), [batch])
    matrix = Curvature(problem, "hessian", precision=precision)
    found = measure_noise(matrix, seeded(1))
    assert (1e-5 if precision == "tf32" else 1e-4) < found.relative < (5e-3 if precision == "tf32" else 5e-2)
    fresh = torch.randn(matrix.shape[0], 4, generator=seeded(2)).cuda()
    exact = Curvature(problem, "hessian", products=0) @ fresh
    assert (((matrix @ fresh) - exact).norm(dim=0) <= 5 * found.relative * exact.norm(dim=0)).all()
    assert ((in_ieee(matrix) @ fresh) - exact).norm() <= 1e-5 * exact.norm()
    before = torch.backends.cuda.matmul.fp32_precision
    pairs = eigenpairs(Counting(matrix), 3, generator=seeded(1))
    assert pairs.converged
    alone = eigenpairs(Curvature(problem, "hessian"), 3, generator=seeded(1))
    assert ((pairs.values - alone.values).abs() <= pairs.residuals + alone.residuals).all()
    assert torch.backends.cuda.matmul.fp32_precision == before


# The command line

NET = """
import torch

def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
"""
PROBLEM = "--model net.py:mlp --data digits --samples 60 --device cpu"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path


def printed(line, capfd, status=0):
    capfd.readouterr()
    assert run(shlex.split(line)) == status
    return json.loads(capfd.readouterr().out)


def test_eig_tells_of_noise_and_of_products_in_ieee(folder, capfd):
    found = printed(f"eig {PROBLEM} -k 4 --precision bf16 --json --out a", capfd)
    (result,) = found["results"]
    assert found["problem"]["options"]["precision"] == "bf16"
    assert result["precision"] == "bf16"
    assert result["path"].endswith("in bf16")
    assert 2**-12 < result["noise"] < 0.05
    assert 0 < result["noise_norm"] < 0.1 * result["eigenvalues"][0]
    assert 4 < result["ieee_products"] < result["products"]
    (exact,) = printed(f"eig {PROBLEM} -k 4 --method dense --dtype float64 --json", capfd)["results"]
    assert "precision" not in exact
    off = [abs(a - b) for a, b in zip(result["eigenvalues"], exact["eigenvalues"], strict=True)]
    assert all(error <= residual + 1e-5 for error, residual in zip(off, result["residuals"], strict=True))
    again = printed("eig --config a --trust --json", capfd)
    assert again["results"][0]["eigenvalues"] == result["eigenvalues"]
    assert spectra.load_result("a").results[0].ieee_products == result["ieee_products"]
    capfd.readouterr()
    assert run(shlex.split(f"eig {PROBLEM} -k 4 --precision bf16")) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert f"{result['products']} ({result['ieee_products']} ieee)" in out
    assert "products in bf16 have a relative error of" in out


def test_methods_without_polishing_say_that_they_are_in_ieee(folder, capfd):
    found = printed(f"eig {PROBLEM} -k 1 --method dense --precision bf16 --json", capfd)
    assert "precision" not in found["results"][0]
    assert "hessian: products are in ieee, not in bf16: method dense needs ieee" in found["problem"]["notes"]


def test_traces_densities_and_layers_in_bfloat16_are_right(folder, capfd):
    (trace,) = printed(f"trace {PROBLEM} --precision bf16 --json", capfd)["results"]
    (exact,) = printed(f"trace {PROBLEM} --method dense --dtype float64 --json", capfd)["results"]
    assert abs(trace["trace"] - exact["trace"]) < 4 * trace["standard_error"] < 0.05 * abs(exact["trace"])
    assert trace["ieee_products"] >= 8
    (density,) = printed(f"density {PROBLEM} --probes 2 --steps 12 --precision bf16 --json", capfd)["results"]
    assert density["precision"] == "bf16"
    assert density["noise_norm"] > 0
    line = f"layers {PROBLEM} --precision bf16 --json"
    (layers,) = printed(line, capfd)["results"]
    assert abs(layers["trace"] - exact["trace"]) < 4 * layers["standard_error"]
    assert layers["ieee_products"] < layers["products"]


def test_in_python(folder):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    data = [(torch.randn(40, 6), torch.randint(3, (40,)))]
    result = spectra.eig(network, "cross_entropy", data, k=2, precision="bf16", device="cpu")
    assert result.precision == "bf16"
    assert result.converged
    with pytest.raises(SpectraError, match="`precision` 'bf8'"):
        spectra.eig(network, "cross_entropy", data, precision="bf8")
    with pytest.raises(SpectraError, match="float32 only, not to float64"):
        spectra.trace(network.double(), "cross_entropy", data, precision="bf16", dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--precision tf32", "--precision tf32: the device cpu does not support TF32; use bf16, or ieee"),
        ("--precision bf16 --dtype float64", "--precision bf16: applies to float32 only, not to float64; use"),
        ("--precision bf16 --max-products 10", "--max-products 10: products in --precision bf16 are compared"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(options, told, folder, capfd):
    assert run(shlex.split(f"eig {PROBLEM} {options}")) == 2
    err = capfd.readouterr().err
    assert told in err
    assert err.count("\n") == 1
