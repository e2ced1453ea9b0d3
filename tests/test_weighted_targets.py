"""Targets with weights, {"labels": y, "weights": w}: every matrix against a loop over the targets, written by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import spectra
from spectra.comparison.residuals import residuals
from spectra.curvature.evaluation import cut_batches, evaluate
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.inputs.python_objects import own_loss
from spectra.krylov.dense import dense_matrix
from spectra.problem.problem import Problem
from spectra.spectrum.classes import class_means

N, T, K = 7, 3, 3
D = torch.float64
g = seeded(1)
X = torch.randn(N, 4, dtype=D, generator=g)
TOKENS = torch.randint(K, (N, T), generator=g)
TOKENS[0, 0] = -100
OF_TOKENS = torch.rand(N, T, dtype=D, generator=g)
OF_TOKENS[1, 1] = OF_TOKENS[2, 0] = 0
OF_TOKENS[4] = 0
OF_ROWS = torch.tensor([0.5, 2, 0, 1, 3, 0.25, 0], dtype=D)
REAL = torch.randn(N, K, dtype=D, generator=g)
OF_OUTPUTS = torch.rand(N, K, dtype=D, generator=g) * (torch.rand(N, K, generator=g) > 0.3)
CLASS_WEIGHTS = torch.tensor([1.0, 3.0, 0.5], dtype=D)


def token_outputs(z: Tensor) -> Tensor:
    return torch.stack([z, z.sin(), 2 * z], dim=2)


@dataclass(frozen=True)
class Case:
    """A loss with weights of its targets; `value` is the loss of one example of the loss, `labels` its target."""

    loss: nn.Module
    labels: Tensor
    weights: Tensor
    head: Callable[[Tensor], Tensor] = lambda z: z
    natural: bool = True

    def items(self) -> list[tuple[tuple[int, ...], float]]:
        """The place and the weight of each value of the loss."""
        spread = self.weights.reshape(*self.weights.shape, *(1 for _ in self.labels.shape[self.weights.ndim :]))
        whole = spread.expand(self.labels.shape)
        places = [tuple(place) for place in torch.ones(self.labels.shape).nonzero().tolist()]
        return [(place, whole[place].item()) for place in places if self.labels[place] != -100]


CASES = {
    "tokens": Case(nn.CrossEntropyLoss(), TOKENS, OF_TOKENS, token_outputs),
    "tokens of weighted classes": Case(nn.CrossEntropyLoss(CLASS_WEIGHTS), TOKENS, OF_TOKENS, token_outputs),
    "sequences": Case(nn.CrossEntropyLoss(), TOKENS, OF_ROWS, token_outputs),
    "mask": Case(nn.CrossEntropyLoss(), TOKENS, OF_TOKENS > 0, token_outputs),
    "classes": Case(nn.CrossEntropyLoss(reduction="sum"), TOKENS[:, 1], OF_ROWS),
    "mse rows": Case(nn.MSELoss(), REAL, OF_ROWS),
    "mse outputs": Case(nn.MSELoss(), REAL, OF_OUTPUTS),
    "bce": Case(nn.BCEWithLogitsLoss(), (REAL > 0).to(D), OF_ROWS),
    "bce outputs": Case(
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1, 3], dtype=D)), (REAL > 0).to(D), OF_OUTPUTS
    ),
    "huber": Case(nn.HuberLoss(), REAL, OF_OUTPUTS, natural=False),
    "poisson": Case(nn.PoissonNLLLoss(), REAL.abs().round(), OF_OUTPUTS),
    "nll": Case(nn.NLLLoss(), TOKENS[:, 1], OF_ROWS, lambda z: z.log_softmax(1), natural=False),
}


class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, K))
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


class Loop:
    """The loss of a case as a loop over its targets."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        self.case, self.model = case, Net(case.head).double()
        self.names = dict(self.model.named_parameters())
        self.point = torch.cat([p.detach().reshape(-1) for p in self.names.values()])

    def output(self, point: Tensor) -> Tensor:
        parts = point.split([p.numel() for p in self.names.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(self.names.items(), parts, strict=True)}
        return functional_call(self.model, values, (X,))

    def each(self, output: Tensor) -> Tensor:
        """The weighted values of rows of the loss, (examples, positions)."""
        values, total = [], 0.0
        loss = self.case.loss
        of_classes = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
        none = type(loss).__new__(type(loss))
        none.__dict__ = {**loss.__dict__, "reduction": "none"}
        for place, w in self.case.items():
            if of_classes:
                f = output[place[0], :, place[1]] if len(place) > 1 else output[place[0]]
                label = self.case.labels[place][None]
                values.append(w * none(f[None], label)[0])
                total += w * (1.0 if loss.weight is None else loss.weight[label].item())
            else:
                values.append(w * none(output[place[0]][None], self.case.labels[place[0]][None])[0, place[1]])
                total += w
        return torch.stack(values) / (1.0 if loss.reduction == "sum" else total)

    def examples(self) -> list[list[int]]:
        """The values that make up each example, of those whose weight is not zero."""
        rows: dict[Any, list[int]] = {}
        of_classes = isinstance(self.case.loss, nn.CrossEntropyLoss | nn.NLLLoss)
        for i, (place, w) in enumerate(self.case.items()):
            if w:
                rows.setdefault(place if of_classes else place[0], []).append(i)
        return list(rows.values())

    def loss(self, point: Tensor) -> Tensor:
        return self.each(self.output(point)).sum()

    def hessian(self) -> Tensor:
        return hessian(self.loss, self.point)

    def ggn(self) -> Tensor:
        output = self.output(self.point)
        outer = jacobian(self.output, self.point).flatten(0, -2)
        bend = hessian(lambda f: self.each(f).sum(), output).reshape(2 * [output.numel()])
        return outer.T @ bend @ outer

    def fisher_empirical(self) -> Tensor:
        rows = jacobian(lambda point: self.each(self.output(point)), self.point)
        gradients = torch.stack([rows[inside].sum(dim=0) for inside in self.examples()])
        return len(gradients) * gradients.T @ gradients

    def problem(self, size: int = N, **options) -> Problem:
        targets = {"labels": self.case.labels, "weights": self.case.weights}
        return Problem(self.model, own_loss(self.case.loss), cut_batches(X, targets, torch.arange(N), size), **options)


def matrix(problem: Problem, name: str) -> Tensor:
    return dense_matrix(Curvature(problem, name))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", CASES)
def test_matrices_against_a_loop(name):
    case, loop = CASES[name], Loop(CASES[name])
    problem = loop.problem(3)
    assert problem.examples == len(loop.examples())
    assert evaluate(problem).loss == pytest.approx(loop.loss(loop.point).item(), rel=1e-12)
    for curvature in ("hessian", "ggn", "fisher-empirical"):
        if curvature == "ggn" and name == "nll":
            continue
        expected = getattr(loop, curvature.replace("-", "_"))()
        found = matrix(problem, curvature)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    exact = matrix(problem, "fisher")
    if case.natural:
        torch.testing.assert_close(exact, matrix(problem, "ggn"), rtol=1e-9, atol=1e-10)
    drawn = matrix(loop.problem(mc_samples=250), "fisher-mc")
    assert (drawn - exact).norm() <= 0.25 * exact.norm()
    parts, whole = (matrix(loop.problem(size, mc_samples=2), "fisher-mc") for size in (2, N))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_a_weight_of_two_is_an_example_twice():
    """Whole weights against the examples repeated: second derivatives, class means, and the way along directions."""
    times = torch.tensor([2, 1, 0, 3, 1, 2, 1])
    labels = TOKENS[:, 1].clone()
    torch.manual_seed(0)
    model = Net(lambda z: z).double()
    targets = {"labels": labels, "weights": times.to(D)}
    ours = Problem(model, own_loss(nn.CrossEntropyLoss()), cut_batches(X, targets, torch.arange(N), 3))
    x, y = X.repeat_interleave(times, dim=0), labels.repeat_interleave(times)
    theirs = Problem(model, own_loss(nn.CrossEntropyLoss()), cut_batches(x, y, torch.arange(len(y)), 4))
    for name in ("hessian", "ggn", "fisher"):
        torch.testing.assert_close(matrix(ours, name), matrix(theirs, name), rtol=1e-10, atol=1e-12)
    for one, other in zip(vars(class_means(ours)).values(), vars(class_means(theirs)).values(), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert residuals(ours).accuracy == pytest.approx(evaluate(ours).accuracy)


def test_weights_of_one_change_nothing():
    loop = Loop(Case(nn.CrossEntropyLoss(), TOKENS, torch.ones(N, T), token_outputs))
    plain = Problem(loop.model, own_loss(nn.CrossEntropyLoss()), cut_batches(X, TOKENS, torch.arange(N), 3))
    for name in spectra.MATRICES:
        torch.testing.assert_close(matrix(loop.problem(3), name), matrix(plain, name), rtol=1e-12, atol=1e-13)
    assert evaluate(loop.problem()) == evaluate(plain)


def test_accuracy_counts_targets_of_some_weight():
    loop = Loop(CASES["tokens"])
    kept = (OF_TOKENS > 0) & (TOKENS != -100)
    right = loop.model(X).argmax(dim=1) == TOKENS
    assert evaluate(loop.problem(2)).accuracy == pytest.approx(right[kept].double().mean().item())
    loop = Loop(CASES["bce outputs"])
    right = (loop.model(X) > 0) == (REAL > 0)
    assert evaluate(loop.problem(2)).accuracy == pytest.approx(right[OF_OUTPUTS > 0].double().mean().item())


def test_soft_labels_with_weights():
    soft = torch.randn(N, K, dtype=D, generator=seeded(2)).softmax(1)
    torch.manual_seed(0)
    model = Net(lambda z: z).double()
    targets = {"labels": soft, "weights": OF_ROWS}
    problem = Problem(model, own_loss(nn.CrossEntropyLoss()), cut_batches(X, targets, torch.arange(N), 3))
    values = F.cross_entropy(model(X), soft, reduction="none")
    assert evaluate(problem).loss == pytest.approx(((OF_ROWS * values).sum() / OF_ROWS.sum()).item(), rel=1e-12)
    torch.testing.assert_close(matrix(problem, "fisher"), matrix(problem, "ggn"), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"labels": TOKENS[:, 0], "weights": torch.ones(N, 2)}, r"weights of shape \(\d, 2\) do not fit labels"),
        ({"labels": TOKENS[:, 0], "weights": -torch.ones(N)}, "some weights of targets are negative"),
        ({"labels": TOKENS[:, 0], "weights": torch.zeros(N)}, "all are ignored or have weight 0"),
        (
            {"a": TOKENS[:, 0], "b": TOKENS[:, 1]},
            "a mapping with keys labels and weights, got a dict with keys a, b",
        ),
        ((TOKENS[:, 0], TOKENS[:, 1]), "got a tuple"),
    ],
)
def test_what_are_no_weights(targets, words):
    torch.manual_seed(0)
    model = Net(lambda z: z).double()
    problem = Problem(model, own_loss(nn.CrossEntropyLoss()), cut_batches(X, targets, torch.arange(N), N))
    with pytest.raises(SpectraError, match=words):
        Curvature(problem, "hessian") @ torch.ones(problem.size, dtype=D)
