"""Inverse products against dense algebra: CG, MINRES, known eigenvectors, negative curvature, the damping needed."""

import math

import numpy as np
import pytest
import torch
from helpers import CPU, Widths, matrix, not_finite, seeded, uniform, with_spectrum
from pretend_device import OnDevice, PretendDevice, inside
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, cg, minres

import spectra
from spectra.errors import SpectraError
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.results import Eigenpairs, Solution
from spectra.krylov.solve import METHODS, solve
from spectra.operator import Counting, Deflated

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def drawn(n: int, *columns: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, *columns, generator=seeded(seed), dtype=torch.float64)


def dense(a: torch.Tensor, b: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """The solution by LU decomposition, which shares no code with ours."""
    return torch.as_tensor(np.linalg.solve(a.numpy() + damping * np.eye(len(a)), b.numpy()))


def directions_of(found: Solution) -> torch.Tensor:
    assert found.directions is not None
    return found.directions


DEFINITE = ["ghosts", "strakos", "flat", "identity"]
INDEFINITE = ["wilkinson", "multiple top", "opposite", "one by one"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DEFINITE)
def test_definite_systems_against_dense_algebra(name, method, dtype, device):
    """The error is within |r| / lowest eigenvalue, and the residual is the true one."""
    given = matrix(name)
    damping = 0.03 * given.size
    b = drawn(given.n).to(dtype)
    found = solve(
        given.matrix.to(device, dtype),
        b.to(device),
        damping=damping,
        method=method,
        lowest=given.spectrum[0].item(),
        tolerance=1e-5 if dtype == torch.float32 else 1e-11,
    )
    x, b = found.x.to(CPU, torch.float64), b.double()
    rounding = 100 * torch.finfo(dtype).eps * (given.size + damping) * x.norm().item()
    assert found.converged
    assert found.methods == [method]
    assert found.note == ""
    assert not found.negative_curvature
    assert math.isnan(found.least_damping)
    residual = (b - given.matrix @ x - damping * x).norm().item()
    assert found.residuals.item() == pytest.approx(residual, abs=rounding)
    assert found.relative_residuals.item() == pytest.approx(found.residuals.item() / b.norm().item())
    error = (x - dense(given.matrix, b, damping)).norm().item()
    assert error <= found.error_bounds.item() + rounding / (given.spectrum[0].item() + damping)


@pytest.mark.parametrize("name", INDEFINITE)
def test_indefinite_systems_against_dense_algebra(name):
    given = matrix(name)
    b = drawn(given.n, 2)
    for damping in (0.0, -0.1 * given.size):
        for method in ("minres", None):
            found = solve(given.matrix, b, damping=damping, method=method, tolerance=1e-10)
            assert found.converged
            nearest = (given.spectrum + damping).abs().min().item()
            allowed = 1.1 * found.residuals.max().item() / nearest + 1e-9
            torch.testing.assert_close(found.x, dense(given.matrix, b, damping), rtol=0, atol=allowed)


def test_no_more_products_than_scipy():
    """One more, by which the residual is measured."""
    given = matrix("ghosts")
    b = drawn(given.n)
    for method, other in {"cg": cg, "minres": minres}.items():
        counted = Counting(given.matrix)
        multiply = lambda v, counted=counted: (counted @ torch.as_tensor(v.copy())).numpy()  # noqa: E731
        operator = LinearOperator(shape=(given.n, given.n), dtype=np.float64, matvec=multiply)  # pyright: ignore[reportCallIssue]
        x, _ = other(operator, b.numpy(), rtol=1e-6)
        reached = (b - given.matrix @ torch.as_tensor(x)).norm() / b.norm()
        found = solve(given.matrix, b, method=method, tolerance=reached.item())
        assert found.converged
        assert found.products <= counted.products + 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[3.0], [1.0, 7.0], [0.5, 2.0, 9.0, 30.0]], ids=len)
def test_ends_after_as_many_steps_as_there_are_distinct_eigenvalues(values, method):
    """Exactly so: one product a step, and one for the residual."""
    a = with_spectrum(np.resize(values, 40))
    found = solve(a, drawn(40), method=method, tolerance=1e-10)
    assert found.converged
    assert found.products == len(values) + 1


@pytest.mark.parametrize("method", METHODS)
def test_singular_systems(method):
    """A consistent one has a solution in the range; of another, what lies outside is left over."""
    given = matrix("low rank")
    wanted = given.matrix @ drawn(given.n)
    b = given.matrix @ wanted
    found = solve(given.matrix, b, method=method, tolerance=1e-11)
    assert found.converged
    torch.testing.assert_close(found.x, wanted, rtol=0, atol=1e-8)
    vectors = torch.linalg.eigh(given.matrix).eigenvectors
    outside = drawn(given.n) @ vectors[:, :370]
    found = solve(given.matrix, b + vectors[:, :370] @ outside, method=method, max_products=400)
    assert not found.converged
    assert not found.negative_curvature
    assert "singular" in found.note
    if method == "minres":  # whose residual is the least there is
        assert found.residuals.item() == pytest.approx(outside.norm().item(), rel=1e-6)
        assert found.products < 100


def test_rounding_is_worked_off_where_it_can_be():
    """Residuals drift from what CG has updated; passes that begin with true ones reach what the dtype allows."""
    a = with_spectrum(np.logspace(-6, 0, 60))
    b = a @ drawn(60)
    for method in METHODS:
        found = solve(a, b, method=method, tolerance=1e-13)
        assert found.converged
        assert (b - a @ found.x).norm() <= 2e-13 * b.norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_out_of_reach_is_told(method):
    a = with_spectrum(np.logspace(-6, 0, 60)).float()
    b = drawn(60).float()
    found = solve(a, b, method=method, tolerance=1e-9)
    assert not found.converged
    assert found.relative_residuals.item() > 1e-9
    assert "tolerance" in found.note
    rounding = 1e-6 * found.x.double().norm().item()
    assert found.residuals.item() == pytest.approx((b - a.double() @ found.x.double()).norm().item(), abs=rounding)


# Known eigenvectors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["LM", "SA"])
def test_known_eigenvectors_leave_the_count(method, which, device):
    """Of seven distinct eigenvalues four are known: three steps, the start, the level, and the residual."""
    a = with_spectrum(np.concatenate([[50, 40, 30, 20], np.resize([1.0, 2.0, 3.0], 36)]) * (1 if which == "LM" else -1))
    if which == "SA":
        a = a + 60 * torch.eye(40, dtype=torch.float64)  # 10, 20, 30, 40 known; 57, 58, 59 left
    pairs = eigenpairs(a.to(device), 4, which=which, tolerance=1e-12)
    b = drawn(40)
    found = solve(a.to(device), b.to(device), method=method, known=pairs, tolerance=1e-9)
    assert found.converged
    assert found.products == 3 + 3
    torch.testing.assert_close(found.x.cpu(), dense(a, b), rtol=0, atol=1e-9)
    alone = solve(a, b, method=method, tolerance=1e-9)
    assert alone.products == 7 + 1


@pytest.mark.parametrize("method", METHODS)
def test_eigenvectors_that_are_not_quite_or_not_at_all_those_of_the_matrix(method):
    """The solution is that of the matrix all the same."""
    given = matrix("decay")
    b, damping = drawn(given.n, 3), 0.01
    near = eigenpairs(given.matrix, 8, tolerance=1e-2)
    other = eigenpairs(with_spectrum(uniform(given.n, 1, 2), seed=3), 8)
    exact = dense(given.matrix, b, damping)
    alone = solve(given.matrix, b, damping=damping, method=method, tolerance=1e-10)
    for pairs in (near, other):
        found = solve(given.matrix, b, damping=damping, method=method, known=pairs, tolerance=1e-10)
        assert found.converged
        torch.testing.assert_close(found.x, exact, rtol=0, atol=1e-7)
        assert pairs is other or found.products < 0.8 * alone.products


def test_all_eigenvectors_known():
    values, vectors = torch.linalg.eigh(with_spectrum(uniform(20, 1, 2)))
    zero = torch.zeros(20, dtype=torch.float64)
    pairs = Eigenpairs(values, vectors.T.contiguous(), zero, zero, 0, True)
    a = vectors @ torch.diag(values) @ vectors.T
    found = solve((a + a.T) / 2, drawn(20, 2), known=pairs, tolerance=1e-9)
    assert found.converged
    assert found.products == 4  # a residual each before and after
    torch.testing.assert_close(found.x, dense(a, drawn(20, 2)), rtol=0, atol=1e-9)


def test_bounds_follow_from_the_lowest_eigenvalue():
    given = matrix("strakos")
    b = drawn(given.n)
    found = solve(given.matrix, b, lowest=spectra.damping_for(given.matrix).lower_bound, tolerance=1e-4)
    error = (found.x - dense(given.matrix, b)).norm().item()
    assert error <= found.error_bounds.item() <= 1.1 * found.residuals.item() / given.spectrum[0].item()
    assert math.isnan(solve(given.matrix, b).error_bounds.item())
    assert math.isnan(solve(given.matrix, b, lowest=-1.0, damping=1.0).error_bounds.item())


# Negative curvature


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_negative_curvature_ends_cg(dtype):
    given = matrix("network")
    a = given.matrix.to(dtype)
    found = solve(a, drawn(given.n).to(dtype), method="cg")
    assert not found.converged
    assert found.negative_curvature
    d = directions_of(found).double()
    curvature = (d @ given.matrix @ d).item()
    assert d.norm().item() == pytest.approx(1, rel=1e-5)
    assert curvature < 0
    assert found.curvatures.item() == pytest.approx(curvature, rel=1e-3)
    assert found.least_damping == pytest.approx(-curvature, rel=1e-3)
    assert f"`damping` above {found.least_damping:.6g}" in found.note
    damped = solve(a, drawn(given.n).to(dtype), method="cg", damping=0.5 * found.least_damping)
    if damped.negative_curvature:  # of A + damping I, where what A needs is told
        assert damped.least_damping > 0.5 * found.least_damping
        d = directions_of(damped).double()
        assert damped.least_damping == pytest.approx(-(d @ given.matrix @ d).item(), rel=1e-3)


def test_the_step_of_a_truncated_newton_method():
    """At negative curvature x is the last iterate (Steihaug 1983): it is zero in the first step, and goes downhill."""
    g = drawn(30)
    first = solve(-torch.eye(30, dtype=torch.float64), -g, method="cg")
    assert first.products == 2
    assert not first.x.any()
    torch.testing.assert_close(directions_of(first), -g / g.norm())
    given = matrix("network")
    g = drawn(given.n)
    step = solve(given.matrix, -g, method="cg").x
    assert g @ step + step @ given.matrix @ step / 2 < 0


def test_without_a_method_minres_takes_over():
    given = matrix("opposite")
    b = torch.stack([drawn(given.n), torch.zeros(given.n, dtype=torch.float64)], dim=1)
    found = solve(given.matrix, b, tolerance=1e-10)
    assert found.methods == ["minres", "cg"]
    assert found.converged
    assert found.negative_curvature
    assert found.note == ""
    assert not directions_of(found)[:, 1].any()
    assert math.isnan(found.curvatures[1].item())
    torch.testing.assert_close(found.x, dense(given.matrix, b), rtol=0, atol=1e-7)


def test_a_known_negative_eigenvalue_is_told_of():
    """CG would not meet it, since the system is solved along its eigenvector beforehand."""
    a = with_spectrum([-2.0, *np.linspace(1, 3, 29)])
    pairs = eigenpairs(a, 1, which="SA", tolerance=1e-10)
    found = solve(a, drawn(30), method="cg", known=pairs)
    assert not found.converged
    assert found.least_damping == pytest.approx(2)
    torch.testing.assert_close(directions_of(found) @ a, -2 * directions_of(found), rtol=0, atol=1e-8)
    assert solve(a, drawn(30), known=pairs).methods == ["minres"]
    assert solve(a, drawn(30), method="cg", known=pairs, damping=2.5).converged


def test_a_direction_met_beside_known_eigenvectors_is_one_of_the_matrix():
    """Also where those are not quite eigenvectors, so that it has a part along them."""
    given = matrix("network")
    pairs = eigenpairs(given.matrix + 0.5 * with_spectrum(uniform(given.n), seed=4), 6, which="LA")
    found = solve(given.matrix, drawn(given.n), method="cg", known=pairs)
    d = directions_of(found)
    assert d.norm().item() == pytest.approx(1)
    assert (pairs.vectors @ d).norm() > 1e-3
    assert found.curvatures.item() == pytest.approx((d @ given.matrix @ d).item())


# Invariances


@pytest.mark.parametrize("of_b", [1e-18, 1e18])
@pytest.mark.parametrize("of_a", [1e-12, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_scales_change_nothing(method, of_a, of_b):
    given = matrix("strakos")
    a, b = given.matrix.float(), drawn(given.n).float()
    one = solve(a, b, damping=1.0, method=method)
    other = solve(a * of_a, b * of_b, damping=of_a, method=method)
    assert other.products == pytest.approx(one.products, abs=2)
    assert other.converged
    torch.testing.assert_close(other.x.double() * (of_a / of_b), one.x.double(), rtol=1e-4, atol=1e-5)
    assert other.residuals.item() <= 1e-5 * of_b * b.norm().item()


@pytest.mark.parametrize("known_pairs", [0, 3])
@pytest.mark.parametrize("method", [*METHODS, None])
def test_columns_are_single_solves(method, known_pairs):
    """They share products, until each has converged: no more are spent than by as many calls."""
    given = matrix("network" if method != "cg" else "ghosts")
    operator, damping = Widths(given.matrix), 2.0
    pairs = eigenpairs(given.matrix, known_pairs) if known_pairs else None
    b = drawn(given.n, 20)
    b[:, 3] = 0
    b[:, 4] = given.matrix @ b[:, 5]
    found = solve(operator, b, damping=damping, method=method, known=pairs, tolerance=1e-9)
    assert found.x.shape == b.shape
    total = 0
    for j in range(20):
        one = solve(given.matrix, b[:, j], damping=damping, method=method, known=pairs, tolerance=1e-9)
        torch.testing.assert_close(found.x[:, j], one.x, rtol=0, atol=1e-7)
        total += one.products
    assert found.products == sum(operator.widths) <= total + 20  # by rounding, one a column
    assert max(operator.widths) == 16
    assert len(operator.widths) < total / 8


def test_shifts_are_those_of_the_matrix():
    """A + damping I, asked for either way; and wrappers are matrices like others."""
    given = matrix("wilkinson")
    eye, b = torch.eye(given.n, dtype=torch.float64), drawn(given.n)
    options = {"method": "minres", "tolerance": 1e-12}
    one, other = solve(given.matrix, b, damping=-3.3, **options), solve(given.matrix - 3.3 * eye, b, **options)
    torch.testing.assert_close(one.x, other.x)
    u = torch.linalg.eigh(given.matrix).eigenvectors[:, -3:].T.contiguous()
    projected = Deflated(given.matrix, u)
    inside = projected.project(b)
    found = solve(projected, inside, **options)
    torch.testing.assert_close(given.matrix @ found.x, inside, rtol=0, atol=1e-9)


def test_matrices_and_right_hand_sides_of_other_packages():
    given = matrix("strakos")
    b = drawn(given.n, 2)
    one = solve(given.matrix, b, tolerance=1e-9)
    for other in (given.matrix.numpy(), csr_array(given.matrix.numpy()), (given.n, lambda v: given.matrix.numpy() @ v)):
        torch.testing.assert_close(solve(other, b.numpy(), tolerance=1e-9).x, one.x, rtol=0, atol=1e-7)
    assert spectra.damping_for(given.matrix.numpy()).lowest == pytest.approx(0.1)


@pytest.mark.parametrize("basis", ["device", "host"])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_device(method, basis):
    """Its vectors meet those of the host in copies alone; known eigenvectors may lie on either."""
    given = matrix("network")
    b, options = drawn(given.n, 3), {"damping": 2.0, "method": method, "tolerance": 1e-9}
    expected = solve(given.matrix, b, known=eigenpairs(given.matrix, 3), **options)
    with PretendDevice():
        operator = OnDevice(given.matrix)
        pairs = eigenpairs(operator, 3, basis=basis)
        found = solve(operator, b, known=pairs, **options)
        torch.testing.assert_close(inside(found.x), expected.x, rtol=0, atol=1e-7)
        stopped = solve(operator, b[:, 0], method="cg")
        assert stopped.negative_curvature
    assert found.converged
    assert found.residuals.is_cpu


# Limits, refusals


@pytest.mark.parametrize("method", [*METHODS, None])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 40])
def test_products_are_no_more_than_allowed(method, most):
    given = matrix("ghosts")
    counted = Counting(given.matrix)
    seen = []
    pairs = eigenpairs(given.matrix, 2)
    for eigenvectors in (None, pairs):
        for columns in ((), (4,)):
            counted.products = 0
            found = solve(
                counted,
                drawn(given.n, *columns),
                method=method,
                known=eigenvectors,
                max_products=most,
                progress=lambda **numbers: seen.append(numbers),
            )
            assert counted.products == found.products <= most
            assert not found.converged
            left = drawn(given.n, *columns) - given.matrix @ found.x
            torch.testing.assert_close(found.residuals, torch.atleast_1d(left.norm(dim=0)))
    assert all({"products", "converged", "wanted"} == set(numbers) for numbers in seen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("good", [0, 3])
def test_products_that_are_not_finite_end_it(method, good):
    found = solve(not_finite(60, good), drawn(60), method=method)
    assert not found.converged
    assert found.products <= good + 3


def test_wrong_arguments_are_refused():
    a, b = with_spectrum(uniform(6)), drawn(6)
    pairs = eigenpairs(with_spectrum(uniform(7)), 2)
    wrong = {
        "b": [b[:5], b.float(), b * math.nan, b.tolist(), b[:, None, None], torch.empty(6, 0, dtype=torch.float64)],
        "damping": [math.nan, math.inf, "1"],
        "method": ["gmres", 3],
        "tolerance": [-1.0, math.nan],
        "known": [pairs, 3],
        "lowest": [math.nan, "0"],
        "max_products": [0, 1.5],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(SpectraError, match=f"`{name}`"):
                solve(a, **{"b": b, name: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpectraError, match="`operator`"):
        solve(drawn(6, 6), b)


# The damping that a matrix needs


@pytest.mark.parametrize("name", ["network", "multiple top", "opposite", "wilkinson", "strakos", "one by one", "zero"])
def test_damping_for(name):
    """What is found makes the matrix positive definite, of the condition number asked for; little less would not do."""
    given = matrix(name)
    found = spectra.damping_for(given.matrix, condition=50)
    lowest, highest = given.spectrum[0].item(), given.spectrum[-1].item()
    assert found.complete or name == "multiple top"  # whose highest eigenvalues are the multiple ones
    assert found.converged
    assert abs(found.lowest - lowest) <= found.error
    assert found.necessary == pytest.approx(max(0.0, -lowest), abs=2 * found.error)
    assert found.necessary >= -lowest
    assert found.lower_bound <= lowest + 1e-12 * given.size
    if name != "zero":
        damped = given.spectrum + found.value
        assert damped[-1] <= 50 * (1 + 1e-9) * damped[0]
        needed = max(0.0, (highest - 50 * lowest) / 49)
        assert found.value == pytest.approx(needed, rel=1e-3, abs=3 * found.error)
    scaled = spectra.damping_for(1e-9 * given.matrix, condition=50)
    assert scaled.value == pytest.approx(1e-9 * found.value, rel=1e-6)


@pytest.mark.parametrize(("good", "most"), [(0, None), (5, None), (100, 1)])
def test_no_damping_is_told_where_the_ends_are_not_found(good, most):
    found = spectra.damping_for(not_finite(60, good), max_products=most)
    assert math.isnan(found.value)
    assert math.isnan(found.necessary)
    assert math.isnan(found.lower_bound)
    assert not found.converged


def test_damping_that_suffices_lets_cg_through():
    given = matrix("network")
    damping = spectra.damping_for(given.matrix, condition=100)
    found = solve(given.matrix, drawn(given.n, 4), method="cg", damping=damping.value)
    assert found.converged
    most = math.ceil(math.sqrt(100) * math.log(2 * math.sqrt(100) / 1e-5) / 2)  # of steps, for |r| (Saad 2003, 6.11.3)
    assert found.products <= 4 * (most + 1)
    with pytest.raises(SpectraError, match="`condition`"):
        spectra.damping_for(given.matrix, condition=1.0)


def test_a_network_by_its_products():
    """The inverse of a damped GGN in columns, against the dense one."""
    from networks import BY_NAME

    problem = next(iter(BY_NAME.values())).problem()
    operator = spectra.Curvature(problem, "ggn")
    n = operator.shape[0]
    eye = torch.eye(n, dtype=operator.dtype, device=operator.device)
    whole = operator @ eye
    found = solve(operator, eye, damping=0.1, lowest=0.0, tolerance=1e-9)
    assert found.converged
    error = (found.x - torch.linalg.inv(whole + 0.1 * eye)).norm(dim=0).cpu()
    assert (error <= found.error_bounds + 1e-12).all()


def test_the_result_on_one_line():
    found = solve(matrix("network").matrix, drawn(200, 2), method="cg")
    assert "converged=False" in repr(found)
    assert "\n" not in repr(found)


def test_damping_of_a_multiple_of_the_identity():
    """Its condition number is 1 with any damping above what the eigenvalue demands, and with that itself none."""
    for value in (-2.0, 0.0):
        for n in (1, 5):
            assert value + spectra.damping_for(value * torch.eye(n, dtype=torch.float64)).value > 0
    with pytest.raises(SpectraError, match="`condition` 1: expected a finite number > 1"):
        spectra.damping_for(torch.eye(2), condition=1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_right_hand_sides_whose_squares_are_no_numbers(scale):
    b = torch.stack([drawn(6), scale * drawn(6)], 1)
    with pytest.raises(SpectraError, match="`b`: the norm of a right-hand side is not between 1e-100 and 1e"):
        solve(2 * torch.eye(6, dtype=torch.float64), b)


def test_products_that_are_not_finite_are_named():
    found = solve((6, lambda v: v * np.nan), drawn(6))
    assert not found.converged
    assert found.note == "a product is not finite; check what `operator` returns"
