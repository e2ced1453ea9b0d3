"""The neural tangent kernel: closed form of a linear model, dense Jacobians by torch.func, its relation to the GGN."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import seeded
from networks import DEVICES
from torch import nn

import spectra
from spectra.cli import run
from spectra.curvature.factor.tangent_kernel import TangentKernelOperator
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.output_loss import OutputLoss

F64 = torch.float64
N = 11
X = torch.randn(N, 5, generator=seeded(), dtype=F64)
ONE = torch.randn(N, 1, generator=seeded(1), dtype=F64)
CLASSES = torch.randint(0, 3, (N,), generator=seeded(2))


def falling(matrix):
    return torch.linalg.eigvalsh(matrix).flip(0).numpy()


@pytest.mark.parametrize("device", DEVICES)
def test_linear_model(device):
    """Theta = X X' + 1, of the weights and the bias; it knows neither the targets nor N."""
    expected = X @ X.T + 1
    data, options = (X, ONE), {"curvature": "ntk", "device": device}
    found = spectra.eig(nn.Linear(5, 1).double(), "mse", data, k=N, **options)
    assert (found.method, found.converged, found.complete) == ("gram", True, True)
    assert found.values == pytest.approx(falling(expected), abs=1e-12)
    assert found.vectors.T @ np.diag(found.values) @ found.vectors == pytest.approx(expected.numpy(), abs=1e-10)
    trace = spectra.trace(nn.Linear(5, 1).double(), "mse", data, **options)
    assert (trace.method, trace.standard_error) == ("gram", 0.0)
    assert trace.trace == pytest.approx(expected.trace().item())
    density = spectra.density(nn.Linear(5, 1).double(), "mse", data, **options)
    assert (density.method, density.dimension, density.nodes.shape) == ("gram", N, (1, N))
    assert density.nodes[0] == pytest.approx(falling(expected), abs=1e-12)
    assert density.weights == pytest.approx(np.full((1, N), 1 / N))


class Tied(nn.Module):
    """A layer that is used twice, a frozen one, and parameters of no layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(6))
        self.last.weight.requires_grad_(False)
        self.double()

    def forward(self, x):
        x = self.first(x).tanh()
        return self.last(self.twice(self.twice(x).tanh()) * self.scale)


def dense(model, x, output=None, chosen=lambda name: True):
    """Theta by torch.func: the Jacobian of all outputs at once."""
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad and chosen(name)}
    jacobians = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)).flatten(1))(wanted)
    jacobian = torch.cat([part.flatten(2) for part in jacobians.values()], dim=2)  # (N, C, n)
    jacobian = jacobian if output is None else jacobian[:, output : output + 1]
    return torch.einsum("icn,jcn->ij", jacobian, jacobian).detach() / jacobian.shape[1]


MODELS = {
    "tied and frozen": (Tied, X, CLASSES),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.Tanh(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)
        ).double(),
        torch.randn(N, 1, 3, 3, generator=seeded(4), dtype=F64),
        CLASSES,
    ),
    "sequence": (  # outputs of an example are those of all its tokens
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(),
        torch.randn(N, 2, 4, generator=seeded(5), dtype=F64),
        torch.randint(0, 3, (N, 2), generator=seeded(6)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_several_outputs(name):
    make, x, targets = MODELS[name]
    torch.manual_seed(0)
    model = make()
    loss = "cross_entropy?class_dim=-1" if name == "sequence" else "cross_entropy"
    expected = dense(model, x)
    found = spectra.eig(model, loss, (x, targets), curvature="ntk", k=N)
    assert found.values == pytest.approx(falling(expected), rel=1e-9, abs=1e-10)
    assert found.residuals.max() < 1e-10
    assert spectra.trace(model, loss, (x, targets), curvature="ntk").trace == pytest.approx(expected.trace().item())


def test_one_output_and_chosen_parameters():
    one = spectra.eig(Tied(), OutputLoss(index=1), X, curvature="ntk", k=N)
    assert one.values == pytest.approx(falling(dense(Tied(), X, 1)), rel=1e-9, abs=1e-10)
    some = spectra.eig(Tied(), OutputLoss(index=1), X, curvature="ntk", k=N, params=["twice.*", "scale"])
    expected = dense(Tied(), X, 1, lambda name: name.startswith(("twice", "scale")))
    assert some.values == pytest.approx(falling(expected), rel=1e-9, abs=1e-10)


def test_products_and_their_order():
    """The operator multiplies without the dense matrix, whatever the batches."""
    expected, vectors = dense(Tied(), X), torch.randn(N, 3, generator=seeded(7), dtype=F64)
    for size in (N, 4):
        batches = spectra.cut_batches(X, CLASSES, torch.arange(N), size)
        kernel = TangentKernelOperator(spectra.Problem(Tied(), spectra.CrossEntropy(), batches))
        assert kernel.shape == (N, N)
        assert torch.allclose(kernel @ vectors, expected @ vectors, atol=1e-10)
        assert torch.allclose(kernel @ vectors[:, 0], expected @ vectors[:, 0], atol=1e-10)
        assert torch.allclose(kernel.factor().gram(), expected, atol=1e-10)


@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_other_methods_by_products(method, monkeypatch):
    """As where there are too many examples for the dense matrix."""
    monkeypatch.setattr("spectra.run.kernels.LARGEST", 5)
    found = spectra.eig(Tied(), "cross_entropy", (X, CLASSES), curvature="ntk", k=3, method=method, tolerance=1e-8)
    assert found.method == method
    assert found.values == pytest.approx(falling(dense(Tied(), X))[:3], rel=1e-8)
    measure = spectra.density(Tied(), "cross_entropy", (X, CLASSES), curvature="ntk", steps=N, probes=20).measure()
    mean, error = measure.mean()
    assert abs(mean - dense(Tied(), X).trace().item() / N) < 4 * error + 1e-12
    estimate = spectra.trace(Tied(), "cross_entropy", (X, CLASSES), curvature="ntk", method="hutchinson", probes=40)
    assert abs(estimate.trace - dense(Tied(), X).trace().item()) < 4 * estimate.standard_error + 1e-12


def test_relation_to_the_gauss_newton_matrix():
    """Of the mean squared error of one output the GGN is (2/N) J'J: its eigenvalues are 2/N times those of the kernel.

    Of C outputs its trace is 2/N times that of the kernel, the mean over outputs.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    kernel, gauss_newton = spectra.eig(model, "mse", (X, ONE), curvature=["ntk", "ggn"], k=N, method="gram")
    assert gauss_newton.values == pytest.approx(2 / N * kernel.values, rel=1e-10, abs=1e-12)
    kernel, gauss_newton = spectra.trace(Tied(), "mse", (X, ONE.expand(-1, 3)), curvature=["ntk", "ggn"], method="gram")
    assert gauss_newton.trace == pytest.approx(2 / N * kernel.trace)


def test_more_examples_than_parameters():
    found = spectra.eig(nn.Linear(5, 1, bias=False).double(), "mse", (X, ONE), curvature="ntk", k=N, which="SA")
    assert found.values == pytest.approx(np.sort(falling(X @ X.T)), abs=1e-12)


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return 1.1 * g


def test_a_wrong_derivative_is_found():
    class Model(nn.Linear):
        def forward(self, x):
            return Wrong.apply(super().forward(x))

    with pytest.raises(SpectraError, match="autograd gives a wrong derivative"):
        spectra.eig(Model(5, 3).double(), "cross_entropy", (X, CLASSES), curvature="ntk", k=1)


def test_what_does_not_fit_is_refused():
    model = nn.Linear(5, 3).double()
    problem = spectra.Problem(model, spectra.CrossEntropy(), spectra.cut_batches(X, CLASSES, torch.arange(N), 4))
    with pytest.raises(
        SpectraError, match="`curvature` ntk: only eig, trace and density compute this matrix over examples"
    ):
        Curvature(problem, "ntk")
    own = BatchLoss(lambda model, batch: model(batch[0]).square().mean(dim=1))
    with pytest.raises(SpectraError, match=r"`curvature` ntk: a loss of .model, batch. hides the model"):
        spectra.eig(model, own, (X, CLASSES), curvature="ntk", k=1)
    with pytest.raises(SpectraError, match=r"`weight_decay` 0.1: ntk is made of products of gradients"):
        spectra.eig(model, "cross_entropy", (X, CLASSES), curvature="ntk", k=1, weight_decay=0.1)
    with pytest.raises(SpectraError, match="`curvature` ntk: is made of gradients with respect to parameters"):
        spectra.eig(model, "cross_entropy", (X, CLASSES), curvature="ntk", k=1, wrt="inputs")
    with pytest.raises(SpectraError, match=f"`k` {N + 1}: the matrix has only {N} rows"):
        spectra.eig(model, "cross_entropy", (X, CLASSES), curvature="ntk", k=N + 1)


LINE = "--model spectra.demo:mlp --data digits --samples 40"


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def call(line):
        capfd.readouterr()
        status = run(shlex.split(line))
        return status, *capfd.readouterr()

    return call


def test_on_the_command_line(call):
    status, out, err = call(f"eig {LINE} --curvature ntk --curvature ggn -k 5 --json --out a")
    assert (status, err) == (0, "")
    kernel, gauss_newton = json.loads(out)["results"]
    assert (kernel["method"], gauss_newton["method"]) == ("gram", "lanczos")
    assert (kernel["curvature"], len(kernel["eigenvalues"])) == ("ntk", 5)
    assert spectra.load_result("a").results[0].vectors.shape == (5, 40)
    again = json.loads(call("eig --config a/eig.json --json")[1])["results"][0]
    assert again["eigenvalues"] == kernel["eigenvalues"]
    assert "ntk: a matrix over 40 examples, not divided by their number" in call(f"trace {LINE} --curvature ntk")[1]
    assert call(f"density {LINE} --curvature ntk --out a")[0] == 0
    assert Path("a/density.png").exists()
    assert call("report a --out page.html")[0] == call("plot a --out figure.png")[0] == 0


SEQUENCES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
    def forward(self, x):
        return self.table(x).transpose(1, 2)

def data():
    targets = torch.tensor([[0, 1, 2], [2, -100, 1]])
    return torch.tensor([[0, 1, 2], [3, 1, 0]]), targets
"""


def test_sequences_are_told_from_their_targets(call):
    """Theta_ij = (1/12) sum over outputs: 4 for each place at which both hold the same token."""
    Path("file.py").write_text(SEQUENCES)
    line = "eig --model file.py:Net --data file.py:data --curvature ntk -k 2 --dtype float64"
    assert "ntk: a matrix over 2 inputs (with 5 targets in all)" in call(line)[1].replace("\n", " ")
    values = json.loads(call(f"{line} --json")[1])["results"][0]["eigenvalues"]
    assert values == pytest.approx([4 / 3, 2 / 3])


@pytest.mark.parametrize("command", ["compare", "layers", "landscape", "inspect"])
def test_other_commands_refuse_it_in_one_line(command, call):
    status, out, err = call(f"{command} {LINE} --curvature ntk")
    assert (status, out) == (2, "")
    assert err.startswith("spectra: Invalid value for '--curvature': 'ntk' is not one of 'hessian'")
    assert err.count("\n") == 1
