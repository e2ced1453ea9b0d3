"""Logits from zero to a hundred apart in float32: every matrix against closed forms in float64, by every route."""

import math
from copy import deepcopy
from functools import cache

import pytest
import torch
from networks import DEVICES, floats
from torch import Tensor, nn

from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.evaluation import cut_batches, mean_loss
from spectra.curvature.matrices import MATRICES
from spectra.curvature.operator import Curvature
from spectra.krylov.dense import dense_matrix
from spectra.krylov.eigenpairs import eigenpairs
from spectra.problem.binary import BinaryCrossEntropy
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.problem import Problem

KINDS = (torch.float32, torch.float64)
MARGINS = (0.0, 1.0, 5.5, 9.0, 17.0, 25.0, 40.0, 87.0, 100.0)
TRACED = 10**9  # products expected, which pay for a trace
DENORMAL = 2.0**-149
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0])


def logits_of(margin: float) -> Tensor:
    """Rows of four classes, the largest `margin` above what comes next."""
    m, a, b = margin, 0.75, -2.0
    rows = [[m, 0, a - 1, b], [m, 0, 0, 0], [m, m, 0, 0], [m + 1, m, b, -m], [0, m, -m, -m], [m / 2, -m / 2, b, -m]]
    return torch.tensor(rows)


LOGITS = torch.cat([logits_of(m) for m in MARGINS])
CLASSES = torch.arange(len(LOGITS)).mul(5) % 7 % 3  # now the top class, now another
IGNORED = torch.where(torch.arange(len(LOGITS)) % 5 == 4, -100, CLASSES)
SOFT = torch.cat([nn.functional.one_hot(CLASSES, 4)[::2], floats(len(LOGITS) // 2, 4).softmax(dim=1)]).float()
BITS = torch.stack([CLASSES % 2, CLASSES // 2, torch.ones_like(CLASSES), CLASSES == 0], dim=1).float()
LOSSES = {
    "cross entropy": (CrossEntropy(), CLASSES),
    "weights": (CrossEntropy(WEIGHTS), CLASSES),
    "ignored": (CrossEntropy(WEIGHTS), IGNORED),
    "smoothing": (CrossEntropy(WEIGHTS, label_smoothing=0.125), IGNORED),
    "soft": (CrossEntropy(WEIGHTS), SOFT),
    "binary": (BinaryCrossEntropy(), BITS),
    "binary, soft": (BinaryCrossEntropy(), SOFT),
}


class Table(nn.Module):
    """Each example has logits of its own: they are the parameters, and each matrix has a block for an example."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(logits.clone(), freeze=False)

    def forward(self, x):
        return self.table(x)


def problem_of(name: str, device: str = "cpu", **settings) -> Problem:
    loss, targets = LOSSES[name]
    examples = torch.arange(len(LOGITS), device=device)
    batches = cut_batches(examples, targets.to(device), examples, len(LOGITS))
    return Problem(Table(LOGITS).to(device), loss, batches, seed=3, mc_samples=40, **settings)


# What is true, in float64 and by formulas that take nothing from 1. Blocks are (E, K, K).


def probabilities(name: str) -> tuple[Tensor, Tensor]:
    """p and 1 - p, of classes or of single outputs."""
    z = LOGITS.double()
    if name.startswith("binary"):
        return 1 / (1 + (-z).exp()), 1 / (1 + z.exp())
    p = (z - z.logsumexp(dim=1, keepdim=True)).exp()
    return p, torch.stack([p[:, [j for j in range(4) if j != i]].sum(dim=1) for i in range(4)], dim=1)


def labels(name: str) -> Tensor:
    """The weight of each class as a label (E, K), or targets of single outputs."""
    loss, targets = LOSSES[name]
    if name.startswith("binary"):
        return targets.double()
    if not targets.is_floating_point():
        targets = nn.functional.one_hot(targets.clamp(min=0), 4) * (targets >= 0)[:, None]
    targets = targets.double()
    share = targets.sum(dim=1, keepdim=True)  # 0 where ignored, and 1
    weights = torch.ones(4).double() if loss.class_weights is None else loss.class_weights.double()
    return ((1 - loss.label_smoothing) * targets + loss.label_smoothing / 4 * share) * weights


def gradients(name: str) -> Tensor:
    """Of each example's loss by its logits, (E, K), as the data's sum has them."""
    p, rest = probabilities(name)
    a = labels(name)
    if name.startswith("binary"):
        return (1 - a) * p - a * rest
    others = torch.stack([a[:, [j for j in range(4) if j != i]].sum(dim=1) for i in range(4)], dim=1)
    return p * others - rest * a


def curvatures(name: str) -> Tensor:
    p, rest = probabilities(name)
    if name.startswith("binary"):
        return torch.diag_embed(p * rest)
    blocks = -p[:, :, None] * p[:, None, :]
    blocks.diagonal(dim1=1, dim2=2).copy_(p * rest)
    return blocks * labels(name).sum(dim=1)[:, None, None]


def weight(name: str) -> float:
    loss, targets = LOSSES[name]
    if name.startswith("binary"):
        return targets.numel()
    if targets.is_floating_point():
        return len(targets)
    kept = targets[targets >= 0]
    return len(kept) if loss.class_weights is None else loss.class_weights.double()[kept].sum().item()


def examples(name: str) -> int:
    targets = LOSSES[name][1]
    return len(targets) if targets.is_floating_point() else int((targets >= 0).sum())


@cache
def truth(matrix: str, name: str) -> Tensor:
    """(n, n)."""
    g = gradients(name)
    scale = examples(name) / weight(name) ** 2
    if matrix in ("hessian", "ggn", "fisher"):
        return torch.block_diag(*curvatures(name) / weight(name))
    if matrix == "fisher-batch":  # one batch of all
        return g.flatten()[:, None] * g.flatten() / weight(name) ** 2
    full = scale * torch.block_diag(*(g[:, :, None] * g[:, None, :]))
    return full - g.flatten()[:, None] * g.flatten() / weight(name) ** 2 if matrix == "gradient-covariance" else full


def assert_blocks_close(found: Tensor, expected: Tensor, exact_apart: bool = True) -> None:
    """Each example's block to a few roundings of its own size, however small; what lies apart, of the whole matrix.

    A gap of a hundred is rounded by 4e-6, and its exponential by as much of itself.
    """
    found, count = found.double().cpu(), len(expected) // 4
    found, expected = (x.view(count, 4, count, 4).transpose(1, 2) for x in (found, expected))
    own = torch.arange(count)
    sizes = expected[own, own].abs().amax(dim=(1, 2))
    errors = (found - expected)[own, own].abs().amax(dim=(1, 2))
    assert (errors <= 2e-5 * sizes + 16 * DENORMAL).all(), (errors / sizes).nan_to_num().max()
    if exact_apart:
        assert found.transpose(0, 1)[own, own].equal(found[own, own])
        apart = (found - expected).index_put((own, own), torch.zeros(()).double())
        assert apart.abs().max() <= 1e-6 * expected.abs().max()


EXACT = [name for name in MATRICES if name != "fisher-mc"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("matrix", EXACT)
def test_matrices(matrix, loss, device):
    assert_blocks_close(dense_matrix(Curvature(problem_of(loss, device), matrix)), truth(matrix, loss))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["cross entropy", "smoothing", "binary"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_traced_matrices(matrix, loss, device):
    curvature = Curvature(problem_of(loss, device), matrix, products=TRACED)
    assert_blocks_close(dense_matrix(curvature), truth(matrix, loss))
    assert curvature.path.startswith("hoisted")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["ignored", "soft", "binary, soft"])
@pytest.mark.parametrize("matrix", [name for name in MATRICES if name not in ("hessian", "fisher-mc")])
def test_factors(matrix, loss, device):
    """F'F. Roots of what is below the largest of its block by more than a rounding are left out."""
    factor = Curvature(problem_of(loss, device), matrix).factor()
    rows = factor.transposed_times(torch.eye(factor.rows, device=device)).double()
    assert_blocks_close(rows.T @ rows, truth(matrix, loss), exact_apart=False)
    gram = factor.gram()
    assert (gram - rows @ rows.T).abs().max() <= 1e-6 * gram.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cross entropy", "binary"])
def test_drawn_labels(name, device):
    """r = p - e_c for one class or another (of two for each output), every entry to a few roundings of itself."""
    p, rest = probabilities(name)
    numbers = torch.linspace(0.001, 0.999, len(LOGITS), dtype=torch.float64)
    drawn = LOSSES[name][0].draw(LOGITS.to(device), lambda j: numbers.roll(7 * j).to(device)).double().cpu()
    choices = torch.stack([torch.where(torch.arange(4) == c, -rest, p) for c in range(4)])
    if name == "binary":
        choices = torch.stack([p, -rest])
    errors = (drawn - choices).abs() / (choices.abs() + 1e5 * DENORMAL)
    errors = errors if name == "binary" else errors.amax(dim=2)
    assert errors.amin(dim=0).max() <= 2e-5
    assert len(errors.argmin(dim=0).unique()) > 1


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name):
    problem, (p, rest) = problem_of(name), probabilities(name)
    logs = torch.where(p > 0.5, (-rest).log1p(), p.log())
    terms = -(labels(name) * logs)
    if name.startswith("binary"):
        terms = terms - (1 - labels(name)) * torch.where(rest > 0.5, (-p).log1p(), rest.log())
    assert math.isclose(mean_loss(problem), terms.nan_to_num().sum().item() / weight(name), rel_tol=1e-6)
    found = mean_gradient(problem).double().view(len(LOGITS), 4)
    expected = gradients(name) / weight(name)
    errors, sizes = (x.abs().amax(dim=1) for x in (found - expected, expected))
    assert (errors <= 2e-5 * sizes + DENORMAL).all()


def test_values_of_examples_fitted_well():
    """-log p is 1 - p where p is near 1, and float32's logarithm of p is zero."""
    row = torch.tensor([[50.0, 0.0, -1.0, -2.0]])
    wrong = math.exp(-50) + math.exp(-51) + math.exp(-52)
    assert math.isclose(CrossEntropy().total(row, torch.tensor([0])).item(), wrong, rel_tol=1e-5)
    found = BinaryCrossEntropy().total(row[:, :1], torch.ones(1, 1)).item()
    assert math.isclose(found, math.exp(-50), rel_tol=1e-5)


def test_symmetric_to_rounding_of_its_own_size():
    """u'(A v) = v'(A u) for a matrix of the size of exp(-25), of logits that an ordinary network makes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        x = floats(30, 5).float()
        targets = model(x).argmax(dim=1)
        gaps = model(x).topk(2).values.diff().abs()
        x, targets = x[gaps[:, 0] > gaps.median()], targets[gaps[:, 0] > gaps.median()]
        model[2].weight *= 25 / gaps.median()
    for name in ("hessian", "ggn", "fisher"):
        batches, in_float64 = (cut_batches(x.to(kind), targets, torch.arange(len(x)), len(x)) for kind in KINDS)
        operator = Curvature(Problem(model, CrossEntropy(), batches), name)
        exact = Curvature(Problem(deepcopy(model).double(), CrossEntropy(), in_float64), name)
        u, v = floats(2, operator.shape[0]).float()
        size = (operator @ v).norm() * u.norm()
        assert 0 < size < 1e-8 * u.norm() * v.norm()
        assert abs(u @ (operator @ v) - v @ (operator @ u)) <= 1e-5 * size
        assert (operator @ v - exact @ v.double()).norm() <= 1e-4 * (exact @ v.double()).norm()


@pytest.mark.parametrize("margin", [17.0, 60.0, 87.0, 95.0])
def test_eigenvalues_by_lanczos(margin):
    """Down to where a number of the matrix is a few hundred times the smallest that there is."""
    logits = torch.cat([margin + floats(30, 1) / 10, torch.zeros(30, 1)], dim=1).float()
    batches = cut_batches(torch.arange(30), torch.zeros(30).long(), torch.arange(30), 30)
    problem = Problem(Table(logits), CrossEntropy(), batches)
    true = 2 / (2 + 2 * (logits[:, 0] - logits[:, 1]).double().cosh()) / 30
    found = eigenpairs(Curvature(problem, "hessian"), 3, generator=torch.Generator().manual_seed(0))
    wanted = true.sort(descending=True).values[:3]
    assert ((found.values - wanted).abs() <= 1e-4 * wanted + found.residuals).all()
    assert (found.residuals <= 0.02 * wanted).all()
