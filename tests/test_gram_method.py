"""--method gram: the eigenpairs and the trace of J'M J by its factor, against the dense ones."""

import json
import math

import pytest
import torch
from helpers import expected, seeded
from networks import BY_NAME, SOME, floats, name_of
from test_gram import refused
from torch import nn

from spectra.cli import run
from spectra.curvature.evaluation import cut_batches
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.krylov.dense import dense_eigenpairs, dense_matrix
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.gram import exact_trace_pays, gram_eigenpairs, gram_trace
from spectra.krylov.power import power_iteration
from spectra.operator import Counting
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.problem import Problem

ROOTS = [name for name in MATRICES if not definition(name).has_model_curvature]  # those with a factor

MLP = BY_NAME["mlp"]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_eigenpairs(case, name, which):
    """Of either end, zeros included, and of the whole spectrum: orthonormal, with residuals at rounding."""
    matrix = Curvature(case.problem(seed=5, mc_samples=2), name)
    dense = dense_matrix(matrix)
    size = dense.abs().max().item()
    for k in (1, 6, len(dense)):
        pairs = gram_eigenpairs(matrix, k, which=which, generator=seeded())
        assert (pairs.values - expected(torch.linalg.eigvalsh(dense), k, which)).abs().max() < 1e-10 * size
        assert (pairs.vectors @ pairs.vectors.T - torch.eye(k)).abs().max() < 1e-10
        residuals = (pairs.vectors @ dense - pairs.values[:, None] * pairs.vectors).norm(dim=1)
        assert (residuals - pairs.residuals).abs().max() < 1e-10 * size
        assert pairs.residuals.max() < 1e-7 * size
        assert pairs.converged or pairs.values.min() < 1e-10 * size  # such vectors are good to eps sqrt(|A| / lambda)


@pytest.mark.parametrize("which", ["LM", "SA"])
def test_weight_decay(which):
    matrix = Curvature(MLP.problem(weight_decay=0.5), "ggn")
    pairs = gram_eigenpairs(matrix, 5, which=which, generator=seeded())
    assert (pairs.values - expected(torch.linalg.eigvalsh(dense_matrix(matrix)), 5, which)).abs().max() < 1e-10
    trace = gram_trace(matrix)
    assert math.isclose(trace.value, dense_matrix(matrix).trace().item(), rel_tol=1e-10)


@pytest.mark.parametrize("which", ["LM", "SA"])
@pytest.mark.parametrize("name", ["ggn", "fisher-empirical"])
def test_single_precision(name, which):
    matrix = Curvature(MLP.problem(dtype=torch.float32), name)
    pairs = gram_eigenpairs(matrix, 10, which=which, generator=seeded())
    assert pairs.vectors.dtype == torch.float32
    size = torch.linalg.eigvalsh(dense_matrix(matrix)).abs().max().item()
    assert (pairs.residuals <= 1e-6 * size).all()
    assert pairs.converged


@pytest.mark.parametrize("k", [5, 12])
@pytest.mark.parametrize("method", [eigenpairs, power_iteration, dense_eigenpairs, gram_eigenpairs])
def test_more_than_the_rank_in_single_precision(method, k):
    """Zeros whose residuals are rounding have converged, with nothing spent on them in vain."""
    x, targets = floats(4, 6).float(), torch.tensor([0, 1, 2, 1])
    batches = cut_batches(x, targets, torch.arange(4), 4)
    torch.manual_seed(0)
    operator = Curvature(Problem(nn.Linear(6, 3), CrossEntropy(), batches), "fisher-empirical")
    pairs = method(operator, k, generator=seeded(), max_products=200)
    size = pairs.values[0].item()
    assert pairs.converged
    assert (pairs.values[4:].abs() <= 1e-6 * size).all()
    assert (pairs.residuals[4:] <= 10 * torch.finfo(torch.float32).eps * size).all()


def test_no_curvature_at_all():
    matrix = Curvature(BY_NAME["custom, curved nowhere"].problem(), "ggn")
    pairs = gram_eigenpairs(matrix, 3, generator=seeded())
    assert pairs.values.count_nonzero() == 0
    assert (pairs.vectors @ pairs.vectors.T - torch.eye(3)).abs().max() < 1e-10
    assert pairs.converged
    assert gram_trace(matrix).value == 0


def test_products_are_counted_and_bounded():
    matrix = Counting(Curvature(MLP.problem(), "fisher-empirical"))
    pairs = gram_eigenpairs(matrix, 4, generator=seeded())
    assert pairs.products == math.ceil((2 + 4) / 2) + 4  # rows and their test, vectors; residuals
    assert gram_eigenpairs(matrix, 4, generator=seeded(), max_products=pairs.products).converged
    with refused("`max_products`", "7 products", "6 are left", "another method"):
        gram_eigenpairs(matrix, 4, generator=seeded(), max_products=6)
    assert gram_trace(matrix).products == 1
    with refused("`max_products`", "0 are left"):
        gram_trace(matrix, max_products=0)
    with refused("`k`", "100"):
        gram_eigenpairs(matrix, 100, generator=seeded())


# The trace without --method: exact where that is no dearer than the first stage of XTrace, told by counts alone.


@pytest.mark.parametrize(
    ("outputs", "name", "pays"),
    [
        (10, "ggn", True),
        (60, "ggn", True),
        (70, "ggn", False),
        (70, "fisher", False),
        (70, "fisher-mc", True),
        (70, "fisher-empirical", True),
        (70, "gradient-covariance", True),
        (70, "fisher-batch", True),
        (10, "hessian", False),
    ],
)
def test_exact_trace_pays(outputs, name, pays):
    problem = classifier(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, outputs))
    assert exact_trace_pays(Curvature(problem, name)) == pays


@pytest.mark.parametrize(("name", "pays"), [("ggn", False), ("fisher-empirical", True), ("fisher-batch", True)])
def test_rows_that_are_taken_one_by_one_count_more(name, pays):
    problem = classifier(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Linear(24, 10))
    assert exact_trace_pays(Curvature(problem, name)) == pays


def classifier(*layers: nn.Module) -> Problem:
    x, y = torch.randn(40, 5, generator=seeded()), torch.arange(40) % 10
    return Problem(nn.Sequential(*layers).eval(), CrossEntropy(), cut_batches(x, y, torch.arange(40), 40))


def test_exact_trace_within_a_budget():
    matrix = Curvature(classifier(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 10)), "ggn")
    assert not exact_trace_pays(matrix, 5)  # ten kinds of rows and a test are 5.5
    assert exact_trace_pays(matrix, 6)
    assert gram_trace(matrix, max_products=6).products == 5


def test_exact_trace_where_the_dense_one_is_cheaper():
    assert not exact_trace_pays(Curvature(classifier(nn.Linear(5, 1), nn.Linear(1, 10, bias=False)), "ggn"), 4)
    scale = nn.Linear(5, 10)
    problem = classifier(scale)
    assert exact_trace_pays(Curvature(problem, "ggn"))
    problem = Problem(problem.model, problem.loss, problem.batches, {"bias": scale.bias})
    assert exact_trace_pays(Curvature(problem, "ggn"))  # 5.5 products, of 10


LINE = "--model spectra.demo:mlp --data digits --samples 120"


@pytest.fixture
def trace(capfd):
    """The results of `spectra trace`, by matrix."""

    def trace(options: str) -> dict[str, dict]:
        assert run(["trace", *f"{LINE} {options} --json".split()]) == 0
        return {result["curvature"]: result for result in json.loads(capfd.readouterr().out)["results"]}

    return trace


def test_trace_takes_the_exact_way_by_itself(trace):
    found = trace("--curvature hessian --curvature ggn --curvature fisher-empirical --rtol 0.3")
    assert [found[name]["method"] for name in found] == ["xtrace", "gram", "gram"]
    assert [found[name]["standard_error"] == 0.0 for name in found] == [False, True, True]
    asked = trace("--curvature ggn --method gram")["ggn"]
    assert found["ggn"]["trace"] == asked["trace"]
    assert found["ggn"]["products"] == asked["products"] <= 3 + 6
    estimate = trace("--curvature ggn --method xtrace --rtol 0.1")["ggn"]
    assert estimate["method"] == "xtrace"
    assert 0 < abs(estimate["trace"] - asked["trace"]) < 4 * estimate["standard_error"]


@pytest.mark.parametrize("options", ["--probes 16", "--max-products 7", "--deflate"])
def test_options_of_an_estimator_ask_for_one(options, trace, capfd, tmp_path):
    """A number of probes, a budget that exact would exceed, eigenpairs to be projected out."""
    if options == "--deflate":
        assert run(["eig", *f"{LINE} --curvature ggn -k 3 --out {tmp_path}".split()]) == 0
        capfd.readouterr()
        options = f"--deflate {tmp_path}"
    if "--max-products" in options:
        assert run(["trace", *f"{LINE} --curvature ggn --max-products 7 --json".split()]) == 1
        result = json.loads(capfd.readouterr().out)["results"][0]
    else:
        result = trace(f"--curvature ggn --rtol 0.3 {options}")["ggn"]
    assert result["method"] == "xtrace"
    assert ("projected_out" in result) == ("--deflate" in options)


def test_the_exact_trace_leaves_eigenpairs_of_an_earlier_run_alone(trace, capfd, tmp_path):
    assert run(["eig", *f"{LINE} --curvature ggn -k 3 --out {tmp_path}".split()]) == 0
    capfd.readouterr()
    result = trace(f"--curvature ggn --out {tmp_path}")["ggn"]
    assert result["method"] == "gram"
    assert "projected_out" not in result


def test_the_choice_sees_the_memory_that_is_allowed(trace, monkeypatch):
    seen = []
    monkeypatch.setattr("spectra.run.trace.exact_trace_pays", lambda matrix, left: bool(seen.append(matrix.memory)))
    trace("--curvature ggn --memory 5MB --rtol 0.5")
    assert seen == [5_000_000]


def test_all_matrices_are_made_before_any_is_computed(capfd, monkeypatch):
    monkeypatch.setattr("spectra.run.session.Session.measure", lambda *_, **__: pytest.fail("computed"))
    for method in ("", "--method dense"):
        line = f"{LINE} --curvature ggn --curvature fisher-empirical --weight-decay 1 {method}"
        assert run(["trace", *line.split()]) == 2
        assert "--weight-decay" in capfd.readouterr().err


def test_progress_tells_of_the_gram_matrix():
    told = []
    gram_eigenpairs(
        Curvature(MLP.problem(), "fisher-empirical"), 2, generator=seeded(), progress=lambda **n: told.append(n)
    )
    assert told == [{"products": 1, "gram_rows": 7}]


def test_not_finite():
    problem = MLP.problem()
    with torch.no_grad():
        problem.leaves[0][0, 0] = float("nan")
    pairs = gram_eigenpairs(Curvature(problem, "fisher-empirical"), 2, generator=seeded())
    assert pairs.values.isnan().all()
    assert not pairs.converged
