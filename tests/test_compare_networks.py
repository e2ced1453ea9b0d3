"""The causes of differences, on networks: closed forms, and what is zero by definition."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import BY_NAME, Case, floats, labels, mlp
from torch import Tensor, nn

from spectra.comparison.batch_products import USUAL, batch_products, in_usual_batches
from spectra.comparison.causes import causes
from spectra.comparison.comparison import compare
from spectra.comparison.residuals import residuals
from spectra.comparison.subsample import CHAINS, SubsetEigenvalues, chains, trend
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs

LINEAR = [
    Case("softmax", lambda: nn.Linear(3, 4), floats(9, 3), labels(9, below=4), sizes=(5, 4)),
    Case("least squares", lambda: nn.Linear(3, 2), floats(9, 3), floats(9, 2), "mse", sizes=(5, 4)),
    Case("logistic", lambda: nn.Linear(3, 2), floats(9, 3), (floats(9, 2) > 0).double(), "bce", sizes=(5, 4)),
]
CURVED = ["mlp", "mse", "bce", "weights, smoothing and ignored", "sequence, classes last", "soft targets"]
FOUR = ("hessian", "ggn", "fisher", "fisher-empirical")


def compared(problem, *names: str, seed: int = 0, **settings):
    settings = {"k": 3, "probes": 4, "steps": 8} | settings
    return compare({name: Curvature(problem, name) for name in names or FOUR}, generator=seeded(seed), **settings)


def explained(problem, *names: str, **settings):
    found, gradient = compared(problem, *names, **settings), mean_gradient(problem)
    return found, causes(found, residuals(problem), gradient.square().sum().item(), None)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_of_linear_models_the_hessian_is_the_ggn(case):
    found, told = explained(case.problem())
    assert found.pair("hessian", "ggn").rounding
    assert "is rounding: the model is linear" in told[0].sentence


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CURVED)
def test_the_fisher_is_the_ggn(name):
    found, told = explained(BY_NAME[name].problem())
    pair = found.pair("ggn", "fisher")
    assert pair.rounding
    assert pair.wasserstein_share.value < 1e-8
    assert not found.pair("hessian", "ggn").rounding
    assert [cause.between for cause in told] == [("hessian", "ggn"), ("ggn", "fisher"), ("fisher", "fisher-empirical")]
    assert "which is rounding" in told[1].sentence


def test_a_pair_is_explained_whichever_comes_first():
    _, told = explained(BY_NAME["mlp"].problem(), "fisher-empirical", "fisher", "ggn")
    assert [cause.between for cause in told] == [("fisher", "ggn"), ("fisher-empirical", "fisher")]
    assert told[1].sentence.startswith("fisher-empirical - fisher comes from the labels")


def zero_softmax(examples: int, inputs: int = 3, classes: int = 4):
    case = Case(
        "zero",
        lambda: nn.Linear(inputs, classes, bias=False),
        floats(examples, inputs),
        labels(examples, below=classes),
    )
    model = case.model()
    nn.init.zeros_(model.weight)
    return case.problem(sizes=(examples,), model=model), case.inputs


def test_softmax_at_zero_weights():
    """Fisher = XX'/N x (I/C - 11'/C^2): eigenvalues of X'X/N over C, each C - 1 times, and zeros."""
    problem, x = zero_softmax(12)
    spectrum = torch.linalg.eigvalsh(x.T @ x / len(x)) / 4
    found = compared(problem, k=9)
    for name in ("hessian", "ggn", "fisher"):
        summary = found.summaries[name]
        assert summary.norm == pytest.approx((math.sqrt(3 * spectrum.square().sum()), 0), abs=1e-6)
        assert summary.trace == pytest.approx((3 * spectrum.sum().item(), 0), abs=1e-6)
    pair = found.pair("fisher", "fisher-empirical")
    assert [spaces.reliable for spaces in pair.agreements[:3]][:2] == [False, False]  # inside the first multiplet
    seen = residuals(problem)
    assert (seen.missing, seen.confidence) == pytest.approx((3 / 4, 1 / 4))
    assert seen.residual == pytest.approx(math.sqrt(3 / 4))
    assert (seen.observed, seen.expected, seen.ratio) == pytest.approx((3 / 4, 3 / 4, 1))


def test_residuals_of_least_squares():
    """The model expects residuals of variance K/2 each: then |dl/df|^2 is what it says."""
    case = LINEAR[1]
    problem, model = case.problem(), case.model()
    off = model(case.inputs) - case.targets
    seen = residuals(problem)
    assert seen.residual == pytest.approx(off.norm(dim=1).mean().item())
    assert seen.residual_rms == pytest.approx(off.square().sum(1).mean().sqrt().item())
    assert seen.deviation == pytest.approx(case.targets.var(0, unbiased=False).sum().sqrt().item())
    assert seen.gradient == pytest.approx(seen.residual)  # 2 / K, K = 2
    assert seen.expected == 2  # tr of (2 / K) I
    assert seen.ratio == pytest.approx(off.square().mean().item() / (2 / 2))
    assert (seen.missing, seen.accuracy) == (None, None)


def test_residuals_of_classifiers():
    case = BY_NAME["mlp"]
    p = case.model()(case.inputs).softmax(1)
    seen, y = residuals(case.problem()), nn.functional.one_hot(case.targets, 3)
    assert (seen.residual, seen.gradient) == pytest.approx(2 * ((p - y).norm(dim=1).mean().item(),))
    assert seen.missing == pytest.approx((1 - (p * y).sum(1)).mean().item())
    assert seen.expected == pytest.approx((1 - p.square().sum(1)).mean().item())
    assert seen.confidence == pytest.approx(p.max(1).values.mean().item())
    assert seen.accuracy == pytest.approx((p.argmax(1) == case.targets).double().mean().item())
    assert 0 <= seen.calibration_error <= 1
    one = BY_NAME["bce"]
    sigma, targets = one.model()(one.inputs).sigmoid(), one.targets
    seen = residuals(one.problem())
    assert seen.missing == pytest.approx((sigma - targets).abs().mean().item())
    assert seen.confidence == pytest.approx(torch.maximum(sigma, 1 - sigma).mean().item())


@pytest.mark.parametrize(
    "name", ["mlp", "bce", "mse", "weights, smoothing and ignored", "class weights", "soft sequence"]
)
def test_observed_and_expected_are_what_the_matrices_hold(name):
    """For a model that is its own bias, J = I for every example: traces of EF and Fisher are the two means."""
    case = BY_NAME[name]
    problem = case.problem()
    rows = torch.cat([problem.loss.rows(problem.output(batch), batch.targets) for batch in problem.batches]).detach()
    constant = rows.mean(0)

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(constant.clone())

        def forward(self, *inputs):
            shape = reference(*inputs).shape
            side = 1 if name == "soft sequence" else len(shape) - 1
            return self.bias.view([-1 if i == side else 1 for i in range(len(shape))]).expand(shape)

    reference = case.model()
    problem = case.problem(model=Bias())
    seen, identity = residuals(problem), torch.eye(problem.size, dtype=torch.float64)
    assert seen.observed == pytest.approx((Curvature(problem, "fisher-empirical") @ identity).trace().item())
    assert seen.expected == pytest.approx((Curvature(problem, "fisher") @ identity).trace().item())


def test_a_loss_of_ones_own_has_residuals_alone():
    problem = BY_NAME["custom, values"].problem()
    _, told = explained(problem, "hessian", "ggn", "fisher-empirical")
    assert residuals(problem).ratio is None
    assert [cause.between for cause in told] == [("hessian", "ggn")]
    assert "Mean |dl/df|" in told[0].sentence


def certain(wrong: bool):
    """A linear model whose probabilities are exactly 0 and 1: GGN and Fisher are zero.

    Of right labels the empirical Fisher is zero, too.
    """
    labels = (torch.arange(9) + wrong) % 3
    case = Case("certain", lambda: nn.Linear(3, 3, bias=False), torch.eye(3).repeat(3, 1), labels)
    model = case.model()
    with torch.no_grad():
        model.weight.copy_(1e9 * torch.eye(3))
    return case.problem(sizes=(9,), model=model)


@pytest.mark.parametrize("wrong", [False, True])
def test_causes_of_matrices_that_are_zero(wrong):
    problem = certain(wrong)
    found = compared(problem, k=1, steps=2)
    assert found.summaries["fisher"].norm.value == 0
    batch = products_of_batches(problem, found, 3)
    told = causes(found, residuals(problem), mean_gradient(problem).square().sum().item(), batch)
    assert len(told) == 4
    for cause in told:
        assert not {"nan", "inf", "None"} & set(cause.sentence.replace(",", " ").split()), cause.sentence
    assert "no share of |fisher|, which is zero" in told[2].sentence


def split(problem, size: int, order: Tensor | None = None):
    batch = problem.batches[0]
    order = torch.arange(len(batch)) if order is None else order
    from dataclasses import replace

    return replace(problem, batches=[batch.part(part) for part in order.split(size)])


def products_of_batches(problem, found, size: int, order: Tensor | None = None):
    cut = split(problem, size, order)
    return batch_products(cut, found, Curvature(cut, "fisher-batch"), mean_gradient(problem), 6, seeded(0))


def test_outer_products_of_batches_at_either_end():
    problem = BY_NAME["mlp"].problem(sizes=(7,))
    found, gradient = compared(problem, k=10), mean_gradient(problem)
    whole, single = (products_of_batches(problem, found, size) for size in (7, 1))
    assert whole.trace.value == pytest.approx(gradient.square().sum().item())
    assert whole.whole_trace == pytest.approx(whole.trace.value)
    assert whole.predicted_trace == pytest.approx(whole.trace.value)
    assert single.distances["fisher-empirical"].value < 1e-9
    assert single.predicted_trace == pytest.approx(single.trace.value)
    sentence = causes(found, residuals(problem), whole.whole_trace, whole)[-1].sentence
    assert sentence.startswith("fisher - fisher-batch: outer products of the gradients of batches of 7 are")


def test_the_predicted_trace_is_the_mean_over_splits():
    case = Case("four", mlp, floats(4, 3), labels(4, below=3))
    problem = case.problem(sizes=(4,))
    found = compared(problem, k=12)
    splits = [[*one, *(i for i in range(4) if i not in one)] for one in combinations(range(4), 2)]
    every = [products_of_batches(problem, found, 2, torch.tensor(order)) for order in splits]
    assert np.mean([one.trace.value for one in every]) == pytest.approx(every[0].predicted_trace)


def test_usual_batches_are_the_same_examples():
    case = Case("many", mlp, floats(2 * USUAL + 5, 3), labels(2 * USUAL + 5, below=3))
    problem = case.problem(sizes=(2 * USUAL + 5,))
    cut = in_usual_batches(problem)
    assert [len(batch) for batch in cut.batches] == [USUAL, USUAL, 5]
    assert torch.cat([batch.indices for batch in cut.batches]).equal(problem.batches[0].indices)


def test_lines_through_eigenvalues_of_fewer_examples():
    """Exact lines are found exactly; noisy ones within errors that cover."""
    sizes, generator, hits = [50, 100, 200], np.random.default_rng(0), []
    found = trend(sizes, np.tile(3 + 40 / np.array(sizes), (CHAINS, 1)), 400)
    assert found.limit == pytest.approx((3, 0), abs=1e-9)
    assert found.at_all == pytest.approx((3.1, 0), abs=1e-9)
    for _ in range(200):
        pool = generator.normal(2, 1, 400)  # a mean, which has no b, of 400 numbers
        draws = [generator.permutation(pool) for _ in range(CHAINS)]
        values = np.array([[draw[:size].mean() for size in sizes] for draw in draws])
        value, error = trend(sizes, values, 400).limit
        hits.append(abs(value - 2) <= 2.4 * error)  # some 3 to 6 degrees of freedom
    assert np.mean(hits) >= 0.9


def test_chains_are_nested_and_their_own():
    case = Case("many", mlp, floats(40, 3), labels(40, below=3))
    found = {}
    for chain, size, problem in chains(case.problem(sizes=(25, 15)), [30, 10, 20], 0):
        found[chain, size] = {i for batch in problem.batches for i in batch.indices.tolist()}
        assert len(found[chain, size]) == size
        assert torch.cat([batch.targets for batch in problem.batches]).equal(case.targets[sorted(found[chain, size])])
    for chain in range(CHAINS):
        assert found[chain, 10] < found[chain, 20] < found[chain, 30]
    assert len({frozenset(found[chain, 10]) for chain in range(CHAINS)}) == CHAINS


def test_all_examples_give_the_eigenvalues_themselves():
    problem, by_size = BY_NAME["mlp"].problem(), SubsetEigenvalues()
    for _, size, part in chains(problem, [4, 7], 0):
        by_size.add(size, eigenpairs(Curvature(part, "ggn"), 2, which="LA", generator=seeded(0)))
    whole = eigenpairs(Curvature(problem, "ggn"), 2, which="LA", generator=seeded(0))
    assert by_size.values.shape == (CHAINS, 2, 2)
    assert np.allclose(by_size.values[:, 1], whole.values, rtol=1e-6)
    assert [trend.means[1].value for trend in by_size.trends(7)] == pytest.approx(whole.values.tolist())


@pytest.mark.parametrize(
    ("sizes", "told"), [([4, 8], "the data have only 7 examples"), ([4, 4], "one size shows no trend")]
)
def test_sizes_that_do_not_serve(sizes, told):
    with pytest.raises(SpectraError, match=told):
        next(chains(BY_NAME["mlp"].problem(), sizes, 0))
