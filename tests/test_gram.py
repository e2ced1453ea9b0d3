"""The factor F of A = F'F: Gram matrix, products and trace against dense matrices; what it costs, what it refuses."""

import math
import re
from dataclasses import replace

import pytest
import torch
from networks import BY_NAME, CASES, DEVICES, MASKED, SOME, Case, X, Y, chosen, floats, mlp, name_of
from torch import Tensor, nn

import spectra.curvature.factor.gram
import spectra.curvature.factor.inner_products
from spectra.curvature.factor.gram import Factor
from spectra.curvature.factor.linear_layers import linear_squares
from spectra.curvature.fisher import Fisher
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.dense import dense_matrix
from spectra.problem.losses import CustomLoss
from spectra.problem.problem import Problem

ROOTS = [name for name in MATRICES if not definition(name).has_model_curvature]  # those with a factor

MLP, CONVOLUTION = BY_NAME["mlp"], BY_NAME["convolution, BatchNorm"]
INDEFINITE = BY_NAME["custom, mean"]  # its ggn has no root
ALL = [
    (case, name)
    for case in CASES
    for name in ROOTS
    if not (case.kind == "custom" and definition(name).needs_distribution) and (case, name) != (INDEFINITE, "ggn")
]


def with_factor(case: Case, name: str, **settings) -> tuple[Factor, Tensor]:
    problem = case.problem(seed=5, mc_samples=3, **settings)
    return Factor(problem, name), dense_matrix(Curvature(problem, name)).to(problem.device)


def spectrum(gram: Tensor, n: int) -> Tensor:
    """The eigenvalues of F'F (n, n), rising, from those of F F'."""
    values = torch.linalg.eigvalsh(gram)[-n:]
    return torch.cat([values.new_zeros(n - len(values)), values])


def normal(*shape: int, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)


def close(found: Tensor, expected: Tensor, size: float | None = None, rtol: float = 1e-10) -> bool:
    size = expected.abs().max().item() if size is None else size
    assert found.shape == expected.shape
    return not found.numel() or (found - expected).abs().max().item() <= rtol * size


@pytest.mark.sampled(40)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("case", "name"), ALL, ids=name_of)
def test_factor_of_the_matrix(case, name, device):
    factor, matrix = with_factor(case, name, device=device)
    gram, size = factor.gram(), matrix.abs().max().item()
    assert gram.shape == (factor.rows, factor.rows)
    assert close(spectrum(gram, len(matrix)), torch.linalg.eigvalsh(matrix), size)
    assert math.isclose(factor.trace(), matrix.trace().item(), rel_tol=1e-10)

    vectors, weights = normal(3, len(matrix), like=matrix), normal(3, len(gram), like=matrix)
    assert close(factor.transposed_times(factor.times(vectors)), vectors @ matrix, 10 * size)
    assert close(factor.times(factor.transposed_times(weights)), weights @ gram, 10 * size)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_rows_are_transposed_to_eigenvectors(case, name):
    factor, matrix = with_factor(case, name)
    values, weights = torch.linalg.eigh(factor.gram())
    kept = values > 1e-6 * values[-1]
    vectors = factor.transposed_times(weights.T[kept]) / values[kept].sqrt()[:, None]
    assert close(vectors @ vectors.T, torch.eye(len(vectors)).to(vectors), rtol=1e-8)
    assert close(vectors @ matrix, values[kept][:, None] * vectors, matrix.abs().max().item(), rtol=1e-8)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", [name for name in ROOTS if not definition(name).depends_on_batches])
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_order_and_split_change_nothing(case, name):
    whole = with_factor(case, name, sizes=[7])[0].gram()
    parts = with_factor(case, name, sizes=[3, 1, 3], order=torch.tensor([3, 0, 6, 2, 1, 5, 4]))[0].gram()
    assert close(torch.linalg.eigvalsh(parts), torch.linalg.eigvalsh(whole))


@pytest.mark.parametrize("patterns", [["*.bias"], ["0.weight", "2.bias"], ["2.*"]], ids=str)
@pytest.mark.parametrize("name", ROOTS)
def test_chosen_parameters(name, patterns):
    model = MLP.model()
    factor, matrix = with_factor(MLP, name, model=model, parameters=chosen(model, *patterns))
    assert close(spectrum(factor.gram(), len(matrix)), torch.linalg.eigvalsh(matrix))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("case", [MLP, CONVOLUTION], ids=name_of)
def test_single_precision_keeps_small_eigenvalues(case, name):
    """To eps sqrt(lambda |A|), which a Gram matrix summed in float32 would not."""
    found, expected = (with_factor(case, name, dtype=dtype)[0].gram() for dtype in (torch.float32, torch.float64))
    assert found.dtype == torch.float64
    found, expected = spectrum(found, 40).clamp(min=0), spectrum(expected, 40).clamp(min=0)
    largest = expected[-1].sqrt()
    assert ((found.sqrt() - expected.sqrt()).abs() < 1e-6 * largest).all()


def test_weight_decay_is_a_shift():
    factor, matrix = with_factor(MLP, "ggn", weight_decay=0.5)
    assert close(spectrum(factor.gram(), len(matrix)) + factor.shift, torch.linalg.eigvalsh(matrix))


# Rows: one for what the matrix is a sum over.


def test_examples_without_gradient_count():
    """A class of weight zero leaves no rows, but is in the mean that the covariance is taken about."""
    case = replace(MLP, options={"weight": torch.tensor([0.0, 1.0, 2.0])})
    factor, matrix = with_factor(case, "gradient-covariance")
    assert factor.rows < 7
    assert close(spectrum(factor.gram(), len(matrix)), torch.linalg.eigvalsh(matrix))
    assert math.isclose(factor.trace(), matrix.trace().item(), rel_tol=1e-10)


def test_number_of_rows():
    def rows(case: Case, name: str, **settings) -> int:
        return with_factor(case, name, **settings)[0].rows

    assert rows(MLP, "ggn") == rows(MLP, "fisher") == 7 * (3 - 1)  # softmax has a direction without curvature
    assert rows(MLP, "fisher-mc") == 7 * 3  # samples
    assert rows(MLP, "fisher-empirical") == rows(MLP, "gradient-covariance") == 7
    assert rows(MLP, "fisher-batch", sizes=[2, 2, 3]) == 3
    assert rows(BY_NAME["ignored targets"], "fisher-empirical") == 4
    assert rows(BY_NAME["mse"], "ggn") == 7 * 3
    assert rows(BY_NAME["custom, curved nowhere"], "ggn") == 0


# Cost: passes, memory.


@pytest.mark.parametrize("name", ["fisher-empirical", "ggn", "fisher-batch"])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_blocks_within_memory(name, blocks):
    """The same matrix by blocks of columns, with a pass over the data for each and no more."""
    problem = CONVOLUTION.problem(seed=5)
    whole = Factor(problem, name)
    expected = whole.gram()
    known = set() if name == "fisher-batch" else {id(p) for p in problem.model[-1].parameters()}
    columns = sum(p.numel() for p in problem.leaves if id(p) not in known)
    width = math.ceil(columns / blocks)
    factor = Factor(problem, name, memory=width * whole.rows * 8)
    calls = []
    with problem.model.register_forward_hook(lambda module, inputs, output: calls.append(len(output))):
        assert close(factor.gram(), expected)
    linear, kinds = bool(known), 2 if name == "ggn" else 1  # of rows, each of which takes a pass
    first = len(problem.batches[0])  # examples: which layers are linear; roots, linear layers, each block
    assert sum(calls) == first + (name == "ggn") + 7 * (1 + linear + blocks)  # one tells how wide outputs are
    assert factor.products == math.ceil((linear * (kinds + 1) + kinds * blocks) / 2)


def test_ignored_examples_cost_nothing():
    problem = Case("twice", Twice, X, MASKED).problem(sizes=[7])
    factor, sizes = Factor(problem, "fisher-empirical"), []
    with problem.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output))):
        factor.gram()
    # Two tell whether the model writes to its inputs; roots, layers, their rows; the rest by itself.
    assert sizes == [2, 7, 7, 7, 1, 1, 1, 1]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_cost_is_told_before(case, name):
    for memory in (None, 2000):
        factor, _ = with_factor(case, name)
        factor.memory = memory or factor.memory
        told = factor.cost()
        assert factor.products == 0
        factor.gram()
        assert factor.products == told
    factor, _ = with_factor(case, name, sizes=[7])
    told = factor.trace_cost()
    factor.trace()
    assert factor.products == told


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("case", [MLP, CONVOLUTION, BY_NAME["sequence, classes last"]], ids=name_of)
def test_work_is_no_less_than_the_cost(case, name):
    """So that a budget that holds the one holds the other; where no row is taken by itself, they agree."""
    factor, _ = with_factor(case, name, sizes=[7])
    work = factor.trace_work()
    assert factor.products == 0
    assert work >= factor.trace_cost() - 0.5
    if case is MLP and name != "fisher-batch":
        assert work <= factor.trace_cost() + 0.5  # softmax has one kind of row fewer than outputs
    else:
        assert work == passes_by_shape(factor) / 2


def passes_by_shape(factor: Factor) -> float:
    """By hand: 7 examples, 3 outputs, 4 positions; a layer alone among them is linear, the others take single rows."""
    single = 1 if definition(factor.name).depends_on_batches else min(spectra.curvature.factor.gram.SINGLE, 7)
    rows = len(factor._rows(factor.problem.batches[0])) // 7
    kinds = {"ggn": 3, "fisher": 3, "fisher-mc": 3}.get(factor.name, 1) * (rows if factor.name != "fisher-batch" else 1)
    linear = bool(factor._layers) * (kinds + 1)
    return linear + kinds * single * bool(factor.one_by_one) + definition(factor.name).subtracts_mean_gradient


def test_work_where_there_may_be_no_root():
    assert Factor(INDEFINITE.problem(), "ggn").trace_work() == math.inf
    assert Factor(BY_NAME["custom, curved nowhere"].problem(), "ggn").trace_work() == math.inf


@pytest.mark.parametrize("name", ["ggn", "gradient-covariance"])
def test_linear_layers_within_memory(name):
    """Layer by layer where their inputs and slopes do not fit together: a set of passes for each, the same matrix."""
    whole, _ = with_factor(MLP, name)
    expected = whole.gram()
    layers = len(whole._layers)
    one = max(whole._layers.values()) * whole.rows * 8
    for memory, groups in ((whole.columns * whole.rows * 8, 1), (one, layers), (1, layers)):
        factor = Factor(whole.problem, name, memory=memory)
        told = factor.cost()
        assert close(factor.gram(), expected)
        kinds = len(factor.parts[0].kinds)
        assert factor.products == told == math.ceil(groups * (kinds + 1) / 2)


def test_products_count_passes():
    factor, _ = with_factor(MLP, "fisher-empirical")
    factor.transposed_times(torch.ones(3, factor.rows).double())
    factor.times(torch.ones(2, factor.problem.size).double())
    assert factor.products == 3  # five passes


def test_tiles_change_nothing(monkeypatch):
    expected = [with_factor(case, "ggn")[0].gram() for case in SOME]
    monkeypatch.setattr(spectra.curvature.factor.inner_products, "TILE", 3)
    assert all(close(with_factor(case, "ggn")[0].gram(), e) for case, e in zip(SOME, expected, strict=True))


# Linear layers: found where their rows are those of examples, and where their parameters serve nowhere else.


class Twice(nn.Module):
    """Layers called twice, the second once in vain; and one whose weight is also used by itself."""

    def __init__(self):
        super().__init__()
        self.shared, self.idle, self.seen, self.last = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x):
        x = self.shared(self.shared(x).tanh())
        x, _ = self.idle(x), self.idle(x.cos())
        return self.last(self.seen(x).tanh()) * self.seen.weight.square().sum()


class Positions(nn.Module):
    """A layer that is called with as many rows as there are examples, but these are positions."""

    def __init__(self):
        super().__init__()
        self.table = nn.Buffer(floats(7, 3))
        self.embed, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last((x[:, None] + self.embed(self.table)).tanh().mean(dim=1))


class Reversed(nn.Module):
    """A layer that sees the examples in another order."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.first(x.flip(0)).tanh().flip(0))


SHORTCUTS = [
    (Case("mlp", mlp, X, Y), {"0.weight", "0.bias", "2.weight", "2.bias"}),
    (BY_NAME["relu in place"], {"0.weight", "0.bias", "2.weight", "2.bias"}),
    (BY_NAME["checkpointed"], {"first.weight", "first.bias", "second.weight", "second.bias"}),
    (CONVOLUTION, {"7.weight", "7.bias"}),
    (Case("twice", Twice, X, Y), {"seen.bias", "last.weight", "last.bias"}),
    (Case("positions", Positions, X, Y), {"last.weight", "last.bias"}),
    (Case("reversed", Reversed, X, Y), {"last.weight", "last.bias"}),
    (BY_NAME["tied weights"], set()),
    (BY_NAME["sequence, classes last"], set()),
]


@pytest.mark.parametrize("name", ["ggn", "gradient-covariance"])
@pytest.mark.parametrize(("case", "expected"), SHORTCUTS, ids=name_of)
def test_linear_layers(case, expected, name):
    factor, matrix = with_factor(case, name, sizes=[7])
    features = linear_squares(factor.problem, factor.parts[0])
    names = {id(p): key for key, p in factor.problem.parameters.items()}
    assert {names[i] for key in features for i in key} == expected
    assert close(spectrum(factor.gram(), len(matrix)), torch.linalg.eigvalsh(matrix))


class Sometimes(nn.Module):
    """Three examples are taken for a sequence."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x[None] if len(x) == 3 else x).reshape(x.shape)


@pytest.mark.parametrize("build", [Positions, Sometimes])
def test_linear_layer_of_some_batches_only(build):
    """What looks like a layer on examples in one batch does not in the other."""
    case = Case("some", build, torch.cat([X, X[:3]]), torch.cat([Y, Y[:3]]))
    factor, matrix = with_factor(case, "fisher-empirical", sizes=[7, 3])
    assert close(spectrum(factor.gram(), len(matrix)), torch.linalg.eigvalsh(matrix))


def test_model_is_left_as_found():
    for case in (MLP, CONVOLUTION, BY_NAME["transformer layer, tied head"]):
        model = case.model()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        versions = [p._version for p in model.parameters()]
        factor, _ = with_factor(case, "fisher-empirical", model=model)
        factor.gram(), factor.trace()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert [p._version for p in model.parameters()] == versions
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())


# Refusals.


def refused(*words: str):
    return pytest.raises(SpectraError, match=r"\A" + ".*".join(map(re.escape, words)) + r"[^\n]*\Z")


def test_hessian_is_refused():
    with refused("`method` gram", "hessian", "another method", "`curvature` ggn"):
        Factor(MLP.problem(), "hessian")


def test_too_many_rows_are_refused_but_for_the_trace(monkeypatch):
    monkeypatch.setattr(spectra.curvature.factor.gram, "LARGEST", 13)
    factor, matrix = with_factor(MLP, "ggn")
    with refused("`method` gram", "ggn", "14 rows", "7 examples x 2", "13", "`samples`"):
        factor.gram()
    assert math.isclose(factor.trace(), matrix.trace().item(), rel_tol=1e-10)
    with_factor(MLP, "fisher-empirical")[0].gram()
    with_factor(MLP, "fisher-batch", sizes=7 * [1])[0].gram()


def test_many_outputs_are_refused_before_their_root_is_taken(monkeypatch):
    """Which takes the cube of their number."""
    monkeypatch.setattr(spectra.curvature.factor.gram, "LARGEST", 13)
    monkeypatch.setattr(Fisher, "root", lambda *_: pytest.fail("taken"))
    with refused("`method` gram", "fisher", "14 rows", "7 examples x 2"):
        with_factor(MLP, "fisher")[0].cost()


def tied_examples(output: Tensor, targets: Tensor) -> Tensor:
    return (output - output.mean(dim=0) - targets).square().mean()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (INDEFINITE.function, ("not convex", "another method")),
        (tied_examples, ("mixes the examples", "another method")),
    ],
    ids=["indefinite", "tied"],
)
def test_losses_without_a_root_are_refused(function, words):
    problem: Problem = replace(INDEFINITE, function=function).problem(sizes=[7], loss=CustomLoss(function))
    with refused("`method` gram", *words):
        Factor(problem, "ggn").gram()
