"""Each matrix equals the one written out from PyTorch's own mean loss by dense autograd, for every case of the table.

The references share nothing with the package but the numbers that fisher-mc draws its labels from: Hessians and
Jacobians are `torch.autograd.functional`'s, of PyTorch's loss over the whole data in one batch.
"""

import itertools
import math
from functools import cached_property

import pytest
import torch
from networks import BY_NAME, CASES, DEVICES, Case, name_of
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra.curvature.engine.replacements import weight_norm
from spectra.curvature.evaluation import mean_loss
from spectra.curvature.keyed_uniforms import uniforms
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.krylov.dense import columns

pytestmark = pytest.mark.usefixtures("batches_as_given")

SEED, SAMPLES = 5, 3


class Reference:
    """The loss of a case over all its data as a function of one vector, and its matrices, dense."""

    def __init__(self, case: Case, device: str):
        self.case = case
        self.model = case.model(device=device)
        self.inputs, self.targets = case.data(device=device)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.point = torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])
        self.at = self.output(self.point).detach()

    def output(self, point: Tensor) -> Tensor:
        parts = point.split([p.numel() for p in self.parameters.values()])
        values = {name: part.view(p.shape) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}
        if isinstance(self.inputs, dict):
            return functional_call(self.model, values, kwargs=self.inputs)
        return functional_call(self.model, values, self.inputs)

    def loss(self, point: Tensor) -> Tensor:
        return self.case.mean(self.output(point), self.targets)

    def rows(self, output: Tensor) -> Tensor:
        """(E, K): one row for what design section 1 calls an example."""
        if self.case.kind != "cross_entropy":
            return output.reshape(len(output), -1)
        if not self.case.classes_last:
            output = output.movedim(1, -1)
        return output.reshape(-1, output.shape[-1])

    @cached_property
    def jacobian(self) -> Tensor:
        """(E, K, n)."""
        return jacobian(lambda point: self.rows(self.output(point)), self.point)

    @cached_property
    def gradients(self) -> Tensor:
        """(E, n): g_i of single examples, zero for those that do not count."""
        return jacobian(lambda point: self.example_losses(self.output(point)), self.point)

    @cached_property
    def mean_gradient(self) -> Tensor:
        return jacobian(self.loss, self.point)

    def matrix(self, name: str) -> Tensor:
        """The matrix (n, n) of this name in the register."""
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            return getattr(self, name.replace("-", "_"))()

    # The matrices, by their definitions.

    def hessian(self) -> Tensor:
        return hessian(self.loss, self.point)

    def ggn(self) -> Tensor:
        inner = hessian(lambda output: self.case.mean(output, self.targets), self.at).reshape(2 * [self.at.numel()])
        outer = jacobian(self.output, self.point).flatten(0, -2)
        return outer.T @ inner @ outer

    def fisher(self) -> Tensor:
        return self.expected_outer_product([self.every_label(row) for row in self.rows(self.at)])

    def fisher_mc(self) -> Tensor:
        return self.expected_outer_product(self.drawn_labels())

    def fisher_empirical(self) -> Tensor:
        return self.gradients.T @ self.gradients / self.examples()

    def gradient_covariance(self) -> Tensor:
        return self.fisher_empirical() - torch.outer(self.mean_gradient, self.mean_gradient)

    def fisher_batch(self) -> Tensor:
        """sum (|b| / N) G_b G_b', each G_b a mean over the batch's examples."""
        positions = len(self.gradients) // len(self.targets)
        total = torch.zeros(len(self.point), len(self.point)).to(self.point)
        sizes = [size * positions for size in self.case.sizes]
        for some, kept in zip(self.gradients.split(sizes), self.kept().split(sizes), strict=True):
            if kept.any():
                mean = some[kept].mean(dim=0)
                total += int(kept.sum()) / self.examples() * torch.outer(mean, mean)
        return total

    # What they are made of.

    def kept(self) -> Tensor:
        """Whether a row is an example (E,)."""
        if self.case.kind == "cross_entropy" and not self.targets.is_floating_point():
            return (self.targets != self.case.options.get("ignore_index", -100)).reshape(-1)
        return torch.ones(len(self.rows(self.at)), dtype=torch.bool, device=self.at.device)

    def examples(self) -> int:
        return int(self.kept().sum())

    def example_losses(self, output: Tensor) -> Tensor:
        """l_i = N w_i ce_i / sum w, the row's own mean for the others: their mean is PyTorch's."""
        values = self.case.values(output, self.targets)
        if values.ndim == 0:  # a mean over the batch is asked of one example at a time
            parts = zip(output.split(1), self.targets.split(1), strict=True)
            return torch.stack([self.case.values(*part) for part in parts])
        if self.case.kind == "cross_entropy":
            return self.examples() / self.weight_sum() * values.reshape(-1)
        return values.reshape(len(values), -1).mean(dim=1)

    def class_weights(self) -> Tensor:
        weights = self.case.options.get("weight", torch.ones(self.rows(self.at).shape[1]))
        return weights.to(self.at)

    def weight_sum(self) -> float:
        if self.targets.is_floating_point():
            return self.examples()
        weights = self.class_weights()
        pairs = zip(self.targets.reshape(-1).tolist(), self.kept().tolist(), strict=True)
        return sum(weights[label].item() for label, kept in pairs if kept)

    def scales(self) -> list[float]:
        """s_i: what is left of l_i when -log p is taken out."""
        rows = self.rows(self.at)
        if self.case.kind != "cross_entropy":
            return len(rows) * [1 / rows.shape[1]]
        smoothing = self.case.options.get("label_smoothing", 0.0)
        weights, factor = self.class_weights(), self.examples() / self.weight_sum()
        if self.targets.is_floating_point():
            labels = self.rows(self.targets)
        else:
            flat = self.targets.reshape(-1).long().where(self.kept(), 0)
            labels = torch.eye(rows.shape[1]).to(rows)[flat] * self.kept()[:, None]
        mixed = (1 - smoothing) * labels + smoothing / rows.shape[1] * self.kept()[:, None].to(rows)
        return [factor * sum(w * y for w, y in zip(weights.tolist(), row, strict=True)) for row in mixed.tolist()]

    def minus_log_p(self, row: Tensor, label: Tensor) -> Tensor:
        if self.case.kind == "cross_entropy":
            return -row.log_softmax(0)[label]
        if self.case.kind == "mse":
            return ((row - label) ** 2).sum()
        return -(row.sigmoid().log() * label + (-row).sigmoid().log() * (1 - label)).sum()

    def every_label(self, row: Tensor) -> list[tuple[float, Tensor]]:
        """Labels with their probabilities. For the Gaussian, nodes and weights of a Gauss-Hermite rule: exact here."""
        if self.case.kind == "cross_entropy":
            return [(p, torch.tensor(c)) for c, p in enumerate(row.softmax(0).tolist())]
        if self.case.kind == "mse":
            signs = itertools.product((-1.0, 1.0), repeat=len(row))
            return [(0.5 ** len(row), row + 0.5**0.5 * torch.tensor(sign).to(row)) for sign in signs]
        labels = [torch.tensor(label).to(row) for label in itertools.product((0.0, 1.0), repeat=len(row))]
        return [(math.exp(-self.minus_log_p(row, label).item()), label) for label in labels]

    def drawn_labels(self) -> list[list[tuple[float, Tensor]]]:
        rows = self.rows(self.at)
        indices = torch.arange(len(self.targets))
        drawn = [[] for _ in rows]
        for sample in range(SAMPLES):
            uniform = uniforms(SEED, indices, len(rows), sample)
            for i, row in enumerate(rows):
                if self.case.kind == "cross_entropy":
                    below = row.softmax(0).cumsum(0).cpu() < uniform(0)[i]
                    label = below.sum()
                elif self.case.kind == "mse":
                    pairs = [(uniform(2 * k)[i].item(), uniform(2 * k + 1)[i].item()) for k in range(len(row))]
                    normal = [math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * b) for a, b in pairs]
                    label = row - torch.tensor(normal, dtype=torch.float64).to(row) / 2**0.5
                else:
                    ones = [uniform(k)[i].item() < p for k, p in enumerate(row.sigmoid().tolist())]
                    label = torch.tensor(ones).to(row)
                drawn[i].append((1 / SAMPLES, label))
        return drawn

    def expected_outer_product(self, labels: list[list[tuple[float, Tensor]]]) -> Tensor:
        """(1/N) sum s_i E[g g'] with g the gradient of -log p(y|f_i), for the labels y given with probabilities."""
        total = torch.zeros(len(self.point), len(self.point)).to(self.point)
        for row, outer, scale, some in zip(self.rows(self.at), self.jacobian, self.scales(), labels, strict=True):
            for probability, label in some:
                leaf = row.clone().requires_grad_()
                gradient = outer.T @ torch.autograd.grad(self.minus_log_p(leaf, label), leaf)[0]
                total += scale * probability * torch.outer(gradient, gradient)
        return total / self.examples()


@pytest.fixture(scope="module")
def reference():
    """Dense matrices of a case, each computed once."""
    known = {}

    def matrix(case: Case, name: str, device: str) -> Tensor:
        if (key := (case.name, name, device)) not in known:
            known[key] = Reference(case, device).matrix(name)
        return known[key]

    return matrix


def applies(case: Case, name: str) -> bool:
    return case.kind != "custom" or not definition(name).needs_distribution


ALL = [(case, name) for case in CASES for name in MATRICES if applies(case, name)]
SECOND_DERIVATIVE_KERNELS = ["LSTM", "GRU", "RNN", "fused attention", "transformer layer, tied head"]


@pytest.mark.sampled(60)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("case", "name"), ALL, ids=name_of)
def test_matrix_equals_dense_autograd(case, name, device, reference):
    operator = Curvature(case.problem(device=device, seed=SEED, mc_samples=SAMPLES), name)
    expected = reference(case, name, device)
    found = torch.cat([block for _, block in columns(operator)], dim=1)
    assert operator.shape == expected.shape
    assert difference(found, expected.cpu()) < 1e-10
    assert difference(found, found.T) < 1e-10

    vectors = torch.randn(3, len(found), dtype=torch.float64, device=device).T  # not contiguous
    assert difference(operator @ vectors, expected @ vectors) < 1e-10
    assert difference(operator @ vectors[:, 1], expected @ vectors[:, 1]) < 1e-10
    assert (operator @ vectors[:, :0]).shape == (len(found), 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("case", [BY_NAME[name] for name in SECOND_DERIVATIVE_KERNELS], ids=name_of)
def test_single_precision_agrees_where_fused_kernels_would_be_taken(case, name, device, reference):
    operator = Curvature(case.problem(device=device, dtype=torch.float32, seed=SEED, mc_samples=SAMPLES), name)
    expected = reference(case, name, device)
    vectors = torch.randn(len(expected), 4, dtype=torch.float32, device=device)
    assert difference((operator @ vectors).double(), expected @ vectors.double()) < 1e-5


def hooked(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("form", [hooked, nn.utils.parametrizations.weight_norm])
def test_weight_norm_of_pytorch_is_the_one_written_by_hand(form, name, reference):
    """The second derivative of `torch._weight_norm` is wrong, so that the references may not use it."""
    case = BY_NAME["weight norm by hand"]
    model = nn.Sequential(form(nn.Linear(3, 4)), nn.Tanh(), form(nn.Linear(4, 3))).double()
    with torch.no_grad():
        for p, value in zip(model.parameters(), case.model().parameters(), strict=True):
            p.copy_(value)
    problem = case.problem(model=model, seed=SEED, mc_samples=SAMPLES)
    found = Curvature(problem, name) @ torch.eye(problem.size, dtype=torch.float64)
    assert difference(found, reference(case, name, "cpu")) < 1e-10
    assert mean_loss(problem) == pytest.approx(mean_loss(case.problem()), rel=1e-14)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm_is_of_the_value_of_the_fused_one(dim):
    v = torch.randn(2, 3, 4, dtype=torch.float64)
    g = torch.rand_like(torch.norm_except_dim(v, 2, dim))
    torch.testing.assert_close(weight_norm(v, g, dim), torch._weight_norm(v, g, dim), rtol=1e-14, atol=0)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_fisher_is_the_ggn(case, reference):
    if case.kind == "custom":
        return
    assert difference(reference(case, "fisher", "cpu"), reference(case, "ggn", "cpu")) < 1e-10


def test_table_is_not_trivial(reference):
    """No matrix of the table is zero or equal to another, but for those that have to be."""
    for case in CASES:
        if case.name == "custom, curved nowhere":
            assert reference(case, "ggn", "cpu").count_nonzero() == 0
            continue
        ggn = reference(case, "ggn", "cpu")
        for name in ("hessian", "fisher-empirical"):
            assert difference(reference(case, name, "cpu"), ggn) > 1e-3, case.name
        for name in ("gradient-covariance", "fisher-batch"):
            assert difference(reference(case, name, "cpu"), reference(case, "fisher-empirical", "cpu")) > 1e-3, (
                case.name
            )


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of entries, relative to the largest entry."""
    error, size = (found - expected).abs().max().item(), expected.abs().max().item()
    return error / size if size else error
