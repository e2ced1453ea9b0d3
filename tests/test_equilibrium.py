"""Networks whose state is a fixed point, against closed forms, linear algebra in NumPy, and the unrolled iteration.

No reference shares code with `spectra.systems`: derivatives of the unrolled iteration are dense autograd's.
"""

import json
import math
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import seeded, with_spectrum
from networks import DEVICES
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import spectra
from spectra.cli import run
from spectra.curvature.checks.notes import model_notes
from spectra.errors import ArgumentError, SpectraError
from spectra.problem.autograd_graph import names_behind
from spectra.problem.problem import Problem, Processes
from spectra.systems.equilibrium import Equilibrium, RecurrentNetwork
from spectra.systems.relaxation import METHODS, Relaxation, relax

EXAMPLES, INPUTS, UNITS, CLASSES = 12, 3, 4, 3
WAYS = {"kept": {}, "anew": {"memory": 0}, "traced": {"products": 10**9}}
STEPS = 150  # of the unrolled iteration, which contracts by 0.6 or less
methods = pytest.mark.parametrize("method", METHODS)


class Layer(nn.Module):
    """z -> tanh(W z + U x + b)"""

    def __init__(self):
        super().__init__()
        self.hidden, self.input = nn.Linear(UNITS, UNITS), nn.Linear(INPUTS, UNITS, bias=False)

    def forward(self, z, x):
        return torch.tanh(self.hidden(z) + self.input(x))


def build(**options) -> Equilibrium:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Equilibrium(Layer(), UNITS, nn.Linear(UNITS, CLASSES), **options).double()


def points(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples of very different size, so that they take different numbers of steps."""
    x = (
        torch.randn(EXAMPLES, INPUTS, generator=seeded(1), dtype=torch.float64)
        * torch.logspace(-3, 0.5, EXAMPLES)[:, None]
    )
    return x.to(dtype), torch.randint(CLASSES, (EXAMPLES,), generator=seeded(2))


def problem(model: nn.Module, size: int = 5, device="cpu", **options) -> Problem:
    x, y = (t.to(device) for t in points())
    batches = spectra.cut_batches(x, y, torch.arange(EXAMPLES).to(device), size)
    return Problem(model.to(device), spectra.CrossEntropy(), batches, **options)


def vectors(n: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=seeded(4), dtype=torch.float64)


def products(given: Problem, name: str, **way) -> tuple[torch.Tensor, str]:
    """Those with `vectors`, and the path of the matrix."""
    matrix = spectra.Curvature(given, name, **way)
    return (matrix @ vectors(given.size).to(given.device)).cpu(), matrix.path


def unrolled(model: Equilibrium, point: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The output after many steps, as a function of the vector of parameters."""
    named = dict(model.named_parameters())
    parts = point.split([p.numel() for p in named.values()])
    tensors = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
    of_map = {name.removeprefix("map."): t for name, t in tensors.items() if name.startswith("map.")}
    z = x.new_zeros(len(x), UNITS)
    for _ in range(STEPS):
        z = functional_call(model.map, of_map, (z, x))
    return F.linear(z, tensors["readout.weight"], tensors["readout.bias"])


@cache
def references() -> dict[str, torch.Tensor]:
    """The matrices and the gradient of the unrolled iteration, dense, by torch.func."""
    model, (x, y) = build(), points()
    point = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def losses(point):
        return F.cross_entropy(unrolled(model, point, x), y, reduction="none")

    rows = jacobian(losses, point)
    j = jacobian(lambda point: unrolled(model, point, x), point)
    p = torch.softmax(unrolled(model, point, x), 1).detach()
    ggn = torch.einsum("eca,ecd,edb->ab", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / EXAMPLES
    empirical, mean = rows.T @ rows / EXAMPLES, rows.mean(0)
    return {
        "gradient": mean,
        "hessian": hessian(lambda point: losses(point).mean(), point),
        "ggn": ggn,
        "fisher": ggn,
        "fisher-empirical": empirical,
        "gradient-covariance": empirical - torch.outer(mean, mean),
    }


def expected_products(name: str) -> torch.Tensor:
    matrix = references()[name]
    return matrix @ vectors(len(matrix))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# Relaxation.


@methods
def test_an_affine_map_is_solved_and_its_distance_bounded(method):
    """z = A z + b with symmetric A has the solution (I - A)^-1 b, and an error of at most |r| / (1 - |A|)."""
    spectrum = torch.linspace(-0.7, 0.8, 9)
    a, b = with_spectrum(spectrum), torch.randn(6, 9, generator=seeded(), dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(9) - a, b.T).T
    for tolerance in (1e-3, 1e-8, 1e-12):
        found = relax(lambda z: z @ a + b, torch.zeros_like(b), Relaxation(tolerance, 500, method))
        residuals = (found.state @ a + b - found.state).norm(dim=1)
        assert found.unsolved == 0
        assert found.residual == pytest.approx((residuals / (found.state @ a + b).norm(dim=1)).max().item(), rel=1e-6)
        assert found.residual <= tolerance
        assert ((found.state - exact).norm(dim=1) <= residuals / (1 - 0.8) * (1 + 1e-6) + 1e-14).all()
    if method == "relaxation":
        assert found.contraction == pytest.approx(0.8, rel=1e-2)
        assert ((found.state - exact).norm(dim=1) / exact.norm(dim=1)).max() <= 1.5 * found.distance


def affine(a, b, z):
    return z @ a + b


@methods
@pytest.mark.parametrize("factor", [2.0**-75, 2.0**80])
def test_numbers_whose_squares_no_float32_holds(method, factor):
    """A solution scales with b, and so does every step that leads there."""
    a, b = with_spectrum(np.linspace(-0.7, 0.8, 9)).float(), torch.randn(6, 9, generator=seeded())
    usual, other = (relax(partial(affine, a, c), 0 * b, Relaxation(1e-5, 500, method)) for c in (b, factor * b))
    assert (other.unsolved, other.iterations) == (0, usual.iterations)
    assert other.residual == pytest.approx(usual.residual, rel=1e-3)
    torch.testing.assert_close(other.state / factor, usual.state)


def test_anderson_is_the_quicker():
    a, b = with_spectrum(np.linspace(-0.9, 0.98, 9)), torch.randn(6, 9, generator=seeded(), dtype=torch.float64)
    steps = {m: relax(lambda z: z @ a + b, 0 * b, Relaxation(1e-10, 5000, m)).iterations for m in METHODS}
    assert steps["anderson"] < steps["relaxation"] / 5


def test_anderson_solves_a_linear_system_in_as_many_steps_as_it_has_dimensions():
    """It is then GMRES (Walker and Ni 2011, theorem 2.2), whatever the size of A."""
    a, b = with_spectrum([-3.0, 2.0, 5.0]), torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
    found = relax(lambda z: z @ a + b, 0 * b, Relaxation(1e-9, 12, "anderson"))
    assert found.unsolved == 0
    assert relative(found.state, torch.linalg.solve(torch.eye(3) - a, b.T).T) < 1e-7
    assert relax(lambda z: z @ a + b, 0 * b, Relaxation(1e-9, 12)).unsolved == 4


@methods
def test_examples_do_not_depend_on_those_beside_them(method):
    a, b = with_spectrum(np.linspace(-0.5, 0.9, 5)), torch.randn(8, 5, generator=seeded(), dtype=torch.float64)
    b *= torch.logspace(-8, 3, 8)[:, None]
    whole = relax(lambda z: torch.tanh(z @ a + b), 0 * b, Relaxation(1e-6, 500, method)).state
    parts = [
        relax(lambda z, row=row: torch.tanh(z @ a + row), 0 * row, Relaxation(1e-6, 500, method)).state
        for row in b.split(1)
    ]
    assert ((whole - torch.cat(parts)).norm(dim=1) <= 1e-11 * whole.norm(dim=1)).all()


def test_zero_is_a_fixed_point_like_others():
    """Residuals are measured against the first |f(z)| there, for |f(z)| vanishes."""
    found = relax(lambda z: z / 2, torch.ones(3, 2, dtype=torch.float64), Relaxation(1e-6))
    assert found.unsolved == 0
    assert found.state.abs().max() <= 2e-6
    assert relax(lambda z: z / 2, torch.zeros(3, 2), Relaxation(1e-6)).iterations == 0
    assert relax(lambda z: z / 2, torch.zeros(0, 2), Relaxation(1e-6)).unsolved == 0


@methods
@pytest.mark.parametrize(
    "function", [lambda z: z.exp() + 1, lambda z: torch.where(z > 0, -z - 1, 1 - z), lambda z: z * math.nan]
)
def test_a_map_without_a_fixed_point_is_not_solved(function, method):
    found = relax(function, torch.full((2, 1), 0.3, dtype=torch.float64), Relaxation(1e-6, 60, method))
    assert found.unsolved


# Closed forms of one unit.


class Unit(nn.Module):
    """y -> sigma(w y) + x"""

    def __init__(self, weight, sigma=lambda s: s):
        super().__init__()
        self.weight, self.sigma = nn.Parameter(torch.tensor(weight, dtype=torch.float64)), sigma

    def forward(self, y, x):
        return self.sigma(self.weight * y) + x


@methods
def test_three_derivatives_of_a_linear_unit(method):
    """y = w y + x: y = x / (1 - w), and d^k y / dw^k = k! x / (1 - w)^(k + 1)."""
    model, x = Equilibrium(Unit(0.6), 1, tolerance=1e-13, method=method), torch.tensor([[0.7]], dtype=torch.float64)
    value = model(x.requires_grad_()).sum()
    for k in range(4):
        assert value.item() == pytest.approx(math.factorial(k) * 0.7 / 0.4 ** (k + 1), rel=1e-11)
        (by_input,) = torch.autograd.grad(value, x, create_graph=True)
        assert by_input.item() == pytest.approx(math.factorial(k) / 0.4 ** (k + 1), rel=1e-11)
        (value,) = torch.autograd.grad(value, model.map.weight, create_graph=True)


@methods
def test_two_derivatives_of_a_nonlinear_unit(method):
    """y = tanh(w y) + x: with t = tanh, y' = t' y / (1 - w t') and y'' = (t'' (y + w y')^2 + 2 t' y') / (1 - w t')."""
    w, model = 0.8, Equilibrium(Unit(0.8, torch.tanh), 1, tolerance=1e-13, method=method)
    y = model(torch.tensor([[0.4]], dtype=torch.float64)).sum()
    t = math.tanh(w * y.item())
    slope, bend = 1 - t * t, -2 * t * (1 - t * t)
    first = slope * y.item() / (1 - w * slope)
    second = (bend * (y.item() + w * first) ** 2 + 2 * slope * first) / (1 - w * slope)
    assert y.item() == pytest.approx(t + 0.4, rel=1e-12)
    (got,) = torch.autograd.grad(y, model.map.weight, create_graph=True)
    assert got.item() == pytest.approx(first, rel=1e-11)
    assert torch.autograd.grad(got, model.map.weight)[0].item() == pytest.approx(second, rel=1e-11)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_of_several_fixed_points_the_start_chooses(side):
    """y = tanh(2 y) has fixed points near +-0.957, with dy/dw = t' y / (1 - 2 t'), and 0, which does not attract."""
    model = Equilibrium(Unit(2.0, torch.tanh), torch.ones_like if side > 0 else lambda x: -torch.ones_like(x))
    y = model(torch.zeros(1, 1, dtype=torch.float64)).sum()
    slope = 1 - y.item() ** 2
    assert y.item() == pytest.approx(side * 0.9575040240772687, rel=1e-9)
    (got,) = torch.autograd.grad(y, model.map.weight)
    assert got.item() == pytest.approx(slope * y.item() / (1 - 2 * slope), rel=1e-8)


# Pearlmutter (1994), section 4.1, written out with dense linear algebra.


def recurrent_reference(w, x, target, v):
    """Gradient and H v of E = mean of (y - target)^2 / 2 over examples, summed over the last units, in NumPy.

    y = sigma(W y) + I is relaxed by hand; the adjoint z and R{y}, R{z} are solved for directly.
    """
    units, outputs = len(w), target.shape[1]
    gradient, product = np.zeros_like(w), np.zeros_like(w)
    for i, d in zip(x, target, strict=True):
        y = start = np.pad(i, (0, units - len(i)))
        for _ in range(1000):
            y = np.tanh(w @ y) + start
        s = 1 - np.tanh(w @ y) ** 2
        bend = -2 * np.tanh(w @ y) * s
        e = np.concatenate([np.zeros(units - outputs), y[units - outputs :] - d])
        system = np.eye(units) - s[:, None] * w
        z = np.linalg.solve(system.T, e)  # dE/dy
        ry = np.linalg.solve(system, s * (v @ y))
        rs = bend * (v @ y + w @ ry)
        re = np.concatenate([np.zeros(units - outputs), ry[units - outputs :]])
        rz = np.linalg.solve(system.T, re + w.T @ (rs * z) + v.T @ (s * z))
        gradient += np.outer(s * z, y)
        product += np.outer(rs * z + s * rz, y) + np.outer(s * z, ry)
    return gradient / len(x), product / len(x)


@methods
@pytest.mark.parametrize("device", DEVICES)
def test_the_r_equations_of_recurrent_backpropagation(method, device):
    torch.manual_seed(0)
    model = RecurrentNetwork(3, 6, 2, method=method).double()
    x, target = torch.randn(9, 3, generator=seeded(1)).double(), torch.randn(9, 2, generator=seeded(2)).double()
    v = torch.randn(6, 6, generator=seeded(3)).double()
    gradient, product = recurrent_reference(*(t.detach().numpy() for t in (model.map.weight, x, target, v)))

    def half(output, target):
        return (output - target).square().sum(dim=1) / 2

    batches = spectra.cut_batches(x.to(device), target.to(device), torch.arange(9).to(device), 4)
    given = Problem(model.to(device), spectra.CustomLoss(half), batches)
    found = spectra.Curvature(given, "hessian") @ v.reshape(-1).to(device)
    assert relative(spectra.mean_gradient(given).cpu(), torch.from_numpy(gradient).reshape(-1)) < 1e-8
    assert relative(found.cpu(), torch.from_numpy(product).reshape(-1)) < 1e-8


# Networks, against the unrolled iteration.


@pytest.mark.sampled(4)
@methods
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "fisher-empirical", "gradient-covariance"])
def test_every_matrix_is_that_of_the_unrolled_iteration(name, method):
    found, _ = products(problem(build(method=method)), name)
    assert relative(found, expected_products(name)) < 1e-8


@pytest.mark.sampled(2)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_products_are_right_on_every_path(way, device, batches_as_given):
    given = problem(build(), device=device)
    for name in ("hessian", "ggn"):
        found, path = products(given, name, **WAYS[way])
        assert relative(found, expected_products(name)) < 1e-8
        assert path.startswith("double backward")
        assert ("not traced: its code reads values" in path) == (way == "traced")
    assert relative(spectra.mean_gradient(given).cpu(), references()["gradient"]) < 1e-8


@pytest.mark.parametrize("size", [1, 5])
def test_batches_and_their_order_change_nothing(size, batches_as_given):
    given = problem(build(), size)
    given = replace(given, batches=given.batches[::-1])
    assert len(given.batches) == -(-EXAMPLES // size)
    assert relative(products(given, "hessian")[0], expected_products("hessian")) < 1e-9


def test_the_parts_of_two_ranks_add_up(batches_as_given):
    parts = [products(problem(build(), 3, processes=Processes(rank, 2)), "hessian")[0] for rank in range(2)]
    assert min(part.norm() for part in parts) > 0
    assert relative(sum(parts), expected_products("hessian")) < 1e-8


def test_blocks_that_are_computed_anew():
    given = problem(nn.Sequential(nn.Linear(INPUTS, INPUTS), build()).double())
    expected, _ = products(given, "hessian")
    found, path = products(replace(given, recompute_activations=True), "hessian")
    assert "recomput" in path
    assert relative(found, expected) < 1e-9


def test_the_gram_matrix_has_the_eigenvalues():
    x, y = points()
    found = spectra.eig(
        build(), nn.CrossEntropyLoss(), (x, y), curvature="fisher-empirical", k=5, method="gram", dtype="float64"
    )
    expected = torch.linalg.eigvalsh(references()["fisher-empirical"]).flip(0)[:5]
    assert np.abs(found.values - expected.numpy()).max() < 1e-8 * expected[0]


def test_inputs_that_depend_on_parameters():
    """The Hessian of an encoder before a fixed point, against that of the unrolled iteration."""
    torch.manual_seed(5)
    encoder, model, (x, y) = nn.Linear(INPUTS, INPUTS).double(), build(), points()
    network = nn.Sequential(encoder, nn.Tanh(), model)
    given = problem(network)
    named = dict(network.named_parameters())

    def loss(point):
        first = point[: INPUTS * INPUTS].view(INPUTS, INPUTS), point[INPUTS * INPUTS : INPUTS * (INPUTS + 1)]
        return F.cross_entropy(unrolled(model, point[INPUTS * (INPUTS + 1) :], torch.tanh(F.linear(x, *first))), y)

    assert list(named)[:2] == ["0.weight", "0.bias"]
    expected = hessian(loss, given.vector([p.detach() for p in named.values()]))
    assert relative(products(given, "hessian")[0], expected @ vectors(given.size)) < 1e-8


def test_a_state_of_any_shape_and_start():
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, z, x):
            return torch.tanh(self.mix(z) / 2 + x)

    torch.manual_seed(0)
    layer, x = Image().double(), torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=seeded())
    zero, near = Equilibrium(layer, (2, 4, 4)), Equilibrium(layer, torch.tanh)
    assert zero(x).shape == x.shape
    assert relative(near(x), zero(x)) < 1e-9
    assert relative(layer(zero(x), x), zero(x)) < 1e-9


def test_functions_inside_of_the_map_are_seen():
    """Kinks there count in the check of derivatives."""
    assert "TanhBackward0" in set(names_behind([build()(points()[0])]))


# What is told of it.


def test_the_note_is_as_exact_as_the_products():
    """The effect that is told is that on products, which grows with the tolerance."""
    told = {}
    for tolerance in (1e-4, 1e-10):
        given = problem(build(tolerance=tolerance))
        (line,) = model_notes(given)
        told[tolerance] = float(line.partition("differs by ")[2].partition(" of")[0])
        off = relative(products(given, "hessian")[0], expected_products("hessian"))
        assert off / 10 < told[tolerance] < 10 * off
        assert f"to residuals of {tolerance:.1g}, " in line
        assert f"tolerance {tolerance / 100:.1g} ({EXAMPLES} examples)" in line
    steps = given.model.relaxations
    assert steps.count > 0
    assert steps.iterations < 100


def test_a_note_in_single_precision_counts_rounding():
    model, (x, y) = build().float(), points(torch.float32)
    given = Problem(model, spectra.CrossEntropy(), spectra.cut_batches(x, y, torch.arange(EXAMPLES), EXAMPLES))
    (line,) = model_notes(given)
    assert "to residuals of 4e-06" in line
    assert 1e-8 < float(line.partition("differs by ")[2].partition(" of")[0]) < 1e-3


def test_a_tighter_tolerance_that_rounding_forbids_leaves_the_note_open(monkeypatch):
    monkeypatch.setattr("spectra.systems.relaxation.ROUNDING", 1e-3)
    (line,) = model_notes(problem(build(tolerance=1e-15)))
    assert "its effect on products is not measured: float64 does not reach tolerance 1e-17" in line


def test_any_module_may_tell_of_itself():
    class Telling(nn.Linear):
        def spectra_notes(self, problem):
            return [f"{problem.size} parameters have told"]

    given = problem(nn.Sequential(Telling(INPUTS, CLASSES), build()).double())
    told, relaxed = model_notes(given)
    assert told == f"{given.size} parameters have told"
    assert relaxed.startswith("fixed points of 1 by relaxation")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = "import torch\nfrom torch import nn\nimport spectra\nUNITS, INPUTS, CLASSES = 4, 3, 3\n"
    layer = """
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.input = nn.Linear(UNITS, UNITS), nn.Linear(INPUTS, UNITS, bias=False)
    def forward(self, z, x):
        return SCALE * z + torch.tanh(self.hidden(z) + self.input(x))
def equilibrium():
    return spectra.Equilibrium(Layer(), UNITS, nn.Linear(UNITS, CLASSES), iterations=200)
"""
    x, y = points()
    np.savez("points.npz", x=x, y=y)
    torch.save(build().state_dict(), "net.pt")
    for file, scale in (("deq.py", 0), ("wild.py", 2)):
        (tmp_path / file).write_text(source + layer.replace("SCALE", str(scale)))
    line = ["--model", "deq.py:equilibrium", "--checkpoint", "net.pt", "--data", "points.npz", "--dtype", "float64"]
    line.append("--json")
    assert run(["eig", *line, "-k", "4"]) == 0
    record = json.loads(capsys.readouterr().out)
    found, expected = record["results"][0]["eigenvalues"], torch.linalg.eigvalsh(references()["hessian"])
    assert np.abs(np.sort(np.abs(found)) - expected.abs().sort().values[-4:].numpy()).max() < 1e-4
    assert any("fixed points of the model by relaxation: at most" in note for note in record["problem"]["notes"])
    assert run(["trace", *line, "--curvature", "ggn"]) == 0
    (ggn,) = json.loads(capsys.readouterr().out)["results"]
    assert ggn["trace"] == pytest.approx(references()["ggn"].trace().item(), abs=5 * ggn["standard_error"] + 1e-6)
    assert run(["eig", "--model", "wild.py:equilibrium", *line[2:]]) == 2
    error = capsys.readouterr().err
    assert "--model: the relaxation of a fixed point did not reach its tolerance for" in error
    assert error.count("\n") == 1


def test_a_fixed_point_that_does_not_attract_has_no_derivative():
    """From 0, the fixed point of y -> 3 y + sin y, no step is taken; the adjoint relaxation diverges."""
    model = Equilibrium(Unit(3.0, lambda s: s + s.sin()), 1)
    value = model(torch.zeros(2, 1, dtype=torch.float64))
    assert (value == 0).all()
    with pytest.raises(SpectraError, match="the relaxation of the adjoint of a fixed point did not reach"):
        torch.autograd.grad(value.sum(), model.map.weight)


def test_the_model_is_left_as_it_was():
    model = build().train()
    before, mode = deepcopy(model.state_dict()), model.relaxation
    spectra.eig(model, nn.CrossEntropyLoss(), points(), k=2, dtype="float64")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert model.relaxation is mode
    assert torch.equal(deepcopy(model)(points()[0]), model(points()[0]))


def test_tensors_from_elsewhere_are_refused():
    outside = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    map = Unit(0.5)
    map.sigma = lambda s: s * outside
    with pytest.raises(SpectraError, match=r"`map` uses a tensor of shape \(1,\) that requires gradients"):
        Equilibrium(map, 1)(torch.ones(2, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Equilibrium(torch.tanh, 3), "`map`"),
        (lambda: Equilibrium(Unit(0.5), 0), "`state`"),
        (lambda: Equilibrium(Unit(0.5), "3"), "`state`"),
        (lambda: Equilibrium(Unit(0.5), 1, tolerance=0), "`tolerance`"),
        (lambda: Equilibrium(Unit(0.5), 1, iterations=0), "`iterations`"),
        (
            lambda: Equilibrium(Unit(0.5), 1, method="newton"),
            "`method` 'newton': expected one of relaxation, anderson",
        ),
        (lambda: RecurrentNetwork(5, 4, 1), "`inputs`"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_map_to_another_shape_is_refused():
    with pytest.raises(SpectraError, match=r"`map` returns \(2, 3\) for a state of shape \(2, 1\)"):
        Equilibrium(Unit(0.5), 1)(torch.ones(2, 3, dtype=torch.float64))


def test_inputs_that_are_not_finite_are_named():
    with pytest.raises(SpectraError, match="its first step is not finite; check the inputs"):
        build()(points()[0] * torch.nan)
