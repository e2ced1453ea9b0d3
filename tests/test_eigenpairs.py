"""Eigenpairs by every method against known spectra; what is claimed of a pair must hold."""

import math

import numpy as np
import pytest
import torch
from helpers import (
    SOFTMAX,
    TABLE,
    Products,
    expected,
    known,
    matrix,
    not_finite,
    seeded,
    strakos,
    uniform,
    with_spectrum,
)

from spectra.errors import SpectraError
from spectra.krylov.bounds import complement_bounds, excludes_beyond, kato_temple
from spectra.krylov.dense import dense_eigenpairs, dense_matrix
from spectra.krylov.eigenpairs import LARGEST_BASIS, basis_of, eigenpairs, eigenpairs_unchecked
from spectra.krylov.eigensolver import vectors_held
from spectra.krylov.lanczos import begin, lanczos, random_start
from spectra.krylov.power import power_iteration
from spectra.krylov.results import select
from spectra.operator import Counting

WHICH = ["LM", "LA", "SA", "BE"]
METHODS = [eigenpairs, power_iteration, dense_eigenpairs]


def true_residuals(operator, pairs):
    vectors = pairs.vectors.double()
    return torch.linalg.vector_norm((operator.double() @ vectors.T).T - pairs.values[:, None] * vectors, dim=1)


def allowed(values, size, tolerance, dtype):
    """The contract's right side of `converged`."""
    eps = torch.finfo(dtype).eps
    return (tolerance * values.abs().clamp(min=eps ** (2 / 3) * size)).clamp(min=10 * eps * size)


def attainable(values, size, tolerance, dtype):
    """Whether rounding, some epsilon |A|, is below what converged asks of every value."""
    return (allowed(values, size, tolerance, dtype) > 30 * torch.finfo(dtype).eps * size).all()


def assert_values(values, spectrum, k, which, atol):
    """Those that `which` names, in order; LM may put eigenvalues of one magnitude in any order."""
    want = expected(spectrum, k, which)
    if which == "LM":
        values, want = values.abs(), want.abs()  # the true residuals tell the sign
    torch.testing.assert_close(values, want, rtol=0, atol=atol)


def assert_honest(pairs, operator, given, k, which, tolerance):
    """Everything that a result claims of itself."""
    dtype = operator.dtype
    eps = torch.finfo(dtype).eps
    assert pairs.values.shape == pairs.residuals.shape == pairs.error_estimates.shape == (k,)
    assert pairs.vectors.shape == (k, given.n)
    assert pairs.values.dtype == pairs.residuals.dtype == torch.float64
    assert pairs.vectors.dtype == dtype
    overlaps = pairs.vectors.double() @ pairs.vectors.double().T
    assert (overlaps - torch.eye(k)).abs().max() <= max(10 * tolerance, 100 * eps)
    true = true_residuals(operator, pairs)
    assert (true <= pairs.residuals + 10 * eps * given.size).all()
    assert (pairs.residuals <= 1.5 * true + 100 * eps * given.size).all()
    nearest = (given.spectrum[None, :] - pairs.values[:, None]).abs().min(dim=1).values
    assert (nearest <= pairs.residuals + 10 * eps * given.size).all()
    assert (pairs.error_estimates <= pairs.residuals).all()
    limit = allowed(pairs.values, given.size * (1 + 1e-6), tolerance, dtype)
    assert not pairs.converged or (pairs.residuals <= limit * (1 + 1e-6)).all()


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", TABLE)
def test_lanczos_finds_the_known_spectrum(name, which):
    given = matrix(name)
    for k in {1, min(7, given.n)} if which == "LM" else {min(6, given.n)}:
        operator = Counting(given.matrix)
        pairs = eigenpairs(operator, k, which=which, tolerance=1e-8, generator=seeded(k))
        assert pairs.products == operator.products
        assert_honest(pairs, given.matrix, given, k, which, 1e-8)
        assert_values(pairs.values, given.spectrum, k, which, 1e-8 * given.size)
        assert pairs.converged or not attainable(expected(given.spectrum, k, which), given.size, 1e-8, torch.float64)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", TABLE)
def test_lanczos_in_float32(name, which):
    given = matrix(name)
    k = min(5, given.n)
    operator = given.matrix.float()
    pairs = eigenpairs(operator, k, which=which, tolerance=1e-3, generator=seeded(3))
    assert_honest(pairs, operator, given, k, which, 1e-3)
    assert_values(pairs.values, given.spectrum, k, which, 2e-3 * given.size)
    assert pairs.converged or not attainable(expected(given.spectrum, k, which), given.size, 1e-3, torch.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["network", "multiple top", "zero"])
def test_scaling_the_matrix_scales_values_and_nothing_else(name, method):
    """By powers of two, so that not even rounding differs."""
    given = matrix(name)
    one = method(given.matrix, 5, tolerance=1e-5, generator=seeded())
    for scale in (2.0**-20, 2.0**20):
        other = method(given.matrix * scale, 5, tolerance=1e-5, generator=seeded())
        assert other.products == one.products
        assert other.converged == one.converged
        torch.testing.assert_close(other.values, one.values * scale, rtol=1e-13, atol=1e-15 * scale * given.size)
        torch.testing.assert_close(other.residuals, one.residuals * scale, rtol=1e-3, atol=1e-14 * scale * given.size)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_small_and_large_matrices_in_float32(scale):
    given = matrix("network") * scale
    pairs = eigenpairs(given.matrix.float(), 5, generator=seeded())
    assert pairs.converged
    assert_honest(pairs, given.matrix.float(), given, 5, "LM", 1e-3)
    assert_values(pairs.values, given.spectrum, 5, "LM", 1e-3 * given.size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_ghosts_in_two_hundred_steps(dtype):
    given = matrix("ghosts")
    operator = given.matrix.to(dtype)
    values = lanczos(operator, random_start(operator, seeded()), 200).ritz()[0]
    assert (values > 1.5).sum() == 3
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(values[-3:], given.spectrum[-3:], rtol=0, atol=100 * eps * given.size)
    assert values.diff().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ghosts_asked_for_more_than_outliers(dtype):
    given = matrix("ghosts")
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    pairs = eigenpairs(given.matrix.to(dtype), 12, tolerance=tolerance, generator=seeded())
    assert pairs.converged
    assert_values(pairs.values, given.spectrum, 12, "LM", tolerance * given.size)
    assert (pairs.values > 1.5).sum() == 3


@pytest.mark.parametrize(
    ("name", "which"), [("ghosts", "LM"), ("network", "BE"), ("softmax", "LA"), ("multiple top", "BE"), ("flat", "SA")]
)
def test_thick_restarts_change_no_value(name, which):
    given = matrix(name)
    roomy = eigenpairs(given.matrix, 6, which=which, tolerance=1e-5, generator=seeded())
    operator = Counting(given.matrix)
    tight = eigenpairs(operator, 6, which=which, tolerance=1e-5, generator=seeded(), largest_basis=1)
    assert_honest(tight, given.matrix, given, 6, which, 1e-5)
    assert tight.converged == roomy.converged
    assert tight.products == operator.products
    assert_values(tight.values, given.spectrum, 6, which, 1e-5 * given.size)


def test_restarts_cost_little():
    given = matrix("decay")
    roomy = eigenpairs(given.matrix, 6, tolerance=1e-6, generator=seeded())
    tight = eigenpairs(given.matrix, 6, tolerance=1e-6, generator=seeded(), largest_basis=1)
    assert tight.products <= 1.3 * roomy.products


COPIES = {
    "softmax": (SOFTMAX, 12, "LM"),
    "two nines": (np.repeat([5.0, 3, 2, 0], [9, 9, 9, 60]), 12, "LM"),
    "copies at both ends": (np.concatenate([np.full(4, 8.0), np.full(3, -6.0), uniform(80, -2, 2)]), 7, "BE"),
    "copies at the bottom": (np.concatenate([np.full(6, 1.0), uniform(70, 2, 9)]), 6, "SA"),
    "deficient": (np.concatenate([uniform(20, 0.5, 3), np.zeros(60)]), 5, "SA"),
    "small beside large": (np.repeat([100.0, 1, 0.9, 0.2], [1, 4, 5, 60]), 7, "LA"),
    "flat beneath": (np.concatenate([np.full(2, 5.0), np.ones(60)]), 5, "LM"),
    "few and positive": (np.repeat([0.5, 0.72, 1.5, 2, 2.5], [3, 16, 3, 4, 3]), 13, "BE"),
    "few and mixed": (np.repeat([-2, -1, 0, 0.28, 5], [9, 9, 7, 16, 2]), 2, "LM"),
    "identity": (np.ones(25), 4, "LA"),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", COPIES)
def test_every_copy_of_a_multiple_eigenvalue_is_found(case, dtype):
    spectrum, k, which = COPIES[case]
    given = known(spectrum)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3
    for seed in range(6):
        operator = given.matrix.to(dtype)
        basis = (300, 1)[seed % 2]
        pairs = eigenpairs(
            operator, k, which=which, tolerance=tolerance, generator=seeded(seed), largest_basis=basis, max_products=400
        )
        assert_values(pairs.values, given.spectrum, k, which, tolerance * given.size)
        assert_honest(pairs, operator, given, k, which, tolerance)
        assert pairs.products <= 400


def test_copies_that_rounding_hides_among_pending_directions_are_found():
    """Few distinct eigenvalues: the direction after the last real one is rounding, and leans towards a copy."""
    generator = np.random.default_rng(1)
    for seed in range(60):
        n, distinct = int(generator.integers(2, 50)), int(generator.integers(1, 7))
        spectrum = generator.choice(generator.choice([-3, -2, -1, 0, 0.1, 0.5, 1.5, 2, 5, 50], distinct), n)
        k, which = int(generator.integers(1, min(n, 13) + 1)), str(generator.choice(WHICH))
        dtype, tolerance = ((torch.float64, 1e-8), (torch.float32, 1e-3))[seed % 2]
        given = known(spectrum)
        pairs = eigenpairs(given.matrix.to(dtype), k, which=which, tolerance=tolerance, generator=seeded(seed))
        assert_values(pairs.values, given.spectrum, k, which, tolerance * given.size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["network", "softmax", "identity", "one by one"])
def test_as_many_as_there_are(name, method):
    given = matrix(name)
    given = given if given.n <= 30 else known(given.spectrum[-30:])
    tolerance = 1e-2 if method is power_iteration else 1e-8
    pairs = method(given.matrix, given.n, tolerance=tolerance, generator=seeded(), max_products=30_000)
    assert_values(pairs.values, given.spectrum, given.n, "LM", tolerance * given.size)
    assert_honest(pairs, given.matrix, given, given.n, "LM", tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_more_than_there_are_is_refused(method):
    with pytest.raises(SpectraError, match="`k` 31: the matrix has only 30 rows"):
        method(matrix("identity").matrix, 31, generator=seeded())


@pytest.mark.parametrize("which", WHICH)
def test_one_row(which):
    operator = Counting(matrix("one by one").matrix)
    pairs = eigenpairs(operator, 1, which=which, tolerance=1e-8, generator=seeded())
    assert pairs.values.tolist() == [-2.5]
    assert pairs.converged
    assert pairs.complete
    assert pairs.products == operator.products <= 3


@pytest.mark.parametrize("largest_basis", [300, 1])
@pytest.mark.parametrize(("name", "k"), [("softmax", 12), ("multiple top", 5)])
def test_the_budget_is_never_exceeded(name, k, largest_basis):
    given = matrix(name)
    full = eigenpairs(
        given.matrix, k, tolerance=1e-8, generator=seeded(1), largest_basis=largest_basis, max_products=10_000
    )
    assert full.converged
    for budget in [*range(1, 9), *range(9, full.products + 30, 11)]:
        operator = Counting(given.matrix)
        pairs = eigenpairs(
            operator, k, tolerance=1e-8, generator=seeded(1), max_products=budget, largest_basis=largest_basis
        )
        assert pairs.products == operator.products <= budget
        assert len(pairs.values) <= k
        assert len(pairs.values) == k or not pairs.converged
        if len(pairs.values) == k:
            assert_honest(pairs, given.matrix, given, k, "LM", 1e-8)
    assert_values(pairs.values, given.spectrum, k, "LM", 1e-8 * given.size)
    nothing = eigenpairs_unchecked(given.matrix, k, "LM", 1e-8, seeded(1), max_products=0, largest_basis=largest_basis)
    assert (len(nothing.values), nothing.products, nothing.converged) == (0, 0, False)


def test_a_search_cut_short_claims_nothing():
    given = matrix("ghosts")
    full = eigenpairs(given.matrix, 3, tolerance=1e-6, generator=seeded())
    assert full.complete
    for missing in 1, 2:
        short = eigenpairs(given.matrix, 3, tolerance=1e-6, generator=seeded(), max_products=full.products - missing)
        assert short.converged
        assert not short.complete


def test_the_default_budget_ends_what_never_converges():
    spectrum = np.cos(np.linspace(0, np.pi, 400))
    pairs = eigenpairs(with_spectrum(spectrum), 3, tolerance=1e-18, generator=seeded(), max_products=450)
    assert not pairs.converged
    assert pairs.products <= 450


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("n", "good"), [(60, 0), (60, 1), (60, 25), (1, 0), (3, 2)])
def test_products_that_are_not_finite_end_it(method, bad, n, good):
    """And soon: no more than a few products are spent on a matrix that cannot be known."""
    operator = Counting(not_finite(n, good, bad))
    k = min(5, n)
    pairs = method(operator, k, tolerance=1e-12, generator=seeded())
    assert operator.products <= good + 5 or method is dense_eigenpairs
    assert operator.products == pairs.products
    if method is not dense_eigenpairs or good == 0:
        assert not pairs.converged
        assert pairs.values.shape == (k,)
        assert pairs.vectors.shape == (k, n)
        assert pairs.values.isnan().all()
        assert pairs.residuals.isnan().all()


@pytest.mark.parametrize("name", ["ghosts", "network", "low rank", "decay"])
def test_power_iteration_agrees_with_lanczos(name):
    given = matrix(name)
    operator = Counting(given.matrix)
    pairs = power_iteration(operator, 4, tolerance=1e-4, generator=seeded())
    assert pairs.converged
    assert pairs.products == operator.products
    assert_honest(pairs, given.matrix, given, 4, "LM", 1e-4)
    reference = eigenpairs(given.matrix, 4, tolerance=1e-8, generator=seeded())
    torch.testing.assert_close(pairs.values, reference.values, rtol=0, atol=1e-4 * given.size)


def test_power_iteration_finds_copies():
    given = matrix("softmax")
    pairs = power_iteration(given.matrix, 9, tolerance=1e-3, generator=seeded())
    assert pairs.converged
    assert_values(pairs.values, given.spectrum, 9, "LM", 1e-3)


def test_power_iteration_admits_that_opposite_eigenvalues_defeat_it():
    given = matrix("opposite")
    pairs = power_iteration(given.matrix, 1, generator=seeded(), max_products=300)
    assert not pairs.converged
    assert pairs.products == 300
    assert pairs.residuals[0] > 1
    assert_honest(pairs, given.matrix, given, 1, "LM", 1e-3)
    assert eigenpairs(given.matrix, 2, generator=seeded()).converged


def test_power_iteration_finds_nothing_but_magnitudes():
    with pytest.raises(SpectraError, match="`which` SA"):
        power_iteration(matrix("network").matrix, 2, which="SA", generator=seeded())


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_power_iteration_obeys_its_budget(budget):
    pairs = power_iteration(matrix("flat").matrix, 3, generator=seeded(), max_products=budget)
    assert pairs.products == budget
    assert not pairs.converged


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dense(name, dtype):
    given = matrix(name)
    operator = Counting(given.matrix.to(dtype))
    k = min(given.n, 9)
    for which in WHICH:
        pairs = dense_eigenpairs(operator, k, which=which)
        assert pairs.converged
        assert pairs.complete
        assert pairs.products == given.n
        assert_values(pairs.values, given.spectrum, k, which, 30 * torch.finfo(dtype).eps * given.size)
    assert operator.products == 4 * given.n
    torch.testing.assert_close(dense_matrix(operator), given.matrix.to(dtype).double(), rtol=0, atol=0)


def test_dense_refuses_what_it_cannot_hold():
    with pytest.raises(
        SpectraError,
        match="`max_products`: `method` dense needs 30 products, one per row, and 29 are left; raise `max_products`",
    ):
        dense_eigenpairs(matrix("identity").matrix, 3, max_products=29)
    with pytest.raises(SpectraError, match="20,001 rows"):
        dense_eigenpairs(Products(torch.clone, 20_001), 3)


def test_copies_that_lie_half_inside_the_basis_are_found():
    """Restarts in float32 leave one that a search beside the basis does not see, but one beside the pairs does."""
    rest = np.random.default_rng(505).uniform(-0.3, 0.3, 43)
    spectrum = np.concatenate([np.repeat([1.0, 0.6, -0.4], 7), rest])
    pairs = eigenpairs(
        with_spectrum(spectrum, seed=505).float(), 14, tolerance=1e-4, generator=seeded(505), largest_basis=30
    )
    assert pairs.converged
    torch.testing.assert_close(pairs.values, torch.tensor(np.repeat([1.0, 0.6], 7)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("ghosts", 7), ("network", 12), ("decay", 8), ("flat", 40)])
def test_kato_temple_estimates_hold_where_gaps_are_resolved(name, steps):
    """Over pairs half-way to convergence, where the estimate is far below the residual."""
    given = matrix(name)
    state = lanczos(given.matrix, random_start(given.matrix, seeded()), steps)
    values, _, residuals = state.ritz()
    top = select(values, 4, "LM")
    estimates = kato_temple(values[top], residuals[top], values)
    errors = (expected(given.spectrum, 4, "LM") - values[top]).abs()
    sharp = estimates < residuals[top] / 3
    assert sharp.any()
    assert (errors[sharp] <= estimates[sharp] + 1e-13 * given.size).all()


def test_kato_temple_estimates_allow_for_ritz_values_that_are_off():
    """They are no smaller than those by any values that the others may really have."""
    ritz, off = torch.linspace(0, 1, 9, dtype=torch.float64), 0.05
    values, residuals = ritz[[8, 7]], torch.tensor([0.02, 0.01], dtype=torch.float64)
    estimates = kato_temple(values, residuals, ritz, off)
    assert (estimates < residuals).all()
    for seed in range(50):
        moved = ritz + off * (2 * torch.rand(9, generator=seeded(seed), dtype=torch.float64) - 1)
        for i, own in enumerate((8, 7)):
            really = torch.cat([values[i : i + 1], moved[:own], moved[own + 1 :]])
            assert kato_temple(values[i : i + 1], residuals[i : i + 1], really) <= estimates[i]


def test_complement_bounds_hold_in_99_percent():
    """Of runs, at all their steps together."""
    generator = np.random.default_rng(0)
    runs, failures, closest = 400, 0, 0
    for seed in range(runs):
        n = int(generator.integers(20, 100))
        spectrum = [
            generator.uniform(-1, 1, n),
            np.append(generator.uniform(-0.1, 0.1, n - 1), 1.0),
            generator.standard_normal(n) ** 3,
            1 - np.linspace(0, 1, n) ** 0.5,
        ][seed % 4]
        operator = torch.diag(torch.tensor(spectrum))
        state = begin(operator, random_start(operator, seeded(seed)))
        held = []
        for _ in range(15):
            state.extend(operator)
            low, high = complement_bounds(state.projected, state.coupling[0, -1].item(), n)
            held.append(low - 1e-12 <= spectrum.min() <= spectrum.max() <= high + 1e-12)
        failures += not all(held)
        closest += high - spectrum.max() < 0.3 * np.ptp(spectrum)
    assert failures <= 0.01 * runs
    assert closest > 0.95 * runs


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_no_more_than_the_polynomials_leave_lies_beyond(steps):
    """For every start; and all of it where one product more would end the run, which is when the bound is attained."""
    for n in steps + 1, steps + 2, 40:
        spectrum = torch.arange(n, dtype=torch.float64) ** 1.5
        operator, start = torch.diag(spectrum), random_start(torch.diag(spectrum), seeded(n))
        state = lanczos(operator, start, steps)
        diagonal, couplings = state.projected.diagonal().tolist(), state.projected.diagonal(1).tolist()
        couplings.append(state.coupling[0, -1].item())
        parts = (start / start.norm()).square()
        for x in spectrum[spectrum > state.ritz()[0].max()]:
            beyond = float(parts[spectrum >= x].sum())
            assert not excludes_beyond(float(x), diagonal, couplings, 0.999 * beyond)
        if n == steps + 1:
            assert excludes_beyond(float(x), diagonal, couplings, 1.001 * beyond)


@pytest.mark.parametrize("name", ["ghosts", "network", "softmax", "flat", "decay", "strakos"])
def test_bounds_on_the_complement_hold_for_the_rest_of_the_spectrum(name):
    """Whatever is complete has no other eigenvalue among those it lists."""
    given = matrix(name)
    for seed in range(5):
        pairs = eigenpairs(given.matrix, 4, which="LA", tolerance=1e-6, generator=seeded(seed))
        assert pairs.converged
        if pairs.complete:
            rest = given.spectrum.sort(descending=True).values[4:]
            assert rest.max() <= pairs.values.min() + 1e-6 * given.size


@pytest.mark.parametrize("name", ["ghosts", "network", "decay", "strakos"])
def test_separate_eigenvalues_are_shown_to_be_complete(name):
    pairs = eigenpairs(matrix(name).matrix, 3, tolerance=1e-4, generator=seeded())
    assert pairs.complete


def test_residuals_see_the_noise_of_products():
    """Lanczos' own recurrence goes to zero whatever the products; the residual and `converged` must not."""
    given = matrix("network")
    single = given.matrix.float()
    noisy = Products(lambda v: (single @ v.float()).double(), given.n)
    pairs = eigenpairs(noisy, 4, tolerance=1e-11, generator=seeded())
    assert not pairs.converged
    true = true_residuals(given.matrix, pairs)
    assert true.max() > 1e-9 * given.size
    assert (pairs.residuals >= 0.1 * true).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method):
    operator = matrix("softmax").matrix.float()
    one, other = (method(operator, 6, generator=seeded(5)) for _ in range(2))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.vectors, other.vectors)
    assert torch.equal(one.residuals, other.residuals)
    assert one.products == other.products


@pytest.mark.parametrize("method", METHODS)
def test_no_chance_from_outside(method):
    state = torch.get_rng_state()
    method(matrix("network").matrix, 3, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("largest_basis", [300, 1])
def test_progress_tells_products_and_pairs(largest_basis):
    seen = []
    pairs = eigenpairs(
        matrix("softmax").matrix,
        5,
        tolerance=1e-6,
        generator=seeded(),
        largest_basis=largest_basis,
        progress=lambda **numbers: seen.append(numbers),
    )
    assert [numbers["products"] for numbers in seen] == sorted(numbers["products"] for numbers in seen)
    assert seen[-1]["products"] <= pairs.products
    assert max(numbers["converged"] for numbers in seen) == 5
    assert {numbers["wanted"] for numbers in seen} == {5}


def test_select():
    values = torch.tensor([3.0, -5, 0, 4, -1])
    for which, want in {"LM": [-5, 4, 3], "LA": [4, 3, 0], "SA": [-5, -1, 0], "BE": [4, 3, -5]}.items():
        assert values[select(values, 3, which)].tolist() == want
        assert len(select(values, 9, which)) == 5
        assert len(select(values[:0], 3, which)) == 0
    assert values[select(values, 4, "BE")].tolist() == [4, 3, -5, -1]
    assert strakos()[-1] == 100


def test_basis_is_bounded_by_memory(monkeypatch):
    given = matrix("identity")
    monkeypatch.setattr("spectra.krylov.blocks.memory_share", lambda device: 30 * 8 * given.n)
    assert vectors_held(4, basis_of(given.matrix, 4).vectors) == 30
    monkeypatch.undo()
    assert basis_of(given.matrix, 4).vectors == LARGEST_BASIS


@pytest.mark.parametrize("seed", range(5))
def test_of_a_small_matrix_the_rest_is_taken_where_a_search_cannot_tell(seed):
    """Eleven zeros beside small eigenvalues that crowd at zero: a few steps do not see the difference."""
    spectrum = np.concatenate([np.zeros(11), 10.0 ** np.linspace(-8, 0, 42)])
    pairs = eigenpairs(with_spectrum(spectrum, seed), 4, which="BE", generator=seeded(seed))
    assert pairs.complete
    assert pairs.products <= 2.5 * 53
    torch.testing.assert_close(pairs.values[:2], torch.tensor([1.0, 10 ** (-8 / 41)]).double())
    assert pairs.values[2:].abs().max() < 1e-14


def test_the_dense_method_tells_of_the_rounding_of_products():
    given = known(strakos())
    generator = np.random.default_rng(0)
    rounded = given.matrix + 1e-6 * torch.from_numpy(generator.normal(size=given.matrix.shape))  # not symmetric
    pairs = dense_eigenpairs(rounded, 5)
    assert (pairs.residuals > 1e-6).all()
    assert (pairs.residuals < 1e-4).all()
    assert ((pairs.values - given.spectrum.flip(0)[:5]).abs() <= 2 * pairs.residuals).all()
