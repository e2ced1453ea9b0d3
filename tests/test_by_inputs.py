"""Spectra by inputs: modes of chains and clusters in closed form, Hessians by torch.func, invariances and refusals."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from networks import DEVICES
from torch import nn

import spectra
from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.equal_blocks import dense_blocks, lanczos_blocks
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.input_problem import InputProblem, with_respect_to_inputs
from spectra.problem.output_loss import OutputLoss

F64 = torch.float64
EPSILON, SIGMA = 1.5, 0.9
STIFFNESS = 72 * EPSILON / (2 ** (1 / 3) * SIGMA**2)  # of a Lennard-Jones bond, where it is shortest


class Chain(nn.Module):
    """The energy of masses in a row, as a function of displacements times the square root of the mass."""

    def __init__(self, stiffness=3.0, mass=0.7, periodic=False):
        super().__init__()
        self.register_buffer("stiffness", torch.tensor(stiffness, dtype=F64))
        self.mass, self.periodic = mass, periodic

    def forward(self, q):
        u = q / self.mass**0.5
        u = torch.cat([u, u[:, :1]], dim=1) if self.periodic else F.pad(u, (1, 1))
        return 0.5 * self.stiffness.to(q) * u.diff(dim=1).square().sum(dim=1)


class LennardJones(nn.Module):
    """The energy of a cluster at positions (b, atoms, 3)."""

    def forward(self, positions):
        i, j = torch.triu_indices(positions.shape[1], positions.shape[1], 1, device=positions.device)
        inverse = SIGMA**2 / (positions[:, i] - positions[:, j]).square().sum(dim=-1)
        return 4 * EPSILON * (inverse**6 - inverse**3).sum(dim=1)


def chain_modes(n, stiffness=3.0, mass=0.7, periodic=False):
    """omega_j^2 = 4 (K/m) sin^2(...), rising."""
    angles = [np.pi * j / n for j in range(n)] if periodic else [np.pi * j / (2 * (n + 1)) for j in range(1, n + 1)]
    return np.sort(4 * stiffness / mass * np.sin(angles) ** 2)


def energies(model, x, **options):
    return spectra.eig(model, "output", x, wrt="inputs", dtype="float64", **options)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_harmonic_chain(device, periodic, method, monkeypatch):
    if method == "lanczos":
        monkeypatch.setattr("spectra.run.input_blocks.dense_pays", lambda *_: False)
    n, x = 12, torch.randn(3, 12, generator=seeded(), dtype=F64)
    found = energies(Chain(periodic=periodic), x, which="SA", k=n, method=method, tolerance=1e-9, device=device)
    assert found.method == method
    assert found.converged
    assert found.complete
    expected = np.tile(chain_modes(n, periodic=periodic), (3, 1))
    assert found.values_by_example == pytest.approx(expected, abs=1e-7)  # of copies Lanczos finds each
    assert found.values == pytest.approx(expected[0], abs=1e-7)
    assert found.spread == pytest.approx(0, abs=1e-7)
    modes = found.vectors_by_example
    assert modes.shape == (3, n, n)
    assert modes @ modes.swapaxes(1, 2) == pytest.approx(np.tile(np.eye(n), (3, 1, 1)), abs=1e-9)


def dimer(stretch=1.0):
    bond = 2 ** (1 / 6) * SIGMA * stretch
    return torch.tensor([[[0.0, 0, 0], [bond, 0, 0]]], dtype=F64)


def trimer():
    bond = 2 ** (1 / 6) * SIGMA
    return torch.tensor([[[0.0, 0, 0], [bond, 0, 0], [bond / 2, bond * 3**0.5 / 2, 0]]], dtype=F64)


def rotated(x, seed=0):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(seed), dtype=F64)).Q
    return x @ turn.T + torch.randn(3, generator=seeded(seed + 1), dtype=F64)


def test_lennard_jones_dimer_at_its_minimum():
    found = energies(LennardJones(), dimer(), which="LA", k=6)
    assert found.values == pytest.approx([2 * STIFFNESS, 0, 0, 0, 0, 0], abs=1e-10)
    assert found.spread == pytest.approx(np.zeros(6))
    assert found.residuals.max() < 1e-10


def test_lennard_jones_dimer_off_its_minimum():
    """The bond's force over its length turns two of the zeros: 2 V'(r) / r, twice."""
    r = dimer(1.1)[0, 1, 0].item()
    first = 4 * EPSILON * (-12 * SIGMA**12 / r**13 + 6 * SIGMA**6 / r**7)
    second = 4 * EPSILON * (156 * SIGMA**12 / r**14 - 42 * SIGMA**6 / r**8)
    expected = np.sort([2 * second, 2 * first / r, 2 * first / r, 0, 0, 0])[::-1]
    assert energies(LennardJones(), dimer(1.1), which="LA", k=6).values == pytest.approx(expected, abs=1e-9)


def test_lennard_jones_trimer():
    """Breathing at 3 V'', a doublet at 3/2 V'', and six zeros; whichever way it lies."""
    expected = [3 * STIFFNESS, 1.5 * STIFFNESS, 1.5 * STIFFNESS, *6 * [0]]
    every = torch.cat([trimer(), rotated(trimer()), rotated(trimer(), 5)])
    found = energies(LennardJones(), every, which="LA", k=9)
    assert found.values_by_example == pytest.approx(np.tile(expected, (3, 1)), abs=1e-8)


def test_rotation_changes_nothing():
    x = torch.randn(2, 4, 3, generator=seeded(), dtype=F64) * 2
    one, two = (energies(LennardJones(), some, which="LA", k=12) for some in (x, rotated(x)))
    assert two.values_by_example == pytest.approx(one.values_by_example, rel=1e-8, abs=1e-8)


# Networks, against dense Hessians of torch.func


def network(device="cpu", activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), activation(), nn.Linear(9, 3)).to(device, F64)


X = torch.randn(13, 5, generator=seeded(), dtype=F64)
CLASSES = torch.randint(0, 3, (13,), generator=seeded(1))
NUMBERS = torch.randn(13, 3, generator=seeded(2), dtype=F64)
WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
LOSSES = {
    "cross_entropy": ("cross_entropy", CLASSES, lambda f, y: F.cross_entropy(f[None], y[None])),
    "weighted": (  # l_i = N w_i ce_i / sum w: their mean is PyTorch's mean over all the data
        nn.CrossEntropyLoss(weight=WEIGHT),
        CLASSES,
        lambda f, y: 13 * WEIGHT[y] * F.cross_entropy(f[None], y[None]) / WEIGHT[CLASSES].sum(),
    ),
    "mse": ("mse", NUMBERS, F.mse_loss),
    "sum": ("mse?reduction=sum", NUMBERS, lambda f, y: F.mse_loss(f, y, reduction="sum")),
    "function": (lambda f, y: (f - y).pow(4).mean(dim=1), NUMBERS, lambda f, y: (f - y).pow(4).mean()),
    "batch": (
        BatchLoss(lambda model, batch: (model(batch[0]) - batch[1]).pow(4).mean(dim=1)),
        NUMBERS,
        lambda f, y: (f - y).pow(4).mean(),
    ),
    "mean of a batch": (
        BatchLoss(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])),
        CLASSES,
        lambda f, y: F.cross_entropy(f[None], y[None]),
    ),
    "output": (OutputLoss(index=1), NUMBERS, lambda f, y: f[1]),
}


def dense(model, value, targets, gauss_newton=False):
    """Each example's Hessian (N, d, d) by its input; of Gauss and Newton with the model made linear."""

    def own(x, y):
        if not gauss_newton:
            return torch.func.jacrev(torch.func.jacrev(lambda x: value(model(x[None])[0], y)))(x)
        output = model(x[None])[0].detach()
        jacobian = torch.func.jacrev(lambda x: model(x[None])[0])(x)
        return jacobian.T @ torch.func.jacrev(torch.func.jacrev(lambda f: value(f, y)))(output) @ jacobian

    return torch.stack([own(x, y) for x, y in zip(X, targets, strict=True)]).detach()


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("name", LOSSES)
def test_network_against_dense_hessians(name, method, monkeypatch):
    if method == "lanczos":
        monkeypatch.setattr("spectra.run.input_blocks.dense_pays", lambda *_: False)
    loss, targets, value = LOSSES[name]
    expected = np.linalg.eigvalsh(dense(network(), value, targets))
    wrt = "inputs:0" if name == "batch" else "inputs"  # whose targets are real numbers, too
    found = spectra.eig(network(), loss, (X, targets), wrt=wrt, which="SA", k=5, method=method, tolerance=1e-9)
    assert found.converged
    assert found.residuals.max() <= 1e-8
    assert found.values_by_example == pytest.approx(expected, abs=1e-8)
    assert found.values == pytest.approx(expected.mean(axis=0), abs=1e-8)
    assert found.spread == pytest.approx(expected.std(axis=0), abs=1e-8)
    assert found.residuals == pytest.approx(found.residuals_by_example.max(axis=0))


@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_gauss_newton_by_inputs(curvature):
    expected = np.linalg.eigvalsh(dense(network(), LOSSES["cross_entropy"][2], CLASSES, gauss_newton=True))
    found = spectra.eig(network(), "cross_entropy", (X, CLASSES), wrt="inputs", which="SA", k=5, curvature=curvature)
    assert found.values_by_example == pytest.approx(expected, abs=1e-9)


def test_kinks_add_nothing_beside_them():
    """Between its kinks a network of ReLU is linear in its input, so the Hessian is that of the loss composed."""
    both = [
        spectra.eig(network(activation=nn.ReLU), "cross_entropy", (X, CLASSES), wrt="inputs", k=5, curvature=name)
        for name in ("hessian", "ggn")
    ]
    assert both[0].values_by_example == pytest.approx(both[1].values_by_example, abs=1e-10)
    assert both[0].derivative_check.error < 1e-5


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_ends(which):
    problem = inputs_problem()
    matrix = Curvature(problem, "hessian")
    every = torch.linalg.eigvalsh(dense(network(), LOSSES["cross_entropy"][2], CLASSES))
    order = {"LM": every.abs().argsort(dim=1, descending=True), "LA": every.argsort(dim=1, descending=True)}
    order["SA"] = every.argsort(dim=1)
    order["BE"] = torch.cat([order["LA"][:, :2], order["SA"][:, :1]], dim=1)
    expected = every.gather(1, order[which])[:, :3]
    for method in (dense_blocks, lanczos_blocks):
        found = method(matrix, 3, blocks=13, which=which, tolerance=1e-9, generator=seeded())
        assert torch.allclose(found.values, expected, atol=1e-9)
        images = torch.einsum("nij,nkj->nki", dense(network(), LOSSES["cross_entropy"][2], CLASSES), found.vectors)
        assert torch.allclose(images, found.values[:, :, None] * found.vectors, atol=1e-7)


def inputs_problem(size=13):
    batches = spectra.cut_batches(X, CLASSES, torch.arange(13), size)
    return with_respect_to_inputs(spectra.Problem(network(), spectra.CrossEntropy(), batches))


def test_a_problem_by_inputs_is_a_problem():
    problem = inputs_problem(4)
    assert isinstance(problem, InputProblem)
    assert (problem.count, problem.input_size) == (13, 5)
    one = spectra.eig(problem, which="LA", k=2)
    two = spectra.eig(network(), "cross_entropy", (X, CLASSES), wrt="inputs", which="LA", k=2)
    assert one.values_by_example == pytest.approx(two.values_by_example, abs=1e-12)


def test_order_and_split_of_examples():
    def found(order, **options):
        data = (X[order], CLASSES[order])
        return spectra.eig(network(), "cross_entropy", data, wrt="inputs", which="LA", k=3, **options).values_by_example

    straight, order = found(torch.arange(13)), torch.randperm(13, generator=seeded())
    assert found(order) == pytest.approx(straight[order], abs=1e-12)
    assert found(torch.arange(13), batch_size=4) == pytest.approx(straight, abs=1e-12)
    assert found(torch.arange(5, 6)) == pytest.approx(straight[5:6], abs=1e-12)


def test_a_thousand_examples_cost_what_one_costs():
    many = torch.randn(300, 5, generator=seeded(3), dtype=F64)
    two, every = (spectra.eig(network(), OutputLoss(index=0), x, wrt="inputs", k=2) for x in (many[:2], many))
    assert two.products == every.products == 3 + 1 + 5  # checks, one of independence, and one a column


def test_traces():
    hessians = dense(network(), LOSSES["cross_entropy"][2], CLASSES)
    expected = hessians.diagonal(dim1=1, dim2=2).sum(dim=1).numpy()
    exact = spectra.trace(network(), "cross_entropy", (X, CLASSES), wrt="inputs")
    assert exact.method == "dense"
    assert exact.converged
    assert exact.standard_error == 0
    assert exact.spread_error == 0
    assert exact.traces_by_example == pytest.approx(expected, abs=1e-12)
    assert (exact.trace, exact.spread) == (pytest.approx(expected.mean()), pytest.approx(expected.std()))
    found = spectra.trace(network(), "cross_entropy", (X, CLASSES), wrt="inputs", probes=150)
    assert found.method == "hutchinson"
    assert found.converged
    apart = (found.traces_by_example - expected) / found.standard_errors_by_example
    assert 0.4 < np.sqrt(np.mean(apart**2)) < 2
    assert abs(found.trace - expected.mean()) < 4 * found.standard_error
    assert abs(found.spread - expected.std()) < 4 * found.spread_error
    loose = spectra.trace(network(), "cross_entropy", (X, CLASSES), wrt="inputs", method="hutchinson", rtol=0.1)
    assert loose.standard_error <= 0.1 * abs(loose.trace)


def test_the_spread_of_equal_traces_is_not_that_of_their_errors():
    """All traces are 20; single estimates are off by more than 1, which is no spread."""
    torch.manual_seed(0)
    root = torch.randn(20, 20, dtype=F64)
    matrix = root @ root.T
    matrix *= 20 / matrix.trace()
    found = spectra.trace(Quadratic(matrix), "output", torch.randn(60, 20, dtype=F64), wrt="inputs", probes=30)
    assert found.standard_errors_by_example.mean() > 1
    assert found.spread < 0.6
    assert abs(found.trace - 20) < 4 * found.standard_error


@pytest.mark.parametrize(("rtol", "method"), [(0.5, "hutchinson"), (1e-3, "dense")])
def test_large_traces_are_exact_where_samples_cost_more(rtol, method, monkeypatch):
    monkeypatch.setattr("spectra.krylov.equal_blocks.DENSE_TRACE", 10)
    torch.manual_seed(0)
    root = torch.randn(60, 60, dtype=F64)
    model, x = Quadratic(root @ root.T), torch.randn(3, 60, dtype=F64)
    found = spectra.trace(model, "output", x, wrt="inputs", rtol=rtol)
    assert (found.method, found.converged) == (method, True)
    assert found.products <= 3 + 1 + 60 + 60  # checks, one of independence, samples and columns
    assert abs(found.trace - root.square().sum().item()) <= 4 * found.standard_error + 1e-9
    few = spectra.trace(model, "output", x, wrt="inputs", rtol=rtol, max_products=40)  # too few for 60 columns
    assert (few.method, few.products <= 40) == ("hutchinson", True)
    assert few.converged == (method == "hutchinson")


class Quadratic(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x):
        return 0.5 * ((x @ self.matrix) * x).sum(dim=1, keepdim=True)


def test_the_density_of_small_matrices_is_exact():
    eigenvalues = np.linalg.eigvalsh(dense(network(), LOSSES["cross_entropy"][2], CLASSES)).ravel()
    found = spectra.density(network(), "cross_entropy", (X, CLASSES), wrt="inputs", dtype="float64")
    assert (found.method, found.dimension, found.products) == ("dense", 13 * 5, 3 + 1 + 5)
    assert np.sort(found.nodes.ravel()) == pytest.approx(np.sort(eigenvalues), abs=1e-13)
    assert found.weights.ravel() == pytest.approx(1 / 65)
    few = spectra.density(network(), "cross_entropy", (X, CLASSES), wrt="inputs", dtype="float64", max_products=8)
    assert (few.method, few.converged) == ("stochastic lanczos quadrature", False)


def test_density_is_the_mean_over_examples(monkeypatch):
    monkeypatch.setattr("spectra.krylov.equal_blocks.DENSE_TRACE", 2)
    eigenvalues = np.linalg.eigvalsh(dense(network(), LOSSES["cross_entropy"][2], CLASSES))
    found = spectra.density(network(), "cross_entropy", (X, CLASSES), wrt="inputs", steps=12, probes=30)
    assert found.dimension == 13 * 5
    for power in (1, 2, 3):
        moment = found.measure().mean(lambda nodes, power=power: nodes**power)
        assert abs(moment[0] - (eigenvalues**power).mean()) < 4 * moment[1]


def test_several_inputs_of_which_one_is_named():
    class Pair(nn.Module):
        def forward(self, positions, species, field):
            return (positions.square() * (1 + species[:, None])).sum(dim=1) + (field * positions).sum(dim=1)

    data = {"positions": X, "species": CLASSES, "field": X.flip(0)}
    found = spectra.eig(Pair(), "output", data, wrt="inputs:positions", dtype="float64", which="LA", k=5)
    assert found.values_by_example == pytest.approx(2.0 + 2 * np.tile(CLASSES[:, None], 5))
    with pytest.raises(SpectraError, match=r"`wrt` inputs: the data have several .positions, field.; choose one"):
        spectra.eig(Pair(), "output", data, wrt="inputs", dtype="float64")
    with pytest.raises(SpectraError, match=r"the inputs are torch.int64, which have no derivative"):
        spectra.eig(Pair(), "output", data, wrt="inputs:species", dtype="float64")
    with pytest.raises(SpectraError, match="no such input; available: positions, field"):
        spectra.eig(Pair(), "output", data, wrt="inputs:charge", dtype="float64")


class Distance(nn.Module):
    """It has no derivative where the two atoms are in one place."""

    def forward(self, positions):
        return (positions[:, 0] - positions[:, 1]).norm(dim=-1)


def coincident():
    positions = torch.eye(3, dtype=F64)[:2].repeat(4, 1, 1)
    positions[1] = 0
    return positions


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_an_example_that_is_not_finite_leaves_the_others(method, monkeypatch):
    """A distance r between two atoms has the eigenvalues 2 / r, 2 / r and 0."""
    if method == "lanczos":
        monkeypatch.setattr("spectra.run.input_blocks.dense_pays", lambda *_: False)
    found = energies(Distance(), coincident(), which="LA", k=3, method=method, tolerance=1e-9)
    expected = np.tile([2**0.5, 2**0.5, 0], (4, 1))
    expected[1] = np.nan
    assert found.values_by_example == pytest.approx(expected, abs=1e-8, nan_ok=True)
    assert np.isnan(found.values).all()
    assert (found.converged, found.complete) == (False, None)
    traces = spectra.trace(Distance(), "output", coincident(), wrt="inputs", dtype="float64")
    assert traces.traces_by_example == pytest.approx(expected.sum(axis=1), nan_ok=True)
    assert traces.standard_errors_by_example == pytest.approx([0, np.nan, 0, 0], nan_ok=True)
    assert np.isnan([traces.trace, traces.standard_error, traces.spread, traces.spread_error]).all()


# What is refused, and what stays


class Mixing(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x - x.mean(dim=0))


def test_examples_that_depend_on_each_other_are_refused():
    with pytest.raises(
        SpectraError, match="`model`: its output for an example depends on the other examples in the batch"
    ):
        spectra.eig(Mixing(network()), "cross_entropy", (X, CLASSES), wrt="inputs", k=2)
    paired = BatchLoss(lambda model, batch: (model(batch[0]) @ model(batch[0]).T).square().mean())
    with pytest.raises(SpectraError, match="`wrt` inputs: the loss of an example depends on the inputs of others"):
        spectra.eig(network(), paired, (X, CLASSES), wrt="inputs", k=2)
    with pytest.raises(SpectraError, match="`wrt` inputs: the loss of an example depends on the inputs of others"):
        spectra.density(network(), paired, (X, CLASSES), wrt="inputs")
    tiny = BatchLoss(lambda model, batch: 2.0**-90 * paired.function(model, batch))  # whose square no float32 holds
    with pytest.raises(SpectraError, match="`wrt` inputs: the loss of an example depends on the inputs of others"):
        spectra.eig(network().float(), tiny, (X.float(), CLASSES), wrt="inputs", k=2, check=True)


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.detach().cos())
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def test_a_wrong_derivative_is_found():
    class Model(nn.Module):
        def forward(self, x):
            return Wrong.apply(x).square().sum(dim=1)

    with pytest.raises(SpectraError, match="autograd gives a wrong derivative"):
        energies(Model(), X, k=1)


def test_the_model_stays_as_it_was():
    model = network().train()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    x = X.clone()
    spectra.eig(model, "cross_entropy", (x, CLASSES), wrt="inputs", k=1)
    assert model.training
    assert x.equal(X)
    assert not x.requires_grad
    assert [*before] == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        assert p.equal(before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None


def test_the_output_as_a_loss_of_parameters():
    """The Hessian of the mean of one output by the parameters."""
    model = network()
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]

    def mean(vector):
        parts = {n: v.view_as(p) for n, v, p in zip(names, vector.split(sizes), parameters, strict=True)}
        return torch.func.functional_call(model, parts, (X,))[:, 2].mean()

    expected = torch.linalg.eigvalsh(
        torch.func.jacrev(torch.func.jacrev(mean))(nn.utils.parameters_to_vector(parameters).detach())
    )
    found = spectra.eig(model, OutputLoss(index=2), X, k=sum(sizes), which="SA", method="dense")
    assert found.values == pytest.approx(expected.numpy(), abs=1e-10)


FILE = """
import torch
from torch import nn

class Chain(nn.Module):
    def forward(self, x):
        return 0.5 * nn.functional.pad(x, (1, 1)).diff(dim=1).square().sum(dim=1)

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)
    def forward(self, x):
        return self.table(x).sum(dim=(1, 2))

class Sum(Chain):
    def forward(self, x):
        return super().forward(x).sum()

class Two(Chain):
    def forward(self, x):
        return torch.stack(2 * [super().forward(x)], dim=1)

class Distance(nn.Module):
    def forward(self, x):
        return (x[:, 0] - x[:, 1]).norm(dim=-1)

class Saddle(nn.Module):
    def forward(self, x):
        return (x[:, 0] * x[:, 1]).sin()

def energies(): return Chain()
def saddles(): return Saddle()
def coincident(): return torch.eye(3)[:2] * torch.tensor([1.0, 0, 1, 1])[:, None, None]
def tokens(): return Tokens()
def whole(): return Sum()
def two(): return Two()
def positions(): return torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
def few(): return positions()[:4]
def long(): return Chain()
def long_positions(): return torch.randn(3, 60, generator=torch.Generator().manual_seed(0))
def integers(): return torch.arange(12).view(4, 3) % 7
"""
OF_OUTPUT = "--loss output --wrt inputs --dtype float64"
LINE = f"--model file.py:energies --data file.py:few {OF_OUTPUT}"


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("file.py").write_text(FILE)

    def call(line):
        capfd.readouterr()
        status = run(shlex.split(line))
        return status, *capfd.readouterr()

    return call


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("--params x", "--params x: chooses parameters, but --wrt inputs differentiates with respect to inputs"),
        ("--weight-decay 0.1", "--weight-decay 0.1: acts on parameters, but --wrt inputs differentiates"),
        ("--curvature fisher-empirical", "--curvature fisher-empirical: is made of gradients with respect"),
        ("--curvature ggn", "--curvature ggn: is zero"),
        ("--method power", "--method power: is not available with --wrt inputs"),
        ("-k 7", "-k 7: the matrix has only 6 rows; ask for at most 6"),
        ("--wrt input", "--wrt input: is not valid; give parameters, inputs, or inputs:NAME"),
        ("--wrt inputs:", "--wrt inputs:: is not valid; give parameters, inputs, or inputs:NAME"),
        ("--wrt inputs:x", "--wrt inputs:x: the data have no such input"),
        ("--model file.py:tokens --data file.py:integers", "--wrt inputs: the inputs are torch.int64"),
        ("--model file.py:whole", "--loss output: the model returned one number for all examples"),
        (
            "--model file.py:two",
            "--loss output: the model returns 2 numbers per example; select one",
        ),
        ("--loss output?index=1", "--loss output?index=1: the model returns 1 number per example"),
    ],
)
def test_refusals(more, told, call):
    status, out, err = call(f"eig {LINE} -k 2 {more}")
    assert (status, out) == (2, "")
    assert err.startswith(f"spectra: {told}")
    assert err.count("\n") == 1


def test_other_refusals(call):
    assert call(f"trace {LINE} --method xtrace")[2].startswith(
        "spectra: --method xtrace: is not available with --wrt inputs"
    )
    assert call(f"eig {LINE} -k 2 --out a")[0] == 0
    told = "spectra: --deflate a/eig.json: eigenvectors of an earlier result are not used with --wrt inputs"
    assert call(f"trace {LINE} --deflate a/eig.json")[2].startswith(told)
    assert call(f"trace {LINE} --out a")[0] == 0
    np.save("matrix.npy", np.eye(3))
    told = "spectra: --wrt: describes a network, but --operator names a matrix; leave one of them out"
    assert call("eig --operator matrix.npy -k 1 --wrt inputs")[2].startswith(told)


def test_on_the_command_line(call):
    status, out, err = call(f"eig {LINE} -k 6 --which SA --json --out a")
    assert (status, err) == (0, "")
    record, expected = json.loads(out), 4 * np.sin(np.pi * np.arange(1, 7) / 14) ** 2
    (result,), problem = record["results"], record["problem"]
    assert (problem["wrt"], problem["input_size"], problem["parameters"]) == ("inputs", 6, 0)
    assert result["eigenvalues"] == pytest.approx(expected)
    assert len(result["eigenvalues_by_example"]) == 4
    again = json.loads(call("eig --config a/eig.json --trust --json")[1])["results"][0]
    assert again["eigenvalues_by_example"] == result["eigenvalues_by_example"]
    assert json.loads(call("trace --config a/eig.json --trust --json")[1])["results"][0]["trace"] == pytest.approx(12)
    shown = call(f"eig {LINE} -k 6 --which SA")[1]
    assert "by inputs of 6 numbers, 4 examples" in shown.replace("\n", " ")
    assert "1.55495813209" in shown
    status, told, _ = call(f"density {LINE} --steps 6 --out b")
    assert (status, "density.png: mean, and % < 0, of all eigenvalues" in told) == (0, True)
    assert call("report a b --out page.html")[0] == 0
    assert call("plot a --out figure.png")[0] == 0


def test_figures_show_the_spread():
    found = spectra.eig(network(), "cross_entropy", (X, CLASSES), wrt="inputs", which="LA", k=3)
    (axes,) = spectra.eigenvalue_figure({"hessian": found}).axes
    assert axes.get_ylabel() == "λ ± (residual + standard deviation over examples)"
    (bars,) = axes.containers[0].lines[2]
    lengths = [end - start for (_, start), (_, end) in bars.get_segments()]
    assert lengths == pytest.approx(2 * (found.spread + found.residuals))


def test_numbers_of_many_examples_are_in_the_npz_file(call):
    line = LINE.replace("few", "positions")
    assert call(f"eig {line} -k 6 --out a")[0] == 0
    assert call(f"trace {line} --out a")[0] == 0
    assert "eigenvalues_by_example" not in Path("a/eig.json").read_text()
    found = spectra.load_result("a/eig.json").results[0]
    assert found.values_by_example.shape == found.residuals_by_example.shape == (400, 6)
    assert found.vectors_by_example.shape == (400, 6, 6)
    assert len(spectra.load_result("a/trace.json").results[0].traces_by_example) == 400
    with np.load("a/eig.npz") as arrays:
        assert {"eigenvalues_by_example_hessian", "residuals_by_example_hessian"} <= {*arrays}


@pytest.mark.parametrize("command", ["eig -k 1", "trace"])
def test_the_command_names_the_example_that_is_not_finite(command, call):
    status, _, err = call(f"{command} --model file.py:Distance --data file.py:coincident {OF_OUTPUT}")
    name = "traces" if command == "trace" else "eigenvalues"
    assert status == 1
    assert f"not finite for 1 of 4 examples, the first in row 1 of {name}_by_example; " in err


def test_a_mean_of_either_sign_is_told(call):
    line = f"eig --model file.py:saddles --data file.py:few {OF_OUTPUT} -k 2"
    assert "hessian: a row mixes positive and negative eigenvalues" in call(line)[1]
    assert "either sign" not in call(f"{line} --which LA")[1]


@pytest.mark.parametrize(
    "command", ["eig -k 2 --max-products 6", "trace --method hutchinson", "trace", "density --steps 4 --probes 3"]
)
def test_a_run_that_is_cut_off_goes_on(command, call, monkeypatch):
    name = command.split()[0]
    monkeypatch.setattr("spectra.krylov.equal_blocks.DENSE_TRACE", 2)  # so that samples are followed by an exact trace
    call(f"{command} {LINE} --out whole")
    multiply, left = Curvature.__matmul__, [4]

    def limited(self, vectors):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return multiply(self, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(Curvature, "__matmul__", limited)
        assert call(f"{command} {LINE} --out cut")[0] == 130
    assert "resumes after" in call(f"{command} {LINE} --out cut")[2]
    one, two = (json.loads(Path(out, f"{name}.json").read_text())["results"][0] for out in ("whole", "cut"))
    for clock in ("seconds", "setup_seconds", "figure"):
        one.pop(clock, None), two.pop(clock, None)
    assert one == two


def test_max_products(call):
    """Below what makes the matrices whole, Lanczos goes as far as it may."""
    line = LINE.replace("energies", "long").replace("few", "long_positions")
    for most in (4, 9, 30):
        status, out, _ = call(f"eig {line} -k 2 --max-products {most} --json")
        result = json.loads(out)["results"][0]
        assert (status, result["products"] <= most, result["method"]) == (1, True, "lanczos")
    assert json.loads(call(f"eig {line} -k 2 --max-products 80 --json")[1])["results"][0]["method"] == "dense"


def test_examples_of_several_shapes_are_refused():
    batches = [spectra.Batch(X[:4, :n], None, torch.arange(4)) for n in (4, 5)]
    problem = replace(spectra.Problem(network(), OutputLoss(index=0), batches))
    with pytest.raises(SpectraError, match=r"`wrt` inputs: examples differ in shape \(\(4,\) and \(5,\)\)"):
        with_respect_to_inputs(problem)


@pytest.mark.parametrize("wrt", [["inputs"], 3, "input"], ids=repr)
def test_what_is_no_way_to_differentiate_is_refused(wrt):
    with pytest.raises(spectra.SpectraError, match=r"`wrt` .*: is not valid; give parameters, inputs"):
        spectra.eig(torch.nn.Linear(4, 1), "mse", (torch.ones(5, 4), torch.ones(5, 1)), wrt=wrt)
