"""However products are made (kept or anew, traced or not, batches merged or cut), the matrix is one, within memory."""

from dataclasses import replace

import pytest
import torch
from networks import BY_NAME, SOME, Case, Lambda, X, Y, floats, labels
from torch import nn

from spectra.curvature.engine import batches as batching
from spectra.curvature.engine.batches import merged, resized
from spectra.curvature.engine.differentiation import twice_differentiable
from spectra.curvature.engine.footprint import Footprint, Line, MaximumOfLines, elements, footprint, measured, tensors
from spectra.curvature.engine.loss_memory import LossMemoryGrowth
from spectra.curvature.engine.meter import Meter
from spectra.curvature.engine.products import LOADING, SPARED, TRACING
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.batch import Batch
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem

MANY = 10**12  # products, for which any trace pays
SIZES = (2, 2, 2, 1)


def by_definition(problem: Problem, name: str, vectors: torch.Tensor) -> torch.Tensor:
    """The sum over batches, by double backward from scratch."""
    curvature = Curvature(problem, name, memory=0)
    curvature.prepare()
    with twice_differentiable(problem.model):
        applies = [curvature.linearise(problem, batch) for batch in problem.batches] + curvature._terms
        return torch.stack([sum(apply(v) for apply in applies) for v in vectors.T], dim=1)


def least(problem: Problem, name: str) -> int:
    """Bytes that the product of one example takes."""
    with twice_differentiable(problem.model):
        costs = footprint(definition(name).linearise, problem)
    return costs.peak(max(elements(batch) // len(batch) for batch in problem.batches)) + 1


# One matrix, whatever the way.


WAYS = {  # memory, products expected, whether small batches stay as given
    "merged": (None, 0, False),
    "kept": (None, 0, True),
    "anew": (0, 0, True),
    "merged, hoisted": (None, MANY, False),
    "hoisted": (None, MANY, True),
    "hoisted, anew": (0, MANY, True),
}
TRACED = [BY_NAME[name] for name in ("mlp", "convolution, BatchNorm", "tied weights")]  # test_hoisting.py has them all
TRIED = [(case, way) for way in WAYS for case in (TRACED if WAYS[way][1] else [*SOME, BY_NAME["checkpointed"]])]


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("case", "way"), TRIED, ids=[f"{case.name}, {way}" for case, way in TRIED])
def test_every_way_gives_the_same_matrix(case, name, way, monkeypatch):
    memory, products, separate = WAYS[way]
    if separate:
        monkeypatch.setattr(batching, "SMALL", 0)
    problem = case.problem(sizes=SIZES)
    vectors = floats(problem.size, 2)
    wanted = by_definition(problem, name, vectors)
    matrix = Curvature(problem, name, memory, products)
    for _ in range(2):
        assert (matrix @ vectors - wanted).norm() <= 1e-13 * wanted.norm()
    batches = 4 if separate or name == "fisher-batch" else 1
    how = "hoisted" if products and name != "fisher-batch" else "double backward"
    assert matrix.path == f"{how}, {batches if memory is None else 0} of {batches} batches kept"


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc", "gradient-covariance"])
def test_large_batches_are_cut_to_fit(name):
    problem = BY_NAME["convolution, BatchNorm"].problem(sizes=(7,))
    vectors = floats(problem.size, 2)
    wanted = by_definition(problem, name, vectors)
    matrix = Curvature(problem, name, memory=least(problem, name))
    assert (matrix @ vectors - wanted).norm() <= 1e-13 * wanted.norm()
    assert matrix.path.endswith("of 7 batches kept")
    with pytest.raises(SpectraError, match=r"`memory`: a product of one example takes .* bytes, more than 100;"):
        Curvature(problem, name, memory=100) @ vectors


def test_a_batch_of_its_own_kind_is_not_traced(batches_as_given):
    """Three of two examples share a trace; one of one example would pay for its own only beyond any bound."""
    matrix = Curvature(BY_NAME["mlp"].problem(sizes=SIZES), "hessian", products=MANY)
    matrix.prepare()
    assert matrix.path == "hoisted, 4 of 4 batches kept"
    problem = replace(BY_NAME["mlp"], inputs=floats(601, 3), targets=labels(601, below=3)).problem(sizes=(300, 300, 1))
    costs = footprint(definition("hessian").linearise, problem)
    threshold = (TRACING * costs.operations + LOADING) / SPARED / (2 * costs.kept(elements(problem.batches[0])))
    pays = Curvature(problem, "hessian", products=int(threshold * 1.05))
    pays.prepare()
    assert pays.path == "hoisted (2 batches) and double backward, 3 of 3 batches kept"
    fails = Curvature(problem, "hessian", products=int(threshold * 0.95))
    fails.prepare()
    assert fails.path == "double backward, 3 of 3 batches kept"


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x):
        return self.layers(x) if bool(x.sum() < 1e9) else x


def test_what_cannot_be_traced_says_why():
    matrix = Curvature(BY_NAME["mlp"].problem(model=Branching().double()), "hessian", products=MANY)
    matrix.prepare()
    assert matrix.path.startswith("double backward, 1 of 1 batches kept; not traced: ")


# What runs how often.


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.calls = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), 0

    def forward(self, x):
        self.calls += 1
        return self.layers(x)


@pytest.mark.parametrize("products", [0, MANY])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_the_model_runs_once_a_batch_or_never(name, products, batches_as_given):
    model = Counted().double()
    problem = BY_NAME["mlp"].problem(model=model, sizes=(3, 3, 1))
    for memory, calls in ((None, 0), (0, 3 if not products else 0)):
        matrix = Curvature(problem, name, memory, products)
        matrix.prepare()
        model.calls = 0
        matrix @ floats(problem.size, 5)
        assert model.calls == calls


# Memory.


def wide(*sizes: int) -> Problem:
    return Case(
        "wide", lambda: nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 3)), X, Y, sizes=sizes
    ).problem()


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
@pytest.mark.parametrize("share", [1.0, 1.5, 2.0, 8.0])
def test_no_product_takes_more_than_memory(name, share, batches_as_given):
    problem, vector = wide(3, 3, 1), torch.ones(353, dtype=torch.float64)
    memory = int(share * least(problem, name))
    matrix = Curvature(problem, name, memory)
    with Meter([*given(problem), vector]) as meter:
        matrix.prepare()
        assert meter.bytes == matrix.kept_bytes
        meter._ledger.peak = 0
        product = matrix @ vector
        assert meter.bytes == matrix.kept_bytes + product.nbytes
    assert meter.peak - product.nbytes <= matrix.peak_bytes <= memory
    assert matrix.kept_batches in {1.0: [0], 1.5: [0], 2.0: range(1, 7), 8.0: [3]}[share]


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-empirical"])
@pytest.mark.parametrize("share", [1.0, 1.2, 8.0])
def test_no_traced_product_takes_more_than_memory(name, share, batches_as_given):
    problem, vector = wide(1, 1, 1, 1, 1, 1, 1), torch.ones(353, dtype=torch.float64)
    matrix = Curvature(problem, name, int(share * least(problem, name)), MANY)
    matrix.prepare()
    residuals = [x for apply in matrix._products._kept for x in apply.residuals]
    assert sum(x.nbytes for x in residuals) >= matrix.kept_bytes > 0
    with Meter([*given(problem), *residuals, vector]) as meter:
        product = matrix @ vector
    assert matrix.kept_bytes + meter.peak - product.nbytes <= matrix.peak_bytes <= matrix.memory


def given(problem: Problem) -> list[torch.Tensor]:
    return [*problem.model.parameters(), *(x for batch in problem.batches for x in tensors(batch))]


@pytest.mark.parametrize("name", MATRICES)
def test_graphs_are_freed_with_their_matrix(name):
    problem = BY_NAME["convolution, BatchNorm"].problem()
    with Meter([*given(problem), *problem.model.buffers()]) as meter:
        matrix = Curvature(problem, name)
        matrix.prepare()
        assert meter.bytes >= matrix.kept_bytes > 0
        del matrix
        assert meter.bytes == 0


def test_nothing_is_kept_of_batches_made_anew():
    matrix = Curvature(wide(3, 3, 1), "hessian", 0)
    matrix.prepare()
    assert matrix.kept_bytes == matrix.kept_batches == 0 < matrix.peak_bytes


@pytest.mark.parametrize("name", MATRICES)
def test_footprints_are_lines(name):
    """Measured on two and four examples, right for six, and for sequences by their length."""
    for case in (BY_NAME["mlp"], BY_NAME["convolution, BatchNorm"], BY_NAME["LSTM"]):
        problem, linearise = case.problem(sizes=(7,)), definition(name).linearise
        with twice_differentiable(problem.model):
            costs = footprint(linearise, problem)
            six = problem.batches[0].part(slice(6))
            found = measured(linearise, problem, six)
        assert costs.scales
        assert abs(costs.kept(elements(six)) - found.kept) <= 8
        assert abs(costs.peak(elements(six)) - max(found.history)) <= 8
        assert costs.operations == len(found.history)


def test_a_model_of_one_batch_size_is_left_alone():
    fixed = nn.Sequential(Lambda(lambda x: x.view(5, 3)), nn.Linear(3, 3)).double()
    case = replace(BY_NAME["mlp"], inputs=floats(10, 3), targets=labels(10, below=3))
    problem = case.problem(model=fixed, sizes=(5, 5))
    assert not footprint(definition("ggn").linearise, problem).scales
    matrix = Curvature(problem, "ggn")
    matrix.prepare()
    assert matrix.kept_batches == 2


def test_a_meter_weighs_storages_once_while_they_live():
    x = torch.ones(100)
    with Meter([x]) as meter:
        assert x.view(10, 10).t().sum() == 100  # views of what was there, and a number
        y = x + 1
        y.mul_(2)
        assert (meter.bytes, y.view(4, 25).untyped_storage().nbytes()) == (400, 400)
        z = y * y
        assert meter.bytes == 800
        del y, z
        assert (meter.bytes, meter.peak) == (0, 800)
    assert meter.history[-1] == 800
    assert len(meter.history) > 3


# Batches.

FREE = Footprint(Line(0, 1), MaximumOfLines((Line(0, 1),), LossMemoryGrowth(), 1), 1, True)  # a byte an element


def examples(*sizes: int, width: int = 1) -> list[Batch]:
    indices = torch.arange(sum(sizes))
    x = indices[:, None].double().expand(-1, width).contiguous()
    return [Batch(x[part], part, part) for part in indices.split(list(sizes))]


def sizes(batches) -> list[int]:
    return [len(batch) for batch in batches]


@pytest.mark.parametrize(("room", "wanted"), [(0, [2, 2, 2, 1]), (4, [4, 3]), (5, [4, 3]), (6, [6, 1]), (99, [7])])
def test_merging_keeps_examples_and_order(room, wanted):
    found = merged(examples(2, 2, 2, 1), room)
    assert sizes(found) == wanted
    for part in ("inputs", "targets", "indices"):
        assert torch.cat([getattr(batch, part) for batch in found]).flatten().tolist() == list(range(7))


def test_only_neighbours_of_one_kind_are_merged():
    short, long = examples(2, 2), examples(2, 2, width=3)
    assert sizes(merged([*short, *long], 99)) == [4, 4]
    assert sizes(merged([short[0], long[0], short[1]], 99)) == [2, 2, 2]


@pytest.mark.parametrize(("memory", "wanted"), [(12, [12]), (11, 6 * [2]), (8, 6 * [2]), (4, 12 * [1]), (1, 12 * [1])])
def test_cutting_makes_equal_parts_of_a_quarter_of_memory(memory, wanted):
    found = resized(examples(12), FREE, memory)
    assert sizes(found) == wanted
    assert torch.cat([batch.indices for batch in found]).tolist() == list(range(12))


def test_batches_too_large_for_a_cpu_are_cut(monkeypatch):
    monkeypatch.setattr(batching, "LARGE", 3)
    assert sizes(resized(examples(12), FREE, 100)) == 4 * [3]
    assert sizes(resized(examples(7, 3, 2), FREE, 100)) == [3, 3, 1, 3, 2]


def test_batches_of_a_users_loss_stay():
    case = BY_NAME["custom, values"]
    matrix = Curvature(case.problem(loss=CustomLoss(case.function)), "hessian")
    matrix.prepare()
    assert matrix.kept_batches == len(case.sizes)


def test_any_mapping_is_cut_and_merged():
    from collections import UserDict

    batches = [Batch(UserDict(x=b.inputs), b.targets, b.indices) for b in examples(2, 2)]
    assert merged(batches, 99)[0].inputs["x"].flatten().tolist() == [0, 1, 2, 3]
