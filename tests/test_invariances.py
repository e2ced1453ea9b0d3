"""What must change nothing, or by a known factor: batches, order, scale, which parameters, memory, precision."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import BY_NAME, DEVICES, SOME, X, chosen, floats, labels, log_cosh, mlp, name_of
from torch import nn

from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.krylov.dense import dense_matrix
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem
from spectra.product_checks import check_operator

pytestmark = pytest.mark.usefixtures("batches_as_given")

MIXED = BY_NAME["weights, smoothing and ignored"]
PRODUCTS = [name for name in MATRICES if definition(name).loss_power == 2]
WHOLE = [name for name in MATRICES if not definition(name).depends_on_batches]
FOR_ANY_LOSS = [name for name in MATRICES if not definition(name).needs_distribution]


def products(problem: Problem, name: str, memory: int | None = None) -> torch.Tensor:
    """With three fixed vectors."""
    return Curvature(problem, name, memory) @ floats(problem.size, 3).to(problem.device, problem.dtype)


def assert_close(found, expected, tolerance=1e-12):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# Batches.


@pytest.mark.sampled(15)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_split_and_order_of_batches_change_nothing(case, name, device):
    whole = products(case.problem(sizes=(7,), mc_samples=2, device=device), name)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    for settings in ({"sizes": 7 * [1]}, {"sizes": (2, 5)}, {"order": order}, {"order": order, "sizes": (1, 4, 2)}):
        assert_close(products(case.problem(**settings, mc_samples=2, device=device), name), whole)


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_fisher_batch_depends_on_the_split_alone(case):
    """Not on the order of batches, nor on that inside of one."""
    one = products(case.problem(sizes=(3, 3, 1)), "fisher-batch")
    moved = case.problem(sizes=(3, 1, 3), order=torch.tensor([5, 3, 4, 6, 0, 1, 2]))
    assert_close(products(moved, "fisher-batch"), one)
    other = products(case.problem(sizes=(1, 3, 3)), "fisher-batch")
    assert (one - other).norm() > 0.01 * one.norm()


def test_labels_of_fisher_mc_follow_the_seed_and_the_sample():
    case = BY_NAME["mlp"]
    one, other = (products(case.problem(seed=seed), "fisher-mc") for seed in (0, 1))
    assert (one - other).norm() > 0.1 * one.norm()
    again = products(case.problem(seed=0), "fisher-mc")
    assert torch.equal(one, again)


# Scale.


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("name", FOR_ANY_LOSS)
def test_scale_of_the_loss(name, factor):
    """c for curvatures, c^2 for products of gradients; exactly so where c is a power of two."""
    case = BY_NAME["custom, values"]
    scaled = CustomLoss(lambda output, targets: factor * log_cosh(output, targets))
    power = factor ** definition(name).loss_power
    assert_close(products(case.problem(loss=scaled), name), power * products(case.problem(), name))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("name", MATRICES)
def test_scale_of_class_weights_cancels_in_the_mean(name, factor):
    loss = MIXED.loss()
    scaled = replace(loss, class_weights=factor * loss.class_weights)
    assert_close(products(MIXED.problem(loss=scaled), name), products(MIXED.problem(), name))


# Parameters.


@pytest.mark.sampled(17)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_frozen_parameters_stay_out(case, name):
    """What is left is a block of the whole matrix, whether the others are frozen or not named."""
    model = case.model()
    first = next(iter(model.parameters()))
    rest = dict(list(model.named_parameters())[1:])
    out = case.problem(model=model, parameters=rest)
    vectors = floats(out.size, 3)
    block = (Curvature(case.problem(), name) @ F.pad(vectors, (0, 0, first.numel(), 0)))[first.numel() :]
    assert_close(Curvature(out, name) @ vectors, block)
    first.requires_grad_(False)
    assert_close(Curvature(case.problem(model=model), name) @ vectors, block)


@pytest.mark.parametrize("name", MATRICES)
def test_unused_parameters_have_zero_rows_and_columns(name):
    case = BY_NAME["mlp"]
    model = case.model()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    found = dense_matrix(Curvature(case.problem(model=model), name))
    assert_close(found[2:, 2:], dense_matrix(Curvature(case.problem(), name)))  # a module's own parameters come first
    assert found[:2].count_nonzero() == found[:, :2].count_nonzero() == 0


def test_tied_parameters_count_once_under_either_name():
    case = BY_NAME["tied weights"]
    model = case.model()
    assert case.problem().size == 5 * 3 + 3 * 3 + 3 + 5
    by_head, by_embedding = chosen(model, "head.weight"), chosen(model, "embedding.*")
    assert list(by_head) == list(by_embedding) == ["embedding.weight"]
    assert by_head["embedding.weight"] is model.head.weight


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("name", MATRICES)
def test_batches_that_no_chosen_parameter_reaches_add_nothing(name, memory):
    """A mixture whose expert is asked in the second batch alone: the rest is as if it came from elsewhere."""
    case = BY_NAME["mlp"]
    expert = case.model()
    other = mlp().double()

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([expert, other])

        def forward(self, x):
            first = (x[:, None] == X[:5]).all(dim=2).any(dim=1)  # of the examples, those of the first batch
            if first.all() or not first.any():
                return self.experts[int(first.all())](x)
            return torch.where(first[:, None], self.experts[1](x), self.experts[0](x))

    model = Mixture().eval()
    found = products(case.problem(model=model, parameters=dict(expert.named_parameters())), name, memory)
    part = case.problem(model=expert)
    alone = Problem(expert, part.loss, part.batches[1:])
    share = alone.examples / part.examples
    expected = share * products(alone, name)
    if name == "gradient-covariance":  # F - g g', both shares of those of the batch alone
        g = mean_gradient(alone)
        expected += (share - share**2) * torch.outer(g, g) @ floats(part.size, 3)
    assert_close(found, expected)


@pytest.mark.parametrize("name", MATRICES)
def test_order_of_parameters_permutes_rows_and_columns(name):
    case = BY_NAME["mlp"]
    whole = dense_matrix(Curvature(case.problem(), name))
    model = case.model()
    named = dict(reversed(list(model.named_parameters())))
    parts = torch.arange(len(whole)).split([p.numel() for p in model.parameters()])
    order = torch.cat(parts[::-1])
    found = dense_matrix(Curvature(case.problem(model=model, parameters=named), name))
    assert_close(found, whole[order][:, order])


def test_vector_and_tensors_are_inverse():
    problem = BY_NAME["convolution, BatchNorm"].problem()
    vector = floats(problem.size)
    parts = problem.tensors(vector)
    assert [part.shape for part in parts] == [p.shape for p in problem.model.parameters()]
    assert torch.equal(problem.vector(parts), vector)


def test_memory_format_of_weights_changes_nothing():
    case = BY_NAME["convolution, BatchNorm"]
    last = case.model().to(memory_format=torch.channels_last)
    for name in MATRICES:
        assert_close(products(case.problem(model=last), name), products(case.problem(), name))


# Weight decay.


@pytest.mark.parametrize("name", [name for name in MATRICES if name not in PRODUCTS])
def test_weight_decay_is_a_shift(name):
    case = BY_NAME["mlp"]
    vectors = floats(case.problem().size, 3)
    shifted = products(case.problem(weight_decay=0.25), name)
    assert_close(shifted, products(case.problem(), name) + 0.25 * vectors)


# Parameters.


def test_covariance_takes_its_mean_at_the_parameters_of_the_day():
    problem = BY_NAME["mlp"].problem()
    before = products(problem, "gradient-covariance")
    with torch.no_grad():
        problem.leaves[0].mul_(1.5)
    fresh = BY_NAME["mlp"].problem(model=problem.model)
    assert torch.equal(products(problem, "gradient-covariance"), products(fresh, "gradient-covariance"))
    assert (products(problem, "gradient-covariance") - before).norm() > 0.01 * before.norm()


def test_nothing_is_computed_before_the_first_product():
    def fails(output, targets):
        raise AssertionError("called")

    case = BY_NAME["custom, values"]
    assert Curvature(case.problem(loss=CustomLoss(fails)), "hessian").shape == (31, 31)


# Precision.


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_lower_precision_is_near(name, dtype, tolerance):
    for case in (BY_NAME["mlp"], MIXED, BY_NAME["soft, weights and smoothing"]):
        problem = case.problem(dtype=dtype)
        if name == "fisher-mc":  # a label may change where p does
            problem, tolerance = case.problem(dtype=torch.float32), 1e-5
        found = products(problem, name)
        assert found.dtype == problem.dtype
        assert_close(found.double(), products(case.problem(), name), tolerance)


@pytest.mark.parametrize("name", MATRICES)
def test_every_matrix_of_the_table_passes_the_check_of_operators(name):
    for case in (*SOME, BY_NAME["fused attention"]):
        noise = check_operator(Curvature(case.problem(), name), torch.Generator().manual_seed(0))
        assert 0 <= noise < 1e-13


def test_targets_of_mse_may_be_integers_as_of_another_precision():
    case, targets = BY_NAME["mse"], labels(7, 3, below=5)
    whole, real = replace(case, targets=targets), replace(case, targets=targets.double())
    for name in MATRICES:
        assert torch.equal(products(whole.problem(), name), products(real.problem(), name))


def test_a_model_of_several_outputs_at_once_is_the_sum_over_its_outputs():
    """mse over K outputs of a model without shared parameters is block diagonal."""
    model = mlp(3, 4, 2).double().eval()
    inputs, targets = X, floats(7, 2)
    case = replace(BY_NAME["mse"], inputs=inputs, targets=targets)
    found = dense_matrix(Curvature(case.problem(model=model, parameters=chosen(model, "2.*")), "ggn"))
    weights = found[:8, :8]
    assert_close(weights[:4, :4], weights[4:, 4:])
    assert weights[:4, 4:].count_nonzero() == 0
