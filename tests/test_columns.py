"""Columns that go together are the single columns, of every matrix and network, and take the memory foreseen."""

import os
from pathlib import Path

import pytest
import test_resume
import torch
from helpers import seeded
from networks import BY_NAME, NETWORKS, Case, X, Y, floats, labels, name_of
from test_hoisting import CONVOLUTIONS
from torch import nn
from torch.fx import GraphModule

from spectra.cli import run
from spectra.curvature.engine import block_widths as module
from spectra.curvature.engine.block_widths import planned
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.execution import Execution
from spectra.curvature.engine.graphs import simplify
from spectra.curvature.engine.hoisting import HoistedProduct
from spectra.curvature.engine.meter import Meter
from spectra.curvature.engine.recorder import record
from spectra.curvature.engine.vectorization import vectorized
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature

GRAPHS = [name for name in MATRICES if name not in ("fisher-batch", "gradient-covariance")]
MANY = 10**12  # products, for which any trace pays
BENT = [
    nn.GELU(),
    nn.ELU(),
    nn.LeakyReLU(),
    nn.Hardtanh(-0.5, 0.5),
    nn.Softplus(),
    nn.LogSigmoid(),
    nn.Softmax(-1),
    nn.LogSoftmax(-1),
    nn.GLU(),
    nn.PReLU(),
    nn.LayerNorm(4),
    nn.LayerNorm(4, elementwise_affine=False),
    nn.GroupNorm(2, 4),
    nn.BatchNorm1d(4),
]


def hoisted_of(case: Case, name: str, **settings):
    problem, linearise = case.problem(**{"sizes": (2, 2, 2, 1), **settings}), definition(name).linearise
    with twice_differentiable(problem.model):
        return problem, HoistedProduct(linearise, problem, problem.batches[:2])


def rows_of(problem, count: int) -> torch.Tensor:
    return torch.randn(count, problem.size, generator=seeded(1), dtype=problem.dtype)


def assert_together_is_single(case: Case, name: str, width: int, tolerance: float = 1e-13, **settings):
    problem, hoisted = hoisted_of(case, name, **settings)
    execution, rows, residuals = hoisted.execution, rows_of(problem, width), hoisted.residuals(problem.batches[2])
    before = [residual.clone() for residual in residuals]
    with torch.no_grad():
        wanted = torch.stack([execution.graph(1)(*residuals, row) for row in rows])
        for _ in range(2):
            found = execution.graph(width)(*residuals, rows)
            assert (found - wanted).norm() <= tolerance * wanted.norm()
    assert all(map(torch.equal, residuals, before))


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("case", [*NETWORKS, *CONVOLUTIONS], ids=name_of)
def test_columns_together_are_single_columns(case, name):
    assert_together_is_single(case, name, 3)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.parametrize("bend", BENT, ids=lambda bend: type(bend).__name__)
def test_columns_together_with_layers_of_every_kind(bend, name):
    width = 2 if isinstance(bend, nn.GLU) else 4
    case = Case("bent", lambda: nn.Sequential(nn.Linear(3, 4), bend, nn.Linear(width, 3)), X, Y)
    assert_together_is_single(case, name, 5, 1e-12)


def test_columns_together_in_single_precision():
    assert_together_is_single(BY_NAME["transformer layer, tied head"], "hessian", 4, 1e-5, dtype=torch.float32)


def test_columns_share_the_products_with_weights():
    """One of all rows for what all columns multiply; a batch of them, one a column, for the derivatives by weights."""
    case = Case("mlp", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), X, Y)
    _, hoisted = hoisted_of(case, "ggn")
    single = packets(hoisted.second)
    several = packets(vectorized(hoisted.second, 16))
    assert sum(several.values()) == sum(single.values())
    assert several["mm"] + several["addmm"] >= 1


def packets(graph) -> dict[str, int]:
    targets = [str(node.target) for node in graph.graph.nodes]
    return {name: targets.count(f"aten.{name}.default") for name in ("mm", "addmm", "bmm", "baddbmm")}


# Which columns go together.


def costs(**known: float):
    asked = []

    def cost(width: int) -> float:
        asked.append(width)
        return known[f"w{width}"]

    return cost, asked


@pytest.mark.parametrize(
    ("count", "known", "wanted", "asked"),
    [
        (16, {"w16": 2.0}, [16], [16]),
        (32, {"w16": 2.0}, [16, 16], [16]),
        (10, {"w16": 2.0}, [16], [16]),  # padded: two narrower ones cost as much
        (10, {"w16": 2.5, "w8": 1.5, "w4": 1.2}, [16], [16, 8, 4]),
        (10, {"w16": 2.9, "w8": 1.5, "w4": 1.2}, [8, 4], [16, 8, 4]),
        (10, {"w16": 12.0, "w8": 5.0, "w4": 3.0}, [8, 1, 1], [16, 8, 4]),
        (10, {"w16": 12.0, "w8": 6.0, "w4": 1.5}, [4, 4, 4], [16, 8, 4]),
        (13, {"w16": 8.0}, [16], [16]),
        (27, {"w16": 8.0}, [16, 16], [16]),
        (17, {"w16": 8.0, "w8": 7.0, "w4": 3.0}, [16, 1], [16, 8, 4]),
        (3, {"w4": 1.5}, [4], [4]),
        (3, {"w4": 3.5}, [1, 1, 1], [4]),
        (16, {"w16": 20.0, "w8": float("inf"), "w4": 2.0}, [4, 4, 4, 4], [16, 8, 4]),
        (16, {"w16": float("inf"), "w8": float("inf"), "w4": float("inf")}, [1] * 16, [16, 8, 4]),
    ],
)
def test_widths_take_the_least_time(count, known, wanted, asked):
    cost, looked_at = costs(**known)
    assert planned(count, cost) == wanted
    assert looked_at == asked


@pytest.mark.parametrize("count", range(1, 70))
def test_a_plan_covers_all_columns_and_costs_no_more_than_singles(count):
    prices = {4: 3.1, 8: 5.5, 16: 9.0}
    plan = planned(count, prices.__getitem__)
    assert sum(plan) >= count > sum(plan[:-1])
    assert sum({1: 1.0, **prices}[width] for width in plan) <= count


# Products of a matrix.


@pytest.fixture
def always_together(monkeypatch):
    """Whatever a clock says, wide products take next to no time."""
    monkeypatch.setattr("spectra.curvature.engine.autotuning.Autotuner.cost", lambda *_: 0.1)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("count", [3, 10, 16, 21])
@pytest.mark.parametrize("name", MATRICES)
def test_products_of_many_columns_are_those_of_single_ones(name, count, always_together, batches_as_given):
    problem = BY_NAME["mlp"].problem(sizes=(3, 3, 1))
    vectors = rows_of(problem, count).T
    matrix = Curvature(problem, name, products=MANY, check=False)
    wanted = torch.stack([matrix @ vector for vector in vectors.T], dim=1)
    for given in (vectors, vectors.contiguous()):
        found = matrix @ given
        assert (found - wanted).norm() <= 1e-14 * wanted.norm()
        assert found.stride() == given.stride()
        assert torch.equal(found, matrix @ given)
    assert ("columns together" in matrix.path) == (name != "fisher-batch")


def test_products_that_are_made_anew_take_columns_together(always_together, batches_as_given, monkeypatch):
    problem = BY_NAME["mlp"].problem(sizes=(3, 3, 1))
    matrix = Curvature(problem, "hessian", products=MANY, check=False)
    matrix.prepare()
    matrix._products._kept = matrix._products._kept[:1]
    vectors = rows_of(problem, 16).T
    wanted = torch.stack([matrix @ vector for vector in vectors.T], dim=1)
    assert (matrix @ vectors - wanted).norm() <= 1e-14 * wanted.norm()
    assert matrix.path == "hoisted, 1 of 3 batches kept; 16 columns together"


@pytest.mark.parametrize("name", ["hessian", "fisher-empirical"])
@pytest.mark.parametrize("share", [1.0, 4.0, 100.0])
def test_columns_together_take_no_more_than_memory(name, share, always_together):
    case = Case(
        "wide", lambda: nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 3)), floats(40, 3), labels(40, below=3)
    )
    problem = case.problem(sizes=(40,))
    probe = Curvature(problem, name, products=MANY, check=False)
    probe.prepare()
    matrix = Curvature(problem, name, int(share * probe.peak_bytes), MANY, check=False)
    matrix.prepare()
    vectors = rows_of(problem, 16).T
    matrix @ vectors
    own = [*problem.model.parameters(), *(x for b in problem.batches for x in (b.inputs, b.targets, b.indices))]
    with Meter([*own, vectors, *(x for apply in matrix._products._kept for x in apply.residuals)]) as meter:
        product = matrix @ vectors
    assert matrix.kept_bytes + meter.peak - product.nbytes <= matrix.peak_bytes <= matrix.memory
    if share == 1:
        assert "; columns one by one: 4 columns take " in matrix.path
    if share == 100:
        assert matrix.path.endswith("; 16 columns together")


def test_columns_that_differ_go_one_by_one(monkeypatch, always_together):
    def wrong(second, width):
        graph = vectorized(second, width)
        vector = graph.graph.find_nodes(op="placeholder")[-1]
        with graph.graph.inserting_after(vector):
            twice = graph.graph.call_function(torch.ops.aten.mul.Scalar, (vector, 1.01))
            vector.replace_all_uses_with(twice, lambda user: user is not twice)
        twice.meta = {"val": vector.meta["val"]}
        graph.recompile()
        return graph

    monkeypatch.setattr("spectra.curvature.engine.vectorization.vectorized", wrong)
    problem = BY_NAME["mlp"].problem()
    vectors = rows_of(problem, 16).T
    matrix = Curvature(problem, "hessian", products=MANY, check=False)
    wanted = torch.stack([matrix @ vector for vector in vectors.T], dim=1)
    assert torch.equal(matrix @ vectors, wanted)
    assert "columns one by one: RuntimeError: " in matrix.path
    assert "columns together differ from single ones" in matrix.path


def test_columns_that_cannot_be_written_go_one_by_one(monkeypatch, always_together):
    def refuse(*_):
        raise RuntimeError("no rule for aten.strange")

    monkeypatch.setattr("spectra.curvature.engine.vectorization.vectorized", refuse)
    problem = BY_NAME["mlp"].problem()
    matrix = Curvature(problem, "hessian", products=MANY, check=False)
    matrix @ rows_of(problem, 4).T
    assert matrix.path.endswith("; columns one by one: RuntimeError: no rule for aten.strange")


@pytest.mark.parametrize("slower", [False, True])
def test_a_clock_decides(slower, monkeypatch):
    """Once: two matrices of one problem take the same columns together, whatever the clock says the second time."""
    monkeypatch.setattr("spectra.curvature.engine.autotuning._decided", {})
    monkeypatch.setenv("SPECTRA_CACHE", "")
    price = [6.0 if slower else 1.0]
    monkeypatch.setattr("spectra.curvature.engine.autotuning.Autotuner.seconds", lambda *_, **__: price[0])
    problem = BY_NAME["mlp"].problem()
    monkeypatch.setattr(module, "SMALL", 2**40)
    vectors = rows_of(problem, 16).T
    first = Curvature(problem, "hessian", products=MANY, check=False)
    found = first @ vectors
    assert first.path.endswith("; 16 columns together")  # for the time of one
    assert first.choices.made == {"4 columns": "1", "16 columns": "1"}
    monkeypatch.setattr("spectra.curvature.engine.autotuning.Autotuner.seconds", pytest.fail)
    second = Curvature(problem, "hessian", products=MANY, check=False)
    assert torch.equal(second @ vectors, found)
    assert second.path == first.path


def test_few_products_pay_for_no_measurement():
    problem = BY_NAME["mlp"].problem()
    matrix = Curvature(problem, "hessian", products=20, check=False)
    matrix @ rows_of(problem, 16).T
    assert not matrix.choices.made


def test_fingerprints_tell_what_is_executed():
    def of(case, name="hessian", **settings):
        return hoisted_of(case, name, **settings)[1].execution.fingerprint

    mlp = BY_NAME["mlp"]
    assert of(mlp) == of(mlp)
    others = [of(mlp, "ggn"), of(mlp, sizes=(3, 3, 1)), of(mlp, dtype=torch.float32), of(BY_NAME["relu in place"])]
    assert len({of(mlp), *others}) == 5


def test_an_execution_writes_over_nothing_that_others_read():
    _, hoisted = hoisted_of(BY_NAME["mlp"], "hessian")
    plain = str(hoisted.second.graph)
    Execution(hoisted.second).graph(4)
    assert str(hoisted.second.graph) == plain
    assert not any(
        getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in hoisted.second.graph.nodes
    )


# Runs of the command: bits that are the same, whatever clocks say.

NETS = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
"""
RUNS = {
    "trace": "trace --method hutchinson --probes 36",
    "density": "density --probes 5 --steps 9",
    "layers": "layers -k 1",
}


class Rounding(torch.nn.Module):
    """Columns together that differ from single ones in their last digits, as they may on other hardware."""

    def __init__(self, graph):
        super().__init__()
        self.graph_module = graph

    @property
    def graph(self):
        return self.graph_module.graph

    def forward(self, *arguments):
        return self.graph_module(*arguments) * (1 + 2**-21)


@pytest.fixture
def traced_at_once(monkeypatch, tmp_path):
    """The trace of any network pays, and columns that go together show it."""
    from spectra.curvature.engine.execution import Execution

    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spectra.curvature.engine.products.TRACING", 0)
    monkeypatch.setattr("spectra.curvature.engine.products.LOADING", 0)
    graph = Execution.graph
    monkeypatch.setattr(
        Execution, "graph", lambda self, width: graph(self, width) if width == 1 else Rounding(graph(self, width))
    )


def says(monkeypatch, seconds: float) -> None:
    """What a clock would measure is this; nothing is remembered but in the state of a run."""
    monkeypatch.setattr("spectra.curvature.engine.autotuning._decided", {})
    monkeypatch.setenv("SPECTRA_CACHE", "")

    def cost(self, name, call, unit, device, of):
        return float(self._decide(name, lambda: str(seconds), lambda text: text != "", ["cost"], device, of))

    monkeypatch.setattr("spectra.curvature.engine.autotuning.Autotuner.cost", cost)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("command", RUNS)
def test_a_resumed_run_takes_the_same_columns_together(command, traced_at_once, monkeypatch):
    line = f"{RUNS[command]} --model nets.py:net --data digits --samples 60"

    def numbers(out):
        found = test_resume.numbers(f"{out}/{command}.json")
        found.pop("figures", None)
        return found

    says(monkeypatch, 100.0)
    assert run(f"{line} --out alone".split()) == 0
    says(monkeypatch, 0.1)
    with monkeypatch.context() as patch:
        left = test_resume.cut_at(patch, 10**9)
        assert run(f"{line} --out whole".split()) == 0
        calls = 10**9 - left[0]
    whole = numbers("whole")
    assert all("columns together" in result["path"] for result in whole["results"])
    assert whole != numbers("alone")
    for cut in (calls - 2, calls - 1):  # after columns have gone together
        says(monkeypatch, 0.1)
        with monkeypatch.context() as patch:
            test_resume.cut_at(patch, cut)
            assert run(f"{line} --out cut-{cut}".split()) == 130
        says(monkeypatch, 100.0)
        assert run(f"{line} --out cut-{cut}".split()) == 0
        assert numbers(f"cut-{cut}") == whole


def test_two_runs_give_the_same_bits(traced_at_once, monkeypatch):
    """The second one finds on disk what the first has measured."""
    line = f"{RUNS['trace']} --model nets.py:net --data digits --samples 60"
    for i, seconds in enumerate((0.1, 100.0)):
        cache = str(Path(os.environ["SPECTRA_CACHE"]))
        says(monkeypatch, seconds)
        monkeypatch.setenv("SPECTRA_CACHE", cache)
        assert run(f"{line} --out run-{i}".split()) == 0
    assert test_resume.numbers("run-0/trace.json") == test_resume.numbers("run-1/trace.json")


@pytest.mark.parametrize(("m", "p", "q"), [(2, 3, 4), (9, 9, 1), (1, 9, 9), (9, 1, 9), (3, 3, 3)])
@pytest.mark.parametrize("side", [0, 1])
def test_many_products_share_one_factor(m, p, q, side):
    """Of every shape, so that the k values lie in a batch, as rows, or as columns; the shared factor is not copied."""
    shared, other = (floats(5, p, q), (5, m, p)) if side == 0 else (floats(5, m, p), (5, p, q))

    def function(shared, vector):
        given = vector.reshape(other)
        product = torch.bmm(given, shared) if side == 0 else torch.bmm(shared, given)
        return (product * product.new_ones(5, 1, 1)).flatten()

    constants, graph = record(function, (shared, torch.zeros(5 * other[1] * other[2], dtype=torch.float64)))
    simplify(graph)
    second = GraphModule(constants, graph)
    rows = floats(3, 5 * other[1] * other[2])
    wanted = torch.stack([function(shared, row) for row in rows])
    torch.testing.assert_close(vectorized(second, 3)(shared, rows), wanted, rtol=1e-13, atol=1e-13)
