"""Second derivatives that PyTorch lacks, or has wrong, are refused by name; all others pass, and nothing is moved."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import WHOLE
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, DEVICES, Lambda, name_of
from test_problem import of, refused
from test_random_networks import KINDS, cases
from torch import nn
from torch.autograd import Function

from spectra.curvature.checks.derivative_check import EXAMPLES, check_derivatives
from spectra.curvature.engine.footprint import footprint
from spectra.curvature.matrices import MATRICES, definition
from spectra.curvature.operator import Curvature
from spectra.problem.losses import CustomLoss, MeanSquaredError

X5 = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y2 = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# Autograd functions, each right once.


class KeepsNumbers(Function):
    """The sigmoid is kept on ctx, and no graph leads from it."""

    @staticmethod
    def forward(ctx, x):
        ctx.x, ctx.s = x.detach(), x.sigmoid()
        return x * ctx.s

    @staticmethod
    def backward(ctx, g):
        return g * ctx.s * (1 + ctx.x * (1 - ctx.s))


class SavesOutput(Function):
    """What is saved was computed in forward, where no graph is made."""

    @staticmethod
    def forward(ctx, x):
        slope = 1 - x.tanh() ** 2
        ctx.save_for_backward(slope)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class ByNumpy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * torch.from_numpy(ctx.saved_tensors[0].detach().cpu().double().numpy()).cos().to(g)


class FusedLoss(Function):
    """The gradient is made in forward, and only scaled in backward."""

    @staticmethod
    def forward(ctx, logits, labels):
        p = logits.softmax(1)
        ctx.save_for_backward(p - F.one_hot(labels, p.shape[1]).to(p))
        return -p.gather(1, labels[:, None])[:, 0].log()

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g[:, None], None


class FusedLinear(Function):
    """A layer with its activation whose own weight's slope is taken for a constant."""

    @staticmethod
    def forward(ctx, x, weight):
        y = (x @ weight.T).tanh()
        ctx.y = y.detach()
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        inner = g * (1 - ctx.y**2)
        return inner @ weight, inner.T @ x


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5) / 2)

    def forward(self, x):
        return FusedLinear.apply(x, self.weight)


class Cached(nn.Module):
    """Its product of weights is made once, without a graph."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.product = nn.Parameter(torch.eye(5)), nn.Parameter(torch.ones(5, 5) / 3), None

    def forward(self, x):
        with torch.no_grad():
            product = self.one @ self.other
        return x @ product.sin()


class Clipped(nn.Module):
    """A hook on a node of the graph, which changes gradients by their size; those on tensors are left out."""

    def forward(self, x):
        made = x.tanh()
        if made.requires_grad:
            made.grad_fn.register_hook(lambda given, taken: (given[0] * (1 + given[0].square()),))
        return made


def between(layer) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.Tanh(), layer, nn.Linear(5, 2)).double()


WRONG_LAYERS = {
    "keeps numbers": lambda: Lambda(KeepsNumbers.apply),
    "saves its output's slope": lambda: Lambda(SavesOutput.apply),
    "by NumPy": lambda: Lambda(ByNumpy.apply),
    "fused layer": Fused,
    "cache": Cached,
    "clipped inside": Clipped,
    "detached in part": lambda: Lambda(lambda x: x * x.sigmoid().detach()),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_a_wrong_second_derivative_is_refused_and_its_module_named(name, device):
    model = between(WRONG_LAYERS[name]()).to(device)
    problem = of(model, X5.to(device), Y2.to(device), MeanSquaredError())
    with refused("`model`", "autograd", "'2'", "`check=False`"):
        Curvature(problem, "hessian").prepare()


def test_what_is_not_finite_is_told_of_elsewhere():
    """The command line then ends with status 1, and prints no number."""
    model = between(Lambda(lambda x: (0 * x).square().sqrt() + x))
    matrix = Curvature(of(model, X5, Y2, MeanSquaredError()), "hessian")
    matrix.prepare()
    assert "not finite" in matrix.derivative_check.not_checked


def test_it_is_found_inside_of_what_holds_it():
    model = between(nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Tanh(), Lambda(KeepsNumbers.apply)), nn.Tanh()))
    with refused("`model`", "Lambda '2.1.1'"):
        Curvature(of(model, X5, Y2, MeanSquaredError()), "hessian").prepare()


@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_fused_loss_is_refused(name, device):
    labels = (Y2[:, 0] > 0).long()
    loss = CustomLoss(FusedLoss.apply, "fused")
    problem = of(between(nn.Tanh()).to(device), X5.to(device), labels.to(device), loss)
    with refused("`loss` fused", "in the loss itself"):
        Curvature(problem, name).prepare()


def test_first_derivatives_of_it_are_right_and_pass():
    labels = (Y2[:, 0] > 0).long()
    problem = of(between(nn.Tanh()), X5, labels, CustomLoss(FusedLoss.apply, "fused"))
    plain = of(between(nn.Tanh()), X5, labels)
    eye = torch.eye(problem.size, dtype=torch.float64)
    for name in ("fisher-empirical", "gradient-covariance", "fisher-batch"):
        torch.testing.assert_close(Curvature(problem, name) @ eye, Curvature(plain, name) @ eye)


@pytest.mark.parametrize("name", ["ggn", "fisher-empirical", "gradient-covariance", "fisher-batch", "hessian"])
def test_outputs_that_do_not_follow_their_derivative_are_refused(name):
    """A straight-through estimator: the slope is the sigmoid's, the value a step."""
    model = between(Lambda(lambda x: x.sigmoid() + ((x > 0).to(x) + 0.3 * x - x.sigmoid()).detach()))
    with refused("`model`", "'2'"):
        Curvature(of(model, X5, Y2, MeanSquaredError()), name).prepare()


def test_without_the_check_autograd_is_believed():
    problem = of(between(Lambda(KeepsNumbers.apply)), X5, Y2, MeanSquaredError())
    matrix = Curvature(problem, "hessian", check=False)
    matrix.prepare()
    assert matrix.derivative_check is None


# What is right passes.


@pytest.mark.sampled(16)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_networks_of_the_table_pass(case, dtype, device):
    for name in MATRICES if dtype == torch.float64 else ("hessian", "ggn"):
        if definition(name).needs_distribution and case.kind == "custom":
            continue
        matrix = Curvature(case.problem(dtype=dtype, device=device), name)
        matrix.prepare()
        found = matrix.derivative_check
        assert found.not_checked is None
        assert found.error < 1e-3
        assert (found.rounding or 0.0) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250 if WHOLE else 10)
@given(data=st.data())
def test_random_networks_pass(kind, data):
    case, class_dim = data.draw(cases(kind))
    loss = replace(case.loss(), class_dim=class_dim) if class_dim else case.loss()
    for name in ("hessian", "ggn"):
        matrix = Curvature(case.problem(loss=loss), name)
        matrix.prepare()  # raises where it is contradicted


def deep(layer) -> nn.Module:
    torch.manual_seed(0)
    blocks = [module for _ in range(6) for module in (nn.Linear(64, 64), layer())]
    return nn.Sequential(nn.Linear(5, 64), *blocks, nn.Linear(64, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, lambda: nn.MaxPool1d(3, 1, 1), nn.Softshrink])
def test_networks_with_kinks_pass(layer, dtype):
    problem = of(deep(layer), X5, Y2, MeanSquaredError())
    problem.model.to(dtype)
    problem = of_dtype(problem, dtype)
    matrix = Curvature(problem, "hessian")
    matrix.prepare()
    assert matrix.derivative_check.not_checked is None
    assert matrix.derivative_check.error < 1e-3


def of_dtype(problem, dtype):
    batches = [replace(b, inputs=b.inputs.to(dtype), targets=b.targets.to(dtype)) for b in problem.batches]
    return replace(problem, batches=batches)


def test_kinks_at_the_point_are_told_of():
    model = deep(nn.ReLU)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.zeros_(p)  # so that black images lie on every kink
    matrix = Curvature(of(model, torch.zeros_like(X5), Y2, MeanSquaredError()), "hessian")
    matrix.prepare()
    assert "kinks" in matrix.derivative_check.not_checked
    assert "beside the point they agree" in matrix.derivative_check.not_checked
    assert matrix.derivative_check.error < 1e-3


class Kinks(nn.Module):
    """Rectifiers at zero with one parameter in common, of which a half passes to either side of it."""

    def __init__(self, wrong: bool = False):
        super().__init__()
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(2000)
        self.register_buffer("signs", signs)
        self.common, self.own = nn.Parameter(torch.zeros(1).double()), nn.Parameter(torch.zeros(4000).double())
        self.last = nn.Linear(1, 1).double()
        self.wrong = wrong

    def forward(self, x):
        inner = (self.own + self.signs * self.common).relu() @ self.signs / 40
        out = self.last(x[:, :1])
        return (KeepsNumbers.apply(out) if self.wrong else out) + inner


def test_many_kinks_at_the_point_are_no_wrong_derivative():
    """To either side of the point the derivatives are nearly the same, and neither is that at the point itself."""
    torch.manual_seed(0)
    model = Kinks()
    x = torch.randn(12, 5).double()
    matrix = Curvature(of(model, x, model(x).detach(), MeanSquaredError()), "hessian")
    matrix.prepare()
    assert "beside the point they agree" in matrix.derivative_check.not_checked
    model = Kinks(wrong=True)
    with refused("`model`", "wrong derivative"):
        Curvature(of(model, x, x[:, :1] + 1, MeanSquaredError()), "hessian").prepare()


@pytest.mark.parametrize("name", ["ggn", "fisher-empirical"])
def test_outputs_with_a_kink_at_the_point_are_not_contradicted(name):
    """The central difference is the mean of two slopes, at every step; autograd has one of them, and is not wrong."""
    model = deep(nn.ReLU)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.zeros_(p)
    matrix = Curvature(of(model, torch.zeros_like(X5), Y2, MeanSquaredError()), name)
    matrix.prepare()
    assert "kinks" in matrix.derivative_check.not_checked


def test_a_wrong_layer_is_found_beside_kinks_at_the_point():
    model = nn.Sequential(deep(nn.ReLU), Lambda(KeepsNumbers.apply))
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.zeros_(p)
    with refused("`model`", "'1'"):
        Curvature(of(model, torch.zeros_like(X5), Y2, MeanSquaredError()), "hessian").prepare()


class SinglePrecision(nn.Module):
    """Takes no float64: its own input is cast, its weights are not."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(x.float())).float()


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.GELU(), nn.Softplus()], ids=lambda layer: type(layer).__name__)
def test_models_of_single_precision_alone_are_checked_in_it(layer):
    torch.manual_seed(0)
    model = SinglePrecision(nn.Sequential(nn.Linear(5, 5), layer))
    problem = of_dtype(replaced(model), torch.float32)
    matrix = Curvature(problem, "hessian")
    matrix.prepare()
    assert matrix.derivative_check.dtype == "float32"
    assert matrix.derivative_check.not_checked is None
    torch.manual_seed(0)
    wrong = SinglePrecision(nn.Sequential(nn.Linear(5, 5), layer, Lambda(KeepsNumbers.apply)))
    with refused("`model`", "'layer.2'"):
        Curvature(of_dtype(replaced(wrong), torch.float32), "hessian").prepare()


def replaced(model):
    problem = of(nn.Linear(5, 2), X5, Y2, MeanSquaredError())
    return replace(problem, model=model.float().eval(), parameters=dict(model.named_parameters()))


# Rounding.


def test_products_that_single_precision_spoils_are_refused():
    def loss(output, targets):
        return -(output + 17).sigmoid().log().sum(1)  # p (1 - p) of a p that rounds to 1: off by half and more

    problem = of_dtype(of(between(nn.Tanh()), X5, Y2, CustomLoss(loss, "spoiled")), torch.float32)
    problem.model.float()
    with refused("`dtype` float32", "float64"):
        Curvature(problem, "hessian").prepare()
    Curvature(of(between(nn.Tanh()), X5, Y2, CustomLoss(loss, "spoiled")), "hessian").prepare()


# It costs little, and leaves everything as it was.


class Counted(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.examples = model, []

    def forward(self, x):
        type(self).seen += len(x)
        return self.model(x)


def test_it_costs_four_gradients_of_64_examples_at_most():
    x, y = torch.randn(1000, 5, dtype=torch.float64), torch.randn(1000, 2, dtype=torch.float64)
    seen = {}
    for check in (False, True):
        Counted.seen = 0
        matrix = Curvature(of(Counted(deep(nn.ReLU)), x, y, MeanSquaredError()), "hessian", products=0, check=check)
        matrix.prepare()
        seen[check] = Counted.seen
    assert matrix.derivative_check.gradients == 3 + 2
    # A product takes one forward pass and the time of three gradients: one of them and two gradients are made.
    assert seen[True] - seen[False] <= 3 * EXAMPLES + 2  # two examples tell which parameters are detached
    assert (3 + 2) * EXAMPLES <= 4 * 64


def test_memory_bounds_it_and_it_says_so():
    torch.manual_seed(0)
    problem = of(nn.Linear(5, 2), X5, Y2, MeanSquaredError())
    found = check_derivatives(problem, "hessian", 100, footprint(definition("hessian").linearise, problem))
    assert "too little memory" in found.not_checked
    assert found.error is None


def test_the_model_is_left_as_it_is_found():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda module, _: module.calls.add_(1) and None)
    problem = of(model.eval(), X5, Y2, MeanSquaredError())
    before = {name: (t.data_ptr(), t._version, t.clone()) for name, t in model.named_parameters()}
    Curvature(problem, "hessian", check=False, products=0).prepare()
    calls = model.calls.item()
    Curvature(problem, "hessian", products=0).prepare()
    made = model.calls.item() - calls
    assert made <= calls + 1  # those of the check are counted on a copy, but for one product in the problem's precision
    for name, p in model.named_parameters():
        pointer, version, values = before[name]
        assert (p.data_ptr(), p._version) == (pointer, version)
        assert p.equal(values)
        assert p.grad is None


def test_graphs_that_are_kept_go_on_working():
    """A second matrix is checked while graphs of the first are alive."""
    problem = of(between(nn.Tanh()), X5, Y2, MeanSquaredError())
    v = torch.ones(problem.size, dtype=torch.float64)
    first = Curvature(problem, "hessian", products=0)
    before = first @ v
    Curvature(problem, "ggn").prepare()
    assert (first @ v).equal(before)


def test_the_factor_of_a_matrix_is_looked_at_too():
    labels = (Y2[:, 0] > 0).long()
    problem = of(between(nn.Tanh()), X5, labels, CustomLoss(FusedLoss.apply, "fused"))
    with refused("`loss` fused"):
        Curvature(problem, "ggn").factor()
