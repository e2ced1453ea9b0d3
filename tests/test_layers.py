"""A matrix block by block: closed forms, dense references, what changes nothing, and errors that cover."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import not_finite, seeded, uniform, with_spectrum
from networks import BY_NAME, NETWORKS, Case, X, Y, floats, name_of
from test_dense_reference import Reference
from torch import Tensor, nn

from spectra.curvature.operator import Curvature
from spectra.krylov.block_diagonal import BlockDiagonal
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.results import Eigenpairs
from spectra.layerwise.layers import distinct, layers, stable_rank
from spectra.layerwise.parameter_blocks import ParameterBlock, block_sums, diagonal_blocks, parameter_blocks
from spectra.layerwise.recording import block_record, low_ranks
from spectra.operator import Counting
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem
from spectra.records.files import to_json

TIGHT = {"tolerance": 1e-9, "rtol": 1e-9}


def of(problem: Problem, name: str = "hessian", by: str = "layer", seed: int = 0, **settings):
    operator, blocks = Curvature(problem, name), parameter_blocks(problem, by)
    own, sums = diagonal_blocks(operator, blocks, problem, name), block_sums(problem, blocks, operator)
    return layers(operator, own, blocks, sums, generator=seeded(seed), **settings)


def regression(outputs: int = 3, bias: bool = False, examples: int = 20) -> Case:
    return Case(
        "regression", lambda: nn.Linear(4, outputs, bias=bias), floats(examples, 4), floats(examples, outputs), "mse"
    )


def values(found: list) -> list[float]:
    return [estimate.value for estimate in found]


# Closed forms


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("bias", [False, True])
def test_each_output_of_a_linear_regression_has_the_covariance_of_its_inputs(bias, name):
    """(2/(NK)) X'X for every channel, X with a column of ones where there is a bias."""
    case = regression(bias=bias)
    x = torch.cat([case.inputs, torch.ones(20, 1)], dim=1) if bias else case.inputs
    covariance = 2 / (20 * 3) * x.T @ x
    found = of(case.problem(sizes=(20,)), name, "channel", k=2, **TIGHT)
    assert len(found.blocks) == 3
    spectrum = torch.linalg.eigvalsh(covariance).flip(0)
    for i, (trace, share) in enumerate(zip(found.traces, found.shares, strict=True)):
        assert trace == pytest.approx((covariance.trace().item(), 0), rel=1e-12)
        assert share == pytest.approx((1 / 3, 0))
        torch.testing.assert_close(found.eigenpairs[i].values, spectrum[:2], rtol=1e-8, atol=0)
    assert found.leading.values.item() == pytest.approx(spectrum[0].item(), rel=1e-8)
    assert sum(found.mass(i) for i in range(3)) == pytest.approx(1)
    theta = torch.cat([p.detach().flatten() for p in case.model().parameters()])
    rises = [(theta[block.index].square() @ covariance.diagonal()).item() / 2 for block in found.blocks]
    assert values(found.sensitivities) == pytest.approx(rises, rel=1e-12)


def test_eigenvectors_of_a_softmax_regression_on_one_example_have_rank_one():
    """(diag p - pp') x xx': every leading eigenvector is an outer product."""
    case = Case("one example", lambda: nn.Linear(4, 5, bias=False), floats(1, 4), torch.tensor([2]))
    found = of(case.problem(sizes=(1,)), k=1, **TIGHT)
    (low,) = low_ranks(found, 0)
    assert low.weight == "weight"
    assert low.stable_rank == pytest.approx(1, abs=1e-7)
    assert low.of_whole == pytest.approx(1, abs=1e-7)


def test_of_a_multiple_leading_eigenvalue_no_eigenvector_is_told():
    """I x X'X: each of K copies has as much right to be the one."""
    found = of(regression().problem(sizes=(20,)), k=1, **TIGHT)
    entry = block_record(found, 0)
    assert found.converged
    assert (entry.mass, entry.overlap, entry.low_rank) == (None, None, [])


@pytest.mark.parametrize(
    ("values", "residuals", "estimates", "told"),
    [
        ([3.0], [1e-3], [1e-6], True),
        ([-3.0], [1e-3], [9e-5], True),
        ([3.0], [1e-3], [2e-4], False),  # a gap of five residuals
        ([3.0], [1e-3], [1e-3], False),  # a copy
        ([0.0], [1e-9], [0.0], False),
        ([3.0], [0.0], [0.0], True),
    ],
)
def test_an_eigenvector_is_told_by_the_gap_behind_it(values, residuals, estimates, told):
    numbers = (torch.tensor(some, dtype=torch.float64) for some in (values, residuals, estimates))
    value, residual, estimate = numbers
    assert distinct(Eigenpairs(value, torch.eye(1), residual, estimate, products=1, converged=True)) == told


@pytest.mark.parametrize("seed", range(3))
def test_saliencies_that_rank_have_errors_of_their_own(seed):
    """Against their norm, where `ranked`; those of traces alone are met by fewer products."""
    network = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 4))
    problem = Case("wide", lambda: network, floats(30, 8), floats(30, 4), "mse").problem(sizes=(30,))
    found = {ranked: of(problem, by="channel", k=0, rtol=0.05, ranked=ranked, seed=seed) for ranked in (False, True)}
    errors = {ranked: torch.tensor([s.standard_error for s in one.sensitivities]) for ranked, one in found.items()}
    norm = torch.tensor(values(found[True].sensitivities)).norm()
    assert errors[True].norm() <= 0.05 * norm < errors[False].norm()
    assert found[True].products > found[False].products


class Apart(nn.Module):
    """Two networks, each with outputs of its own: their losses add."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.right = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))

    def forward(self, x):
        return torch.cat([self.left(x), 3 * self.right(x)], dim=1)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_networks_apart_are_blocks_of_one_matrix(name):
    """All eigenvalues of the blocks are those of the matrix, and its leading vector lies in one of them."""
    case = Case("apart", Apart, X, floats(7, 3), "mse")
    problem = case.problem()
    found = of(problem, name, "module", k=26, **TIGHT)
    dense = Reference(case, "cpu").matrix(name)
    together = torch.cat([pairs.values for pairs in found.eigenpairs]).sort().values
    torch.testing.assert_close(together, torch.linalg.eigvalsh(dense), rtol=0, atol=1e-8)
    own = [abs(pairs.values[0].item()) for pairs in found.eigenpairs]
    winner = int(np.argmax(own))
    assert found.mass(winner) == pytest.approx(1, abs=1e-12)
    assert found.mass(1 - winner) == pytest.approx(0, abs=1e-12)
    assert found.overlap(winner) == pytest.approx(1, abs=1e-9)
    assert abs(found.leading.values.item()) == pytest.approx(own[winner], rel=1e-9)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (torch.eye(5), 5),
        (torch.eye(5)[:, :3], 3),
        (torch.ones(4, 7), 1),
        (torch.ones(7, 4) * 1e-20, 1),
        (torch.diag(torch.tensor([2.0, 1.0, 1.0])), 1.5),
        (torch.tensor([[3.0, 4.0]]), 1),
    ],
)
def test_stable_ranks(matrix, expected):
    assert stable_rank(matrix) == pytest.approx(expected, rel=1e-6)
    assert stable_rank(-3 * matrix.T) == pytest.approx(expected, rel=1e-6)


def test_the_stable_rank_is_that_of_singular_values():
    matrix = floats(5, 8)
    singular = torch.linalg.svdvals(matrix)
    assert stable_rank(matrix) == pytest.approx((singular.square().sum() / singular[0] ** 2).item(), rel=1e-12)


# Dense references


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


DEEP = Case("deep", deep, floats(30, 6), torch.arange(30) % 3, sizes=(20, 10))
EACH = [(DEEP, "hessian"), (DEEP, "ggn"), (DEEP, "fisher-empirical"), (DEEP, "gradient-covariance")]
EACH += [(case, "hessian") for case in NETWORKS if case.name in ("LSTM", "convolution, BatchNorm", "tied weights")]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("by", ["layer", "module", "channel"])
@pytest.mark.parametrize(("case", "name"), EACH, ids=name_of)
def test_all_is_what_the_dense_matrix_says(case, name, by):
    problem = case.problem()
    found = of(problem, name, by, k=2, **TIGHT)
    dense = Reference(case, "cpu").matrix(name)
    size = torch.linalg.matrix_norm(dense, 2).item()
    assert found.converged
    torch.testing.assert_close(found.diagonal.values, dense.diagonal(), rtol=0, atol=1e-10 * size)
    theta = torch.cat([p.detach().flatten() for p in problem.leaves])
    everything, vectors = torch.linalg.eigh(dense)
    leading = int(everything.abs().argmax())
    u = vectors[:, leading]
    assert found.leading.values.item() == pytest.approx(everything[leading].item(), rel=1e-8)
    assert found.trace == pytest.approx((dense.trace().item(), 0), abs=1e-9 * size)
    for i, block in enumerate(found.blocks):
        own = dense[block.index][:, block.index]
        assert found.traces[i].value == pytest.approx(own.trace().item(), abs=1e-9 * size)
        assert found.shares[i].value == pytest.approx((own.trace() / dense.trace()).item(), abs=1e-9)
        rise = (own.diagonal() * theta[block.index] ** 2 / 2).sum().item()
        assert found.sensitivities[i].value == pytest.approx(rise, abs=1e-9 * size)
        spectrum, own_vectors = torch.linalg.eigh(own)
        order = spectrum.abs().argsort(descending=True)
        k = min(2, len(order))
        torch.testing.assert_close(
            found.eigenpairs[i].values.abs(), spectrum[order[:k]].abs(), rtol=0, atol=1e-8 * size
        )
        part, q = u[block.index], own_vectors[:, order[0]]
        assert found.mass(i) == pytest.approx(part.square().sum().item(), abs=1e-7)
        gap = spectrum[order[0]].abs() - spectrum[order[1]].abs() if len(order) > 1 else size
        if gap > 1e-4 * size and part.norm() > 1e-4:
            assert found.overlap(i) == pytest.approx((abs(q @ part) / part.norm()).item(), abs=1e-6)
            for weight, rank, of_whole in (vars(low).values() for low in low_ranks(found, i)):
                place, shape = block.weights[weight]
                for vector, told in ((q, rank), (part, of_whole)):
                    singular = torch.linalg.svdvals(vector[place].view(shape[0], -1))
                    if singular[0] > 1e-4:
                        assert told == pytest.approx((singular.square().sum() / singular[0] ** 2).item(), rel=1e-3)


def test_weights_of_a_block_are_told_by_what_they_hold():
    """That with most of the eigenvector first; none of one row or column."""
    found = of(BY_NAME["LSTM"].problem(), "ggn", by="module", **TIGHT)
    place = found.blocks[0].weights
    vector = found.eigenpairs[0].vectors[0]
    told = [low.weight for low in found.low_ranks(0, vector)]
    assert sorted(told, key=lambda weight: -vector[place[weight][0]].norm()) == told
    assert set(told) == {"cell.weight_ih_l0", "cell.weight_hh_l0"}
    one = of(Case("thin", lambda: nn.Linear(4, 1), floats(7, 4), floats(7, 1), "mse").problem(), **TIGHT)
    assert low_ranks(one, 0) == []


class Idle(nn.Module):
    """A layer that the loss does not read, and one without outputs."""

    def __init__(self):
        super().__init__()
        self.read, self.unread, self.none = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 1)
        self.none.weight, self.none.bias = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(0))

    def forward(self, x):
        return self.read(x)


@pytest.mark.parametrize("by", ["layer", "module", "channel"])
def test_a_layer_that_the_loss_does_not_read_has_a_block_of_zeros(by):
    found = of(Case("idle", Idle, X, Y).problem(), by=by, steps=3, **TIGHT)
    assert found.converged
    idle = [i for i, block in enumerate(found.blocks) if block.name.startswith("unread")]
    assert sum(len(found.blocks[i].index) for i in idle) == 8
    for i in idle:
        assert found.traces[i] == found.shares[i] == (0, 0)
        assert found.eigenpairs[i].values.item() == 0
        assert found.mass(i) == pytest.approx(0, abs=1e-12)
        json.loads(to_json(block_record(found, i).to_dict()))
    assert sum(values(found.shares)) == pytest.approx(1)


# What changes nothing, or by a known factor


def numbers(found) -> list[list[float]]:
    count = range(len(found.blocks))
    return [
        values(found.traces),
        [pairs.values[0].item() for pairs in found.eigenpairs],
        values(found.sensitivities),
        [found.mass(i) for i in count],
        [found.overlap(i) for i in count],
        values(found.shares),
    ]


@pytest.mark.parametrize("sizes", [(30,), (7,) * 4 + (2,)])
def test_split_and_order_of_batches(sizes):
    order = torch.randperm(30, generator=seeded())
    one, other = (numbers(of(DEEP.problem(**how), **TIGHT)) for how in ({}, {"sizes": sizes, "order": order}))
    np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-7, atol=1e-9)


def test_the_scale_of_the_loss():
    def rows(output, targets):
        return F.cross_entropy(output, targets, reduction="none")

    one, other = (
        numbers(of(DEEP.problem(loss=CustomLoss(lambda o, t, c=c: c * rows(o, t))), **TIGHT)) for c in (1.0, 1e-3)
    )
    for before, after, factor in zip(one, other, (1e-3, 1e-3, 1e-3, 1, 1, 1), strict=True):
        assert after == pytest.approx(factor * np.array(before), rel=1e-6)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_weight_decay_shifts_every_eigenvalue(name):
    plain, decayed = (of(DEEP.problem(weight_decay=decay), name, k=3, **TIGHT) for decay in (0.0, 0.25))
    for i, block in enumerate(plain.blocks):
        assert decayed.traces[i].value - plain.traces[i].value == pytest.approx(0.25 * len(block.index), rel=1e-9)
        if name == "ggn":  # where the first in magnitude stay so
            torch.testing.assert_close(
                decayed.eigenpairs[i].values, plain.eigenpairs[i].values + 0.25, rtol=0, atol=1e-8
            )


@pytest.mark.parametrize("by", ["layer", "channel"])
def test_frozen_layers_change_no_other_block(by):
    model = DEEP.model()
    model[2].requires_grad_(False)
    free, frozen = of(DEEP.problem(), by=by, **TIGHT), of(DEEP.problem(model=model), by=by, **TIGHT)
    left = [i for i, block in enumerate(free.blocks) if not block.name.startswith("2")]
    assert [block.name for block in frozen.blocks] == [free.blocks[i].name for i in left]
    assert values(frozen.traces) == pytest.approx([free.traces[i].value for i in left], rel=1e-9)
    for pairs, i in zip(frozen.eigenpairs, left, strict=True):
        torch.testing.assert_close(pairs.values, free.eigenpairs[i].values, rtol=0, atol=1e-8)


def test_blocks_of_blocks_add_up():
    """Channels to layers, and layers to the whole."""
    by_layer, by_channel = (of(DEEP.problem(), "ggn", by, k=0, **TIGHT) for by in ("layer", "channel"))
    for attribute in ("traces", "sensitivities"):
        totals = dict.fromkeys((block.name for block in by_layer.blocks), 0.0)
        for block, estimate in zip(by_channel.blocks, getattr(by_channel, attribute), strict=True):
            totals[block.name.partition("[")[0]] += estimate.value
        assert values(getattr(by_layer, attribute)) == pytest.approx(list(totals.values()), rel=1e-9)


# Plain matrices: errors and cost

N = 120
A = with_spectrum(np.concatenate([[9, -6, 4, 2.5], uniform(N - 4, -0.5, 1)]))
PARTS = [part.sort().values for part in torch.randperm(N, generator=seeded(1)).split([50, 1, 29, 40])]
BLOCKS = [ParameterBlock(f"part {i}", index, {}) for i, index in enumerate(PARTS)]
THETA = torch.tensor(uniform(N, -2, 2))


def sums(diagonal: Tensor) -> Tensor:
    halves = diagonal * THETA**2 / 2
    return torch.stack([values[index].sum() for values in (diagonal, halves) for index in PARTS])


def found_of(operator=A, seed: int = 0, **settings):
    counted = Counting(operator)
    own = BlockDiagonal(counted, PARTS)
    found = layers(counted, own, BLOCKS, sums, generator=seeded(seed), **settings)
    return found, counted.products


@pytest.mark.parametrize(("method", "seeds"), [("xdiag", 40), ("hutchinson", 60)])
def test_errors_cover(method, seeds):
    """Of traces, saliencies, shares, and the trace of all; two errors hold the truth as often as they should."""
    told = [found_of(seed=seed, method=method, rtol=0.4, k=0)[0] for seed in range(seeds)]
    truth, total = sums(A.diagonal()), A.trace()
    for what, expected in (
        ("traces", truth[:4]),
        ("sensitivities", truth[4:]),
        ("shares", truth[:4] / total),
        ("trace", total[None]),
    ):
        found = np.array([getattr(one, what) for one in told]).reshape(seeds, -1, 2)
        errors = np.abs(found[..., 0] - expected.numpy())
        assert (errors <= 2 * found[..., 1]).mean() >= 0.85, what
        assert np.sqrt((found[..., 1] ** 2).mean()) <= 4 * np.sqrt((errors**2).mean()), what
    assert all(sum(values(one.shares)) == pytest.approx(1) for one in told)
    assert all(one.trace.value == pytest.approx(sum(values(one.traces))) for one in told)


@pytest.mark.parametrize("worst", [0, 2, 3])
@pytest.mark.parametrize("rtol", [0.2, 0.02])
@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
def test_traces_are_known_as_well_as_asked(method, rtol, worst):
    """Whichever block is hardest."""
    a, index = A.clone(), PARTS[worst]
    a[index[:, None], index] += with_spectrum(uniform(len(index), -3, 3), seed=3)
    found, products = found_of(a, method=method, rtol=rtol, k=0)
    assert found.converged
    assert products == found.products == found.diagonal.products
    assert all(trace.standard_error <= rtol * abs(found.trace.value) for trace in found.traces)


@pytest.mark.parametrize("settings", [{"k": 1}, {"k": 3, "steps": 6, "probes": 2}, {"k": 0, "steps": 5}])
def test_products_add_up(settings):
    found, products = found_of(**settings)
    assert found.converged
    assert found.products == products
    k, steps = settings["k"], settings.get("steps")
    assert (found.leading is None) == (found.vector is None) == (k == 0)
    assert [len(pairs.values) for pairs in found.eigenpairs] == ([min(k, len(index)) for index in PARTS] if k else [])
    assert len(found.measures) == (4 if steps else 0)
    for i, measure in enumerate(found.measures):
        assert measure.deflated == min(k, len(PARTS[i]))
        assert measure.dimension == len(PARTS[i])


@pytest.mark.parametrize("budget", [*range(1, 13), 20, 24, 40, 150, 400])
@pytest.mark.parametrize("settings", [{"k": 1}, {"k": 2, "steps": 6}, {"k": 0}, {"k": 0, "steps": 4}], ids=str)
def test_a_budget_is_never_exceeded(budget, settings):
    """And whatever is missing, an entry can be told of what is there."""
    found, products = found_of(max_products=budget, rtol=1e-3, tolerance=1e-6, **settings)
    assert products == found.products <= budget
    assert found.diagonal.products >= 1
    assert found.converged == (found.complete and all(part.converged for part in found.parts))
    if budget < 60:
        assert not found.converged
    for i in range(len(BLOCKS)):
        entry = block_record(found, i)
        json.loads(to_json(entry.to_dict()))
        assert (entry.values is None) == (not found.eigenpairs)
        assert (entry.mass is None) == (found.leading is None or not distinct(found.leading))


@pytest.mark.parametrize("settings", [{"k": 1}, {"k": 1, "steps": 30}])
def test_what_is_left_is_shared_by_the_blocks(settings):
    known = eigenpairs(A, 1, tolerance=1e-8, generator=seeded(3))
    found, products = found_of(max_products=100, rtol=5.0, tolerance=1e-13, known=known, **settings)
    assert products + known.products == found.products <= 100
    assert {pairs.products for pairs in found.eigenpairs} <= set(range(1, (100 - 32) // 4 + 1))


def test_what_is_known_is_not_sought_again():
    known = eigenpairs(A, 1, tolerance=1e-8, generator=seeded(3))
    plain, _ = found_of(tolerance=1e-6)
    found, products = found_of(tolerance=1e-6, known=known)
    assert products == found.products - known.products  # which were spent before
    assert found.leading is known
    assert [found.mass(i) for i in range(4)] == pytest.approx([plain.mass(i) for i in range(4)], abs=1e-5)
    for block, part in enumerate(PARTS):
        assert found.mass(block) == pytest.approx(known.vectors[0][part].square().sum().item(), abs=1e-12)


def test_the_same_seed_gives_the_same_bits():
    state = torch.get_rng_state()
    one, other, third = (found_of(seed=seed, steps=5, rtol=0.1)[0] for seed in (2, 2, 3))
    assert one.traces == other.traces
    assert one.traces != third.traces
    assert torch.equal(one.measures[0].nodes, other.measures[0].nodes)
    assert torch.equal(one.vector, other.vector)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_done_is_told():
    told = []

    @contextmanager
    def watch(what):
        yield lambda **numbers: told.append((what, numbers["products"]))

    found_of(steps=4, watch=watch)
    assert list(dict.fromkeys(what for what, _ in told)) == [
        "diagonal",
        "leading eigenpair",
        "blocks",
        "spectra of blocks",
    ]


@pytest.mark.parametrize("good", [0, 3, 34, 60])
def test_products_that_are_not_finite(good):
    """Wherever they begin: it ends, has not converged, and an entry can be told."""
    weights = {"w": (slice(0, 50), torch.Size((5, 10)))}
    blocks = [ParameterBlock("part 0", PARTS[0], weights), *BLOCKS[1:]]
    operator = not_finite(N, good)
    found = layers(operator, BlockDiagonal(operator, PARTS), blocks, sums, steps=4, generator=seeded())
    assert not found.converged
    for i in range(4):
        json.loads(to_json(block_record(found, i).to_dict()))


def test_the_model_is_left_as_it_was_found():
    problem = BY_NAME["convolution, BatchNorm"].problem()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    of(problem, steps=3, by="module")
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())
    assert len(Y) == problem.examples
