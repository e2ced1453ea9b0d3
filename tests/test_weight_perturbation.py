"""Gradient and Hessian products from values of the loss: expectations and variances as finite sums, then statistics.

The mean over all 2^n signs is a finite sum. So is that over the sphere, of polynomials up to degree 11: a regular
16-gon and the 120 vertices of the 600-cell are spherical designs.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import seeded, with_spectrum
from networks import DEVICES
from torch import nn

import spectra
from spectra.curvature.evaluation import cut_batches
from spectra.errors import SpectraError
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.problem import Problem
from spectra.systems import weight_perturbation
from spectra.systems.rank_two import RankTwo
from spectra.systems.weight_perturbation import (
    LAWS,
    SECOND_ORDER,
    Losses,
    Reading,
    along_second_order,
    estimates,
    gradient_and_product_from_losses,
    gradient_from_losses,
    product_from_losses,
)

FORMS = ("central", "forward")
SIZE = 0.3


def all_signs(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((1.0, -1.0), repeat=n)), dtype=torch.float64)


def polygon(corners: int = 16) -> torch.Tensor:
    """A regular polygon, a spherical design of degree 15, of length sqrt(2)."""
    angles = 2 * math.pi * torch.arange(corners, dtype=torch.float64) / corners
    return math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], dim=1)


def cell_600() -> torch.Tensor:
    """The vertices of the 600-cell, a spherical design of degree 11, of length 2."""
    golden = (1 + math.sqrt(5)) / 2
    axes = [2 * sign * np.eye(4)[i] for i in range(4) for sign in (1, -1)]
    even = [p for p in itertools.permutations(range(4)) if np.linalg.det(np.eye(4)[list(p)]) > 0]
    rest = [
        np.array([a * golden, b, c / golden, 0])[list(p)]
        for p in even
        for a, b, c in itertools.product((1, -1), repeat=3)
    ]
    return torch.tensor(np.concatenate([axes, all_signs(4).numpy(), rest]))


DESIGNS = {"signs": all_signs(5), "polygon": polygon(), "600-cell": cell_600()}

QUANTITIES = ("gradient", "product", "second-order product")
CASES = [pair for pair in itertools.product(QUANTITIES, DESIGNS) if pair != ("second-order product", "signs")]


class Quadratic:
    """E(w) = c + b'w + w'H w / 2, looked at from a point; everything about it is known."""

    def __init__(self, n: int, seed: int = 1):
        self.hessian = with_spectrum(np.linspace(-1, 3, n) ** 3, seed)
        self.point, self.slope, self.vector = torch.randn(3, n, generator=seeded(seed), dtype=torch.float64)
        self.gradient, self.product = self.slope + self.hessian @ self.point, self.hessian @ self.vector

    def __call__(self, w):
        return 0.7 + self.slope @ w + w @ self.hessian @ w / 2

    def expected_square(self, quantity: str, form: str, law: str, taken=0.0) -> float:
        """E |estimate - true|^2 of one perturbation, as the pages state it; `taken` is subtracted from H."""
        n, left = len(self.point), self.hessian - taken
        g, v, z = self.gradient, self.vector, self.product
        if quantity == "product":
            return ((n - 1) * z @ z).item()
        whole, trace = left.square().sum(), left.trace()
        if quantity == "gradient":
            bend = trace**2 + 2 * whole
            if law == "signs":
                bend, n_bend = bend - 2 * left.diagonal().square().sum(), n
            else:
                n_bend = n * n / (n + 2)
            return ((n - 1) * g @ g + (form == "forward") * SIZE**2 * n_bend * bend / 4).item()
        six = trace**2 * (v @ v) + 4 * trace * (v @ z) + 2 * whole * (v @ v) + 8 * z @ z
        bend = n * n * six / (n + 4) + n * (v @ v) * (trace**2 + 2 * whole) / (n + 2)
        slope = ((n + 1) * (g @ g) * (v @ v) + 2 * n * (g @ v) ** 2) / SIZE**2
        return (bend / 4 - z @ z + (form == "forward") * slope).item()


@pytest.fixture
def drawn(monkeypatch):
    """A function after which public estimates draw these rows, once each."""

    def draw(rows, law="signs"):
        monkeypatch.setitem(LAWS, law, lambda keys, like, size: size * rows[: len(keys)].to(like))

    return draw


def cost(form: str, count: int, quantity: str) -> int:
    """The evaluations that `count` perturbations take."""
    if quantity == "product":
        return 4 * count if form == "central" else 2 + 2 * count
    if quantity == "gradient":
        return 2 * count if form == "central" else 1 + count
    return 1 + 2 * count if form == "central" else 1 + count


def run(loss, quantity: str, form: str, count: int, law: str = "signs", **options):
    """The estimate of one quantity, of `count` perturbations."""
    settings = {"evaluations": cost(form, count, quantity), "form": form, "size": SIZE, **options}
    if quantity == "gradient":
        return gradient_from_losses(loss, loss.point, perturbations=law, **settings)
    if quantity == "product":
        return product_from_losses(loss, loss.vector, loss.point, perturbations=law, **settings)
    return gradient_and_product_from_losses(loss, loss.vector, loss.point, **settings)[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("quantity", "design"), CASES)
def test_expectation_and_variance_on_a_quadratic(quantity, design, form, drawn):
    rows = DESIGNS[design]
    law = "signs" if design == "signs" else "sphere"
    drawn(rows, law)
    loss = Quadratic(rows.shape[1])
    found = run(loss, quantity, form, len(rows), law)
    true = loss.gradient if quantity == "gradient" else loss.product
    torch.testing.assert_close(found.value, true, rtol=1e-10, atol=1e-10)
    assert (found.perturbations, found.evaluations) == (len(rows), cost(form, len(rows), quantity))
    spread = found.standard_error**2 * (len(rows) - 1)
    assert spread == pytest.approx(loss.expected_square(quantity, form, law), rel=1e-9)


def test_signs_do_not_show_the_diagonal():
    """Two Hessians of one trace that differ on the diagonal give one mean under signs, and their own on the sphere."""
    one, other = Quadratic(4), Quadratic(4)
    other.hessian = one.hessian + torch.diag(torch.tensor([1.0, -2, 0.5, 0.5], dtype=torch.float64))
    other.slope = one.gradient - other.hessian @ one.point
    means = {}
    for name, rows in (("signs", all_signs(4)), ("sphere", cell_600())):
        reading = Reading(SECOND_ORDER["central"], lambda u: along_second_order(u, one.vector, SIZE))
        means[name] = [estimates(Losses.of(e, e.point), iter([SIZE * rows]), [reading])[0].value for e in (one, other)]
    torch.testing.assert_close(*means["signs"])
    torch.testing.assert_close(means["sphere"][1] - means["sphere"][0], (other.hessian - one.hessian) @ one.vector)


@pytest.mark.parametrize("wrong", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_second_order_term_changes_the_variance_alone(design, wrong, drawn):
    """Whatever it is; by how much, for one that is right and for two that are not."""
    rows = DESIGNS[design]
    law = "signs" if design == "signs" else "sphere"
    drawn(rows, law)
    loss = Quadratic(rows.shape[1])
    noise = torch.randn(rows.shape[1], generator=seeded(3), dtype=torch.float64)
    part = RankTwo(loss.vector, loss.product + wrong * noise * loss.product.norm() / noise.norm())
    found = run(loss, "gradient", "forward", len(rows), law, second_order=part)
    torch.testing.assert_close(found.value, loss.gradient, rtol=1e-10, atol=1e-10)
    taken = part @ torch.eye(rows.shape[1], dtype=torch.float64)
    expected = loss.expected_square("gradient", "forward", law, taken)
    assert found.standard_error**2 * (len(rows) - 1) == pytest.approx(expected, rel=1e-9)


def test_the_matrix_of_rank_two():
    """A v = z, A = A', rank 2, H - A = P H P; an error e in z adds |A(e)|_F^2 to |H - A|_F^2."""
    loss = Quadratic(7)
    v, z, eye = loss.vector, loss.product, torch.eye(7, dtype=torch.float64)
    part = RankTwo(v, z)
    dense = part @ eye
    torch.testing.assert_close(part @ v, z)
    torch.testing.assert_close(dense, dense.T)
    torch.testing.assert_close(
        dense, (torch.outer(z, v) + torch.outer(v, z) - (v @ z) / (v @ v) * torch.outer(v, v)) / (v @ v)
    )
    assert torch.linalg.matrix_rank(dense) == 2
    beside = eye - torch.outer(v, v) / (v @ v)
    torch.testing.assert_close(loss.hessian - dense, beside @ loss.hessian @ beside)
    error = torch.randn(7, generator=seeded(5), dtype=torch.float64)
    wrong, of_error = RankTwo(v, z + error) @ eye, RankTwo(v, error) @ eye
    squares = [(m * m).sum() for m in (loss.hessian - wrong, loss.hessian - dense, of_error)]
    torch.testing.assert_close(squares[0], squares[1] + squares[2])
    pairs = spectra.eigenpairs(part, k=2, which="LM")
    torch.testing.assert_close(pairs.values.sort().values, torch.linalg.eigvalsh(dense)[[0, -1]])


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**80])
def test_the_matrix_of_rank_two_does_not_depend_on_the_length_of_its_vector(factor):
    """Squares of such entries are beyond float32."""
    v, z, u = torch.randn(3, 7, generator=seeded(5))
    torch.testing.assert_close(RankTwo(factor * v, factor * z) @ u, RankTwo(v, z) @ u)


def smooth(w):
    """Neither quadratic nor even, every derivative known."""
    return (w.cumsum(0) * 0.4).sin().sum() + (0.3 * w).exp().sum()


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_bias_is_of_second_order_in_the_size(quantity, drawn):
    point, vector = torch.randn(2, 4, generator=seeded(2), dtype=torch.float64)
    gradient = torch.func.grad(smooth)(point)
    true = gradient if quantity == "gradient" else torch.autograd.functional.hessian(smooth, point) @ vector

    def loss(w):
        return smooth(w)

    loss.point, loss.vector = point, vector
    rows = DESIGNS["600-cell"] if quantity == "second-order product" else all_signs(4)
    drawn(rows, "sphere" if quantity == "second-order product" else "signs")
    sizes = np.array([0.02, 0.04, 0.08])
    off = [(run(loss, quantity, "central", len(rows), size=size).value - true).norm().item() for size in sizes]
    slopes = np.diff(np.log(off)) / np.log(2)
    assert slopes == pytest.approx([2, 2], abs=0.1)
    if quantity == "gradient":  # both forms have one expectation: even terms drop out
        both = [run(loss, quantity, form, len(rows)).value for form in FORMS]
        torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)


def test_bias_on_a_cubic_in_closed_form(drawn):
    """E = T(w, w, w) / 6 with a symmetric T: under signs s^2 (sum_j T_ijj / 2 - T_iii / 3)."""
    cube = torch.randn(4, 4, 4, generator=seeded(4), dtype=torch.float64)
    cube = sum(cube.permute(p) for p in itertools.permutations(range(3))) / 6

    def loss(w):
        return torch.einsum("ijk,i,j,k->", cube, w, w, w) / 6

    point = torch.randn(4, generator=seeded(5), dtype=torch.float64)
    loss.point = point
    drawn(all_signs(4))
    diagonals = torch.einsum("ijj->i", cube) / 2 - torch.einsum("iii->i", cube) / 3
    for form in FORMS:
        found = run(loss, "gradient", form, 16).value
        true = torch.einsum("ijk,j,k->i", cube, point, point) / 2
        torch.testing.assert_close(found - true, SIZE**2 * diagonals)


@pytest.mark.parametrize("law", LAWS)
def test_perturbations(law):
    like = torch.zeros(5, dtype=torch.float64)
    rows = LAWS[law](list(range(20_000)), like, SIZE)
    torch.testing.assert_close(rows.norm(dim=1), torch.full((20_000,), SIZE * math.sqrt(5), dtype=torch.float64))
    assert ((rows.abs() - SIZE).abs() < 1e-12).all() == (law == "signs")
    fourth = {"signs": 1.0, "sphere": 3 * 5 / 7}[law]  # E u_i^4 / s^4
    assert (rows.T @ rows / (20_000 * SIZE**2) - torch.eye(5)).abs().max() < 5 / math.sqrt(20_000)
    assert ((rows / SIZE) ** 4).mean().item() == pytest.approx(fourth, abs=0.05)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_errors_fall_as_the_square_root_and_are_covered(quantity):
    """Over seeds: root mean square errors as the variance says, and truth within two standard errors as often as it
    should be.
    """
    loss = Quadratic(5)
    true = loss.gradient if quantity == "gradient" else loss.product
    law, form = ("signs", "forward") if quantity == "gradient" else ("sphere", "central")
    counts, errors, inside = [40, 160], [], []
    for count, seeds in zip(counts, (120, 30), strict=True):
        found = [run(loss, quantity, form, count, law, seed=seed) for seed in range(seeds)]
        apart = torch.stack([each.value - true for each in found])
        errors.append(apart.square().sum(dim=1).mean().sqrt().item())
        inside.append((apart.abs() <= 2 * torch.stack([each.standard_errors for each in found])).double().mean().item())
    expected = math.sqrt(loss.expected_square(quantity, form, law))
    assert np.array(errors) * np.sqrt(counts) == pytest.approx([expected, expected], rel=0.2)
    assert 0.91 < np.mean(inside) < 0.98


def test_noise_of_the_loss_is_in_the_standard_error():
    """That of the value at the point too, which all forward differences share."""
    loss, generator = Quadratic(5), seeded(9)

    def noisy(w):
        return loss(w) + 3 * torch.randn((), generator=generator, dtype=torch.float64).item()

    noisy.point, noisy.vector = loss.point, loss.vector
    for quantity, true in (("gradient", loss.gradient), ("product", loss.product)):
        found = [run(noisy, quantity, "forward", 60, seed=seed) for seed in range(40)]
        square = np.mean([(each.value - true).square().sum().item() for each in found])
        stated = np.mean([each.standard_error**2 for each in found])
        alone = run(loss, quantity, "forward", 60).standard_error ** 2
        assert stated == pytest.approx(square, rel=0.35)
        assert stated > 1.5 * alone


def test_one_perturbation_has_no_standard_error():
    """It is the step of SPSA: g'u u / s^2."""
    loss = Quadratic(3)
    one = gradient_from_losses(loss, loss.point, evaluations=2)
    assert one.perturbations == 1
    assert one.standard_errors.isinf().all()
    signs = one.value.sign()
    torch.testing.assert_close(one.value, (loss.gradient @ signs) * signs, rtol=1e-6, atol=1e-6)


def network(dtype=torch.float64, weight_decay=0.0, size=5, device="cpu"):
    x, y = torch.randn(12, 3, generator=seeded(1)).to(device, dtype), torch.arange(12, device=device) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(device, dtype)
    batches = cut_batches(x, y, torch.arange(12, device=device), size)
    return Problem(model, CrossEntropy(), batches, weight_decay=weight_decay), (x, y)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_a_problem_is_its_loss_as_a_function_of_the_weights(weight_decay):
    problem, (x, y) = network(weight_decay=weight_decay)
    names = list(problem.parameters)
    before = {name: p.detach().clone() for name, p in problem.parameters.items()}

    def loss(w):
        weights = dict(zip(names, problem.tensors(w), strict=True))
        output = torch.func.functional_call(problem.model, weights, (x,))
        return nn.functional.cross_entropy(output, y) + weight_decay * w @ w / 2

    point = problem.vector([p.detach() for p in problem.leaves])
    v = torch.randn(len(point), generator=seeded(), dtype=torch.float64)
    settings = {"evaluations": 40, "seed": 3}
    pairs = [
        (gradient_from_losses(problem, **settings), gradient_from_losses(loss, point, **settings)),
        (product_from_losses(problem, v, **settings), product_from_losses(loss, v, point, **settings)),
        *zip(
            gradient_and_product_from_losses(problem, v, **settings),
            gradient_and_product_from_losses(loss, v, point, **settings),
            strict=True,
        ),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.value, other.value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.standard_errors, other.standard_errors, rtol=1e-6, atol=1e-6)
    for name, p in problem.parameters.items():
        assert torch.equal(p, before[name])
        assert p is problem.parameters[name]
        assert p.grad is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_default_size_the_estimates_hold(dtype, device):
    """The largest error of all 31 * 4 entries lies within 4.5 standard errors: neither rounding nor bias shows."""
    problem, _ = network(dtype, size=12, device=device)
    v = torch.randn(problem.size, generator=seeded(), dtype=dtype).to(device)
    hessian = spectra.Curvature(problem, "hessian")
    gradient = spectra.mean_gradient(problem)
    found = [
        (gradient_from_losses(problem, evaluations=500), gradient),
        (gradient_from_losses(problem, evaluations=500, form="forward", perturbations="sphere"), gradient),
        (product_from_losses(problem, v, evaluations=500), hessian @ v),
        (product_from_losses(problem, v, evaluations=500, form="forward"), hessian @ v),
    ]
    for estimate, true in found:
        assert estimate.value.dtype == dtype
        assert ((estimate.value - true).abs() / estimate.standard_errors).max() < 4.5
        assert estimate.standard_error < 0.7 * true.norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", [23, 24, 25, 26])
def test_evaluations_are_counted_and_not_exceeded(form, budget):
    loss, calls = Quadratic(3), []

    def counted(w):
        calls.append(w)
        return loss(w)

    counted.point, counted.vector = loss.point, loss.vector
    for quantity in QUANTITIES:
        estimate = run(counted, quantity, form, 0, evaluations=budget)
        assert len(calls) == estimate.evaluations <= budget
        assert budget - estimate.evaluations < 4
        calls.clear()


def test_blocks_change_no_number(monkeypatch):
    loss = Quadratic(3)
    whole = gradient_from_losses(loss, loss.point, evaluations=40, seed=7)
    monkeypatch.setattr(weight_perturbation, "BLOCK", 10)
    parts = gradient_from_losses(loss, loss.point, evaluations=40, generator=seeded(7))
    assert torch.equal(whole.value, parts.value)
    assert torch.equal(whole.standard_errors, parts.standard_errors)
    assert not torch.equal(whole.value, gradient_from_losses(loss, loss.point, evaluations=40, seed=8).value)


def test_vectors_that_are_longer_steer_no_more():
    """Along c v the estimate of H c v is c times that of H v, bit for bit for c a power of two."""
    loss = Quadratic(4)
    one, more = (product_from_losses(loss, c * loss.vector, loss.point, evaluations=40) for c in (1, 1024))
    assert torch.equal(1024 * one.value, more.value)


LOSS = Quadratic(3)
PART = RankTwo(LOSS.vector, LOSS.product)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_from_losses(LOSS, evaluations=9), "`point`: expected the weights as a floating-point vector"),
        (
            lambda: gradient_from_losses(3.0, LOSS.point, evaluations=9),
            "`loss`: expected a Problem or a function of the weights, got float",
        ),
        (lambda: gradient_from_losses(network()[0], LOSS.point, evaluations=9), "`point`: a problem has its own"),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point, evaluations=1),
            "`evaluations` 1: expected an integer of 2",
        ),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point, evaluations=9, form="back"),
            "`form` 'back': expected one of",
        ),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point, evaluations=9, size=0),
            "`size` 0: lost to rounding beside weights of",
        ),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point.float(), evaluations=9, size=1e-8),
            "`size` 1e-08: lost to rounding beside weights of .* in torch.float32; give one > .*e-0[78]",
        ),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point, evaluations=9, perturbations="normal"),
            "`perturbations` 'normal': expected one of signs, sphere",
        ),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point, evaluations=9, second_order=PART),
            "`second_order` with `form`",
        ),
        (
            lambda: gradient_from_losses(LOSS, LOSS.point, evaluations=9, form="forward", second_order=torch.eye(2)),
            r"`second_order` of shape \(2, 2\): give \(3, 3\)",
        ),
        (
            lambda: gradient_from_losses(lambda w: w, LOSS.point, evaluations=9),
            r"`loss` returned a tensor of shape \(3,\)",
        ),
        (
            lambda: gradient_from_losses(lambda w: w.sum().log(), -LOSS.point.abs(), evaluations=9),
            "`size`: the loss is not",
        ),
        (lambda: product_from_losses(LOSS, 0 * LOSS.vector, LOSS.point, evaluations=9), "`vector` is zero"),
        (
            lambda: product_from_losses(LOSS, LOSS.vector[:2], LOSS.point, evaluations=9),
            r"`vector` of shape \(2,\): give",
        ),
        (lambda: RankTwo(LOSS.vector, LOSS.vector[:2]), r"`vector` and `image` of shapes \(3,\) and \(2,\)"),
        (lambda: RankTwo(0 * LOSS.vector, LOSS.vector), "`vector` is zero"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(SpectraError, match=message):
        call()


def test_a_loss_whose_rounding_hides_its_changes():
    """Where differences are rounded to zero, errors are those of the rounding, and not zero."""
    w = torch.ones(4, dtype=torch.float64)
    for loss, exact in ((lambda x: 1e12 + float(x @ x / 2), w), (lambda x: 3.0, 0 * w)):
        for found in (
            spectra.gradient_from_losses(loss, w, evaluations=400),
            spectra.product_from_losses(loss, w, w, evaluations=400),
        ):
            assert ((found.value - exact).abs() <= 4 * found.standard_errors).all()
            assert (found.standard_errors > 0).all()


@pytest.mark.parametrize("scale", [1e-200, 1e200, math.nan, math.inf])
def test_weights_and_vectors_that_are_no_usable_numbers(scale):
    w = torch.ones(4, dtype=torch.float64)

    def loss(x):
        return float(x @ x)

    with pytest.raises(SpectraError, match="`point`: give finite weights"):
        spectra.gradient_from_losses(loss, scale * w, evaluations=10)
    for method in (spectra.product_from_losses, spectra.gradient_and_product_from_losses):
        with pytest.raises(SpectraError, match="`vector`: give finite numbers"):
            method(loss, scale * w, w, evaluations=10)
    with pytest.raises(SpectraError, match=r"`vector`"):
        spectra.RankTwo(scale * w, w)


def test_a_second_order_part_of_another_type():
    w = torch.ones(4, dtype=torch.float64)
    part = spectra.RankTwo(w.float(), w.float())
    with pytest.raises(
        SpectraError, match=r"`second_order` of torch.float32: give it in torch.float64, like the weights"
    ):
        spectra.gradient_from_losses(lambda x: float(x @ x), w, evaluations=9, form="forward", second_order=part)
    with pytest.raises(SpectraError, match=r"`image` of torch.float64"):
        spectra.RankTwo(w.float(), w)
    with pytest.raises(SpectraError, match=r"`vector` of torch.int64: give a floating-point tensor"):
        spectra.RankTwo(w.long(), w.long())
