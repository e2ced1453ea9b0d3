"""Traces: unbiased, with standard errors that cover, exact where they say so, and counted."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import TABLE, Widths, known, matrix, not_finite, seeded, uniform, with_spectrum

from spectra.errors import SpectraError
from spectra.krylov import blocks
from spectra.krylov import hutchinson as hutchinson_module
from spectra.krylov import xtrace as xtrace_module
from spectra.krylov.dense import dense_trace
from spectra.krylov.forecast import VectorMeter
from spectra.krylov.hutch_plus_plus import hutch_plus_plus
from spectra.krylov.hutchinson import affordable, hutchinson
from spectra.krylov.sketch import Sketch
from spectra.krylov.xtrace import GROUPS, estimate, mean, xtrace
from spectra.operator import Counting, Deflated

STOCHASTIC = [hutchinson, hutch_plus_plus, xtrace]
METHODS = [*STOCHASTIC, dense_trace]

SPECTRA = {
    "outliers": np.concatenate([[60, 40, 30, -20, 10], uniform(195, -1, 1)]),
    "decay": np.arange(1, 201) ** -2.0,
    "flat": np.linspace(1, 3, 200),
    "exponential": 0.7 ** np.arange(200),
    "step": np.concatenate([np.ones(10), np.full(190, 1e-3)]),
    "indefinite": uniform(200, -1, 2),
}


def test_a_budget_without_end_pays_for_any_number_of_vectors():
    """By itself inf // 2 is nan, and what `min` makes of that depends on the order of its arguments."""
    assert affordable(9, math.inf) == affordable(9, math.inf, 3) == 9
    assert [affordable(9, 7), affordable(9, 7, 2), affordable(9, 7, 3), affordable(9, 0, 2)] == [7, 3, 2, 0]
    assert [affordable(2, 7), affordable(2, 7, 3), affordable(0, 7)] == [2, 2, 0]


def least_coverage(samples, seeds):
    """Four binomial deviations below what +- 2 standard errors of so many normal samples cover by Student's law."""
    nominal = 2 * scipy.stats.t.cdf(2, samples - 1) - 1
    return nominal - 4 * (nominal * (1 - nominal) / seeds) ** 0.5


@pytest.mark.parametrize(
    ("method", "samples", "seeds"), [(hutchinson, 40, 100), (hutch_plus_plus, 20, 100), (xtrace, 40, 20)]
)
def test_unbiased_and_covered(method, samples, seeds):
    """For every spectrum the mean lies within four of its own errors; 2 standard errors cover as they should."""
    covered = []
    for place, spectrum in enumerate(SPECTRA.values()):
        operator, truth = with_spectrum(spectrum), spectrum.sum()
        estimates = [method(operator, probes=40, generator=seeded(1000 * place + seed)) for seed in range(seeds)]
        assert all(estimate.converged for estimate in estimates)
        errors = np.array([estimate.value for estimate in estimates]) - truth
        claimed = np.array([estimate.standard_error for estimate in estimates])
        rounding = 1e-13 * np.abs(spectrum).sum()
        assert abs(errors.mean()) <= 4 * errors.std() / len(errors) ** 0.5 + rounding
        covered.append(np.abs(errors) <= 2 * claimed + rounding)
        assert np.mean(covered[-1]) >= least_coverage(samples, seeds)
        if method is not xtrace or spectrum.max() < 10 * np.median(spectrum):
            assert np.sqrt((claimed**2).mean()) <= 2 * errors.std()  # and not by being enormous
    assert np.mean(covered) >= least_coverage(samples, seeds * len(covered))


@pytest.mark.parametrize(("method", "seeds"), [(hutchinson, 200), (hutch_plus_plus, 400), (xtrace, 100)])
def test_growing_until_the_tolerance_is_met_keeps_coverage(method, seeds):
    operator, truth = with_spectrum(SPECTRA["outliers"][:120]), SPECTRA["outliers"][:120].sum()
    estimates = [method(operator, rtol=0.05, generator=seeded(seed)) for seed in range(seeds)]
    assert all(e.converged and e.standard_error <= 0.05 * abs(e.value) for e in estimates)
    covered = [abs(e.value - truth) <= 2 * e.standard_error + 1e-10 for e in estimates]
    assert np.mean(covered) >= 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", [hutch_plus_plus, xtrace])
def test_exact_on_a_matrix_of_low_rank(method, dtype):
    given = known(np.concatenate([uniform(10, -1, 3), np.zeros(290)]))
    estimate = method(given.matrix.to(dtype), generator=seeded())
    eps = torch.finfo(dtype).eps
    assert estimate.converged
    assert abs(estimate.value - given.spectrum.sum().item()) <= 200 * eps * given.size
    assert estimate.standard_error <= 200 * eps * given.size


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("method", METHODS)
def test_converged_means_what_it_says(method, name):
    given = matrix(name)
    truth, whole = given.spectrum.sum().item(), given.spectrum.abs().sum().item()
    operator = Counting(given.matrix)
    estimate = method(operator, rtol=0.02, generator=seeded(1))
    assert estimate.products == operator.products
    assert estimate.converged
    assert estimate.standard_error <= 0.02 * abs(estimate.value) + 1e-13 * whole
    assert abs(estimate.value - truth) <= 4 * estimate.standard_error + 1e-12 * whole


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("method", METHODS)
def test_scaling_the_matrix_scales_the_answer(method, scale):
    operator = with_spectrum(SPECTRA["outliers"])
    one = method(operator, rtol=0.05, generator=seeded())
    other = method(operator * scale, rtol=0.05, generator=seeded())
    assert other.products == one.products
    assert other.value == pytest.approx(one.value * scale, rel=1e-12)
    assert other.standard_error == pytest.approx(one.standard_error * scale, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 16, 20, 30])
@pytest.mark.parametrize("method", [xtrace, dense_trace])
def test_small_matrices_are_exact(method, n):
    given = known(uniform(n, -1, 3))
    operator = Counting(given.matrix)
    estimate = method(operator, generator=seeded())
    assert estimate.value == pytest.approx(given.spectrum.sum().item(), abs=1e-13 * n)
    assert estimate.standard_error == 0.0
    assert estimate.converged
    assert estimate.products == operator.products == n


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_a_sketch_of_the_whole_space_is_exact(n):
    given = known(uniform(n, -1, 3))
    estimate = hutch_plus_plus(given.matrix, generator=seeded())
    assert estimate.value == pytest.approx(given.spectrum.sum().item(), abs=1e-13 * n)
    assert estimate.standard_error == 0.0
    assert estimate.converged


@pytest.mark.parametrize("n", range(90, 112))
def test_a_tolerance_out_of_reach_ends_in_the_exact_trace(n):
    """Growth must not stop at n - 1 vectors for ever."""
    given = known(uniform(n, -1, 1))
    operator = Counting(given.matrix)
    estimate = xtrace(operator, rtol=0, generator=seeded())
    assert estimate.standard_error == 0.0
    assert estimate.products == operator.products <= 3 * n
    assert estimate.value == pytest.approx(given.spectrum.sum().item(), abs=1e-12)


@pytest.mark.parametrize("probes", [1, 2, 3, 7, 16, 40])
@pytest.mark.parametrize("method", STOCHASTIC)
def test_probes_fix_the_products(method, probes):
    operator = Counting(with_spectrum(SPECTRA["indefinite"]))
    estimate = method(operator, probes=probes, rtol=0, generator=seeded())
    want = {hutchinson: probes, hutch_plus_plus: probes + probes // 2, xtrace: 2 * probes}[method]
    assert estimate.products == operator.products == want
    assert math.isfinite(estimate.value)
    assert estimate.converged == math.isfinite(estimate.standard_error)
    assert estimate.standard_error > 0


@pytest.mark.parametrize("method", [hutchinson, hutch_plus_plus, xtrace])
def test_probes_asked_for_are_not_cut_by_the_usual_budget(method, monkeypatch):
    monkeypatch.setattr(hutchinson_module, "PRODUCTS", 20)
    operator = Counting(TABLE["ghosts"]().matrix)
    assert method(operator, probes=40, rtol=1e-9, generator=seeded()).converged
    assert operator.products >= 40
    operator.products = 0
    assert not method(operator, rtol=1e-9, generator=seeded()).converged
    assert operator.products <= 20


def test_a_loose_tolerance_does_not_stand_for_probes_that_were_cut():
    estimate = hutchinson(TABLE["ghosts"]().matrix, probes=40, rtol=10.0, max_products=30, generator=seeded())
    assert not estimate.converged


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 15, 33, 47, 60, 150, 199, 201, 350])
@pytest.mark.parametrize("probes", [None, 80])
@pytest.mark.parametrize("method", STOCHASTIC)
def test_the_budget_is_never_exceeded(method, probes, budget):
    operator = Counting(with_spectrum(SPECTRA["indefinite"]))
    estimate = method(operator, rtol=1e-9, probes=probes, generator=seeded(), max_products=budget)
    assert estimate.products == operator.products <= budget
    assert estimate.products >= budget - 1 or estimate.converged
    full = {hutchinson: 80, hutch_plus_plus: 120, xtrace: 160}[method]
    assert estimate.converged == (estimate.standard_error == 0 or (probes is not None and budget >= full))
    assert budget < 2 or math.isfinite(estimate.value)
    assert budget < 5 or math.isfinite(estimate.standard_error)


def test_dense_refuses_a_budget_below_its_price():
    with pytest.raises(SpectraError, match="`max_products`"):
        dense_trace(matrix("identity").matrix, max_products=29)


def test_growing_keeps_old_products():
    operator = Counting(with_spectrum(SPECTRA["indefinite"]))
    generator = seeded()
    sketch = Sketch(operator)
    for size in (16, 24, 36, 37):
        sketch.grow(size, generator)
        assert operator.products == 2 * size
    at_once = Sketch(operator)
    at_once.grow(37, seeded())
    assert torch.equal(at_once.tests, sketch.tests)
    assert mean(sketch.coordinates(), 200) == pytest.approx(mean(at_once.coordinates(), 200), rel=1e-10)
    basis = sketch.basis
    assert (basis @ basis.T - torch.eye(37)).abs().max() < 1e-13
    assert (sketch.triangle.T @ basis - sketch.images).abs().max() < 1e-11
    assert (operator @ basis.T - sketch.basis_images.T).abs().max() < 1e-12


@pytest.mark.parametrize(
    "spectrum", [torch.ones(50), 0.3 ** torch.arange(200), torch.zeros(0)], ids=["ones", "decay", "zero"]
)
@pytest.mark.parametrize("sizes", [(16, 24, 36, 54, 81, 122), (60, 90), (150,), (150, 190)])
def test_growing_past_the_rank(spectrum, sizes):
    operator = torch.diag(torch.nn.functional.pad(spectrum.double(), (0, 200 - len(spectrum))))
    sketch, generator = Sketch(operator), seeded()
    for size in sizes:
        sketch.grow(size, generator)
        if sketch.basis.shape[0] > 50:
            assert estimate(sketch)[0] == pytest.approx(spectrum.double().sum().item(), rel=1e-13)
        assert (sketch.basis @ sketch.basis.T - torch.eye(size)).abs().max() < 1e-13
        assert (sketch.triangle.T @ sketch.basis - sketch.images).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["outliers", "indefinite"])
def test_leaving_vectors_out_is_never_having_had_them(name):
    """The mean and its standard error, from the products alone."""
    operator = with_spectrum(SPECTRA[name])
    n, q = len(operator), 70
    sketch = Sketch(operator)
    sketch.grow(q, seeded())
    left_out, found = [range(g, q, GROUPS) for g in range(GROUPS)], []
    for group in left_out:
        fewer, kept = Sketch(operator), [i for i in range(q) if i not in group]
        fewer.tests, fewer.images = sketch.tests[kept], sketch.images[kept]
        basis, fewer.triangle = torch.linalg.qr(fewer.images.T)
        fewer.basis, fewer.basis_images = basis.T, (operator @ basis).T
        found.append(mean(fewer.coordinates(), n))
        assert mean(sketch.coordinates().without(group), n) == pytest.approx(found[-1], rel=1e-10)
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((one - np.mean(found)) ** 2 for one in found))
    assert estimate(sketch)[1] == pytest.approx(error, rel=1e-8)


def test_the_estimator_is_what_its_formula_says():
    """By explicit bases without each column in turn."""
    operator = with_spectrum(SPECTRA["outliers"])
    n, q = len(operator), 9
    sketch = Sketch(operator)
    sketch.grow(q, seeded())
    tests = sketch.tests.T
    values = []
    for i in range(q):
        others = [j for j in range(q) if j != i]
        basis = torch.linalg.qr(operator @ tests[:, others]).Q
        rest = tests[:, i] - basis @ (basis.T @ tests[:, i])
        inside = torch.trace(basis.T @ operator @ basis)
        values.append((inside + (n - q + 1) / rest.dot(rest) * rest.dot(operator @ rest)).item())
    assert mean(sketch.coordinates(), len(operator)) == pytest.approx(np.mean(values), rel=1e-11)


@pytest.mark.parametrize("budget", [32, 33, 49, 50, 60, 500])
def test_where_arrays_do_not_fit_hutchinson_goes_on(monkeypatch, budget):
    monkeypatch.setattr(xtrace_module, "LARGEST", 4 * 200 * 8 * 20)
    spectrum = SPECTRA["outliers"]
    operator = Counting(with_spectrum(spectrum))
    estimate = xtrace(operator, rtol=0.012, generator=seeded(), max_products=budget)
    assert estimate.products == operator.products <= budget
    assert abs(estimate.value - spectrum.sum()) <= 4 * estimate.standard_error
    assert estimate.converged == (budget == 500)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("n", "good"), [(200, 0), (200, 1), (12, 0)])
@pytest.mark.parametrize("probes", [None, 20])
@pytest.mark.parametrize("method", METHODS)
def test_products_that_are_not_finite_end_it(method, probes, n, good, bad):
    operator = Counting(not_finite(n, good, bad))
    estimate = method(operator, probes=probes, generator=seeded())
    assert operator.products <= max(n, 60)
    assert operator.products == estimate.products
    assert not math.isfinite(estimate.value)
    assert not math.isfinite(estimate.standard_error)
    assert not estimate.converged


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method):
    operator = with_spectrum(SPECTRA["outliers"]).float()
    state = torch.get_rng_state()
    one, other = (method(operator, probes=20, generator=seeded(5)) for _ in range(2))
    assert one == other
    assert torch.equal(torch.get_rng_state(), state)
    assert method(operator, probes=20, generator=seeded(6)) != one or method is dense_trace


@pytest.mark.parametrize("method", METHODS)
def test_progress_rises_to_the_products_spent(method):
    seen = []
    estimate = method(
        with_spectrum(SPECTRA["indefinite"]),
        rtol=0.1,
        generator=seeded(),
        progress=lambda **numbers: seen.append(numbers["products"]),
    )
    assert seen == sorted(seen)
    assert seen[-1] == estimate.products


@pytest.mark.parametrize("method", STOCHASTIC)
def test_the_width_of_blocks_changes_no_number(monkeypatch, method):
    operator = Widths(with_spectrum(SPECTRA["indefinite"]))
    together = method(operator, probes=60, generator=seeded())
    calls = len(operator.widths)
    monkeypatch.setattr(blocks, "WIDEST", 1)
    alone = method(operator, probes=60, generator=seeded())
    assert calls <= 6
    assert together.products == alone.products
    assert together.value == pytest.approx(alone.value, rel=1e-13)
    assert together.standard_error == pytest.approx(alone.standard_error, rel=1e-10)


@pytest.mark.parametrize("name", ["outliers", "exponential", "indefinite"])
def test_blocks_are_small_against_what_has_been_spent(name):
    operator = Widths(with_spectrum(SPECTRA[name]))
    hutchinson(operator, rtol=0.02, generator=seeded())
    spent = np.cumsum([0, *operator.widths])[:-1]
    assert operator.widths[0] == 16
    assert (operator.widths[1:] <= np.maximum(spent[1:] // 8, 1)).all()
    assert len(operator.widths) < 0.3 * sum(operator.widths)


def test_blocks_cost_few_samples_beyond_need(monkeypatch):
    operator = with_spectrum(SPECTRA["outliers"])

    def products():
        return sum(hutchinson(operator, rtol=0.05, generator=seeded(seed)).products for seed in range(20))

    together = products()
    monkeypatch.setattr(blocks, "WIDEST", 1)
    assert together <= 1.1 * products()


@pytest.mark.parametrize(("vectors", "width"), [(0, 1), (9, 1), (10, 2), (40, 8), (1000, 16)])
def test_blocks_of_samples_lie_within_memory(monkeypatch, vectors, width):
    monkeypatch.setattr(blocks, "memory_share", lambda device: vectors * 8 * 400)
    operator = Widths(known(np.linspace(0, 1, 400)).matrix)
    with VectorMeter(400) as scales:
        hutchinson(operator, probes=50, generator=seeded())
        deflated = Deflated(operator, torch.eye(2, 400, dtype=torch.float64))
        hutchinson(deflated, probes=50, generator=seeded())
    assert max(operator.widths) == width
    assert scales.peak <= (max(vectors, 5) + 2) * 8 * 400  # with what is projected out


@pytest.mark.parametrize("n", [40, 53, 300])
def test_all_rows_are_taken_before_vectors_cost_more(n):
    """Of a flat spectrum errors fall with the root of the number: foreseen once half of n has been spent."""
    operator = Counting(known(uniform(n, -1, 2)).matrix)
    estimate = xtrace(operator, rtol=1e-4, generator=seeded())
    assert estimate.standard_error == 0
    assert operator.products == estimate.products <= max(n, 1.7 * n if n > 64 else n)


def test_a_spectrum_that_decays_needs_no_row_too_many():
    operator = Counting(known(0.7 ** np.arange(400)).matrix)
    assert xtrace(operator, rtol=1e-3, generator=seeded()).products <= 72
