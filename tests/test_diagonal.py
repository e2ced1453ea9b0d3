"""Diagonals and sums of them: unbiased, with standard errors that cover, exact where they say so, and counted."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import TABLE, known, matrix, not_finite, seeded, uniform, with_spectrum
from torch import Tensor

from spectra.krylov import blocks, diagonal
from spectra.krylov.diagonal import hutchinson_diagonal, xdiag
from spectra.krylov.jackknife import jackknife_error
from spectra.krylov.xtrace import GROUPS as GROUPS_OF_XTRACE
from spectra.krylov.xtrace import xtrace
from spectra.memory import fixed_memory_share
from spectra.operator import Counting, random_signs

METHODS = [xdiag, hutchinson_diagonal]
SPECTRA = {
    "outliers": np.concatenate([[60, 40, 30, -20, 10], uniform(95, -1, 1)]),
    "decay": np.arange(1, 101) ** -2.0,
    "indefinite": uniform(100, -1, 2),
}
PARTS = 5


def parts(values: Tensor) -> Tensor:
    """Sums of a diagonal over every fifth of its entries, and one with weights."""
    n = len(values)
    ids = torch.arange(n) % PARTS
    sums = torch.zeros(PARTS, dtype=torch.float64).index_add(0, ids, values.double())
    return torch.cat([sums, (values.double() * torch.linspace(0, 1, n)).sum()[None]])


def never(values: Tensor, errors: Tensor) -> bool:
    return False


def always(values: Tensor, errors: Tensor) -> bool:
    return True


def within(rtol: float, values: Tensor, errors: Tensor) -> bool:
    return bool((errors <= rtol * values[:PARTS].sum().abs()).all())


def estimated(method, operator, enough=always, seed: int = 0, sums=parts, **settings):
    return method(operator, sums, enough, generator=seeded(seed), **settings)


def left_one_out(a: Tensor, tests: Tensor) -> Tensor:
    """The estimate by its definition: an explicit basis without each test vector (rows) in turn."""
    found = []
    for i, w in enumerate(tests):
        others = torch.cat([tests[:i], tests[i + 1 :]]).T
        projector = torch.zeros_like(a)
        if others.shape[1]:
            basis = torch.linalg.qr(a @ others).Q
            projector = basis @ basis.T
        rest = torch.eye(len(a), dtype=a.dtype) - projector
        inside = 2 * (projector @ a).diagonal() - (projector @ a @ projector).diagonal()
        found.append(inside + w * (rest @ a @ rest @ w))
    return torch.stack(found).mean(dim=0)


@pytest.mark.parametrize("budget", [4, 6, 18, 32, 48])
def test_xdiag_is_what_its_formula_says(budget, monkeypatch):
    """And so are the estimates without a test vector or group of them, from which the errors come."""
    a, q = with_spectrum(SPECTRA["outliers"]), budget // 2
    found = estimated(xdiag, a, never, max_products=budget)
    tests = random_signs(a, q, seeded())
    torch.testing.assert_close(found.values, left_one_out(a, tests), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.sums, parts(found.values), rtol=0, atol=0)
    groups = min(q, 16)
    assert len(found.replicates) == groups
    every = [left_one_out(a, tests[[i for i in range(q) if i % groups != g]]) for g in range(groups)]
    torch.testing.assert_close(found.replicates, torch.stack([parts(one) for one in every]), rtol=0, atol=1e-9)
    spread = torch.stack(every).var(dim=0, correction=0)  # jackknife: (g - 1) / g of the sum of squares
    torch.testing.assert_close(found.standard_errors, ((groups - 1) * spread).sqrt(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("budget", [2, 16, 40])
def test_hutchinson_is_the_mean_of_signed_products(budget):
    a = with_spectrum(SPECTRA["indefinite"])
    found = estimated(hutchinson_diagonal, a, never, max_products=budget)
    signs = random_signs(a, budget, seeded())
    samples = signs * (signs @ a)
    torch.testing.assert_close(found.values, samples.mean(dim=0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.standard_errors, samples.std(dim=0) / budget**0.5, rtol=1e-10, atol=1e-13)
    sums = torch.stack([parts(sample) for sample in samples])
    torch.testing.assert_close(found.sum_errors, sums.std(dim=0) / budget**0.5, rtol=1e-8, atol=1e-12)
    without = (sums.sum(dim=0) - sums) / (budget - 1)
    torch.testing.assert_close(found.replicates, without, rtol=0, atol=1e-12)


def test_the_jackknife_of_means_is_the_standard_error():
    samples = torch.tensor(uniform(30)).view(10, 3)
    without = (samples.sum(dim=0) - samples) / 9
    torch.testing.assert_close(jackknife_error(without), samples.std(dim=0) / 10**0.5, rtol=1e-12, atol=0)
    assert jackknife_error(without[:1]).isnan().all()  # one group alone has no spread: that is not an error of zero


# Where it is exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [0, 1, 5, 14])
def test_xdiag_is_exact_on_a_rank_below_its_test_vectors(rank, dtype):
    given = known(np.concatenate([uniform(rank, 1, 3) * (-1.0) ** np.arange(rank), np.zeros(200 - rank)]))
    found = estimated(xdiag, given.matrix.to(dtype), partial(within, 1e-4))
    rounding = 100 * torch.finfo(dtype).eps
    assert found.converged
    assert found.products == 32
    torch.testing.assert_close(found.values.double(), given.matrix.diagonal(), rtol=0, atol=rounding)
    assert found.standard_errors.max() <= rounding
    assert found.sum_errors.max() <= 10 * rounding


@pytest.mark.parametrize("n", [1, 2, 17, 40, 64])
def test_xdiag_takes_all_of_a_small_matrix(n):
    given = with_spectrum(uniform(n, -1, 1))
    counted = Counting(given)
    found = estimated(xdiag, counted, never)
    torch.testing.assert_close(found.values, given.diagonal(), rtol=0, atol=0)
    assert found.products == counted.products == n
    assert found.converged
    assert found.sum_errors.tolist() == [0.0] * (PARTS + 1)
    assert found.standard_errors.tolist() == [0.0] * n
    assert found.replicates.shape == (0, PARTS + 1)


def test_the_width_of_blocks_changes_nothing_of_an_exact_diagonal(monkeypatch):
    given = with_spectrum(uniform(40, -1, 1))
    monkeypatch.setattr(blocks, "WIDEST", 3)
    assert torch.equal(estimated(xdiag, given).values, given.diagonal())


@pytest.mark.parametrize("budget", [1, 2, 16])
def test_hutchinson_is_exact_on_a_diagonal_matrix(budget):
    entries = torch.tensor(uniform(70, -1, 1))
    found = estimated(hutchinson_diagonal, torch.diag(entries), never, max_products=budget)
    torch.testing.assert_close(found.values, entries, rtol=0, atol=1e-15)
    assert found.products == budget
    if budget > 1:  # one sample alone tells no error
        assert found.sum_errors.max() <= 1e-13
    else:
        assert found.sum_errors.isnan().all()


@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name]().n >= 20])
@pytest.mark.parametrize("method", METHODS)
def test_converged_means_what_it_says(method, name):
    """Of the sums: they lie within four of the errors that they come with, those within what was asked for."""
    given = matrix(name)
    counted = Counting(given.matrix)
    rtol = 0.02 if method is xdiag else 0.1
    found = estimated(method, counted, partial(within, rtol), max_products=600)
    truth = parts(given.matrix.diagonal())
    rounding = 1e-12 * given.n * given.size
    assert found.products == counted.products <= 600
    if found.converged:
        assert (found.sum_errors <= rtol * found.sums[:PARTS].sum().abs() + rounding).all()
    assert ((found.sums - truth).abs() <= 4 * found.sum_errors + rounding).all()
    if method is xdiag:
        assert found.converged
    entries = (found.values - given.matrix.diagonal()).abs() <= 3 * found.standard_errors + rounding
    assert entries.double().mean() >= 0.9


# What the errors say


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("method", "budget", "seeds"), [(xdiag, 36, 25), (hutchinson_diagonal, 30, 60)])
def test_unbiased_and_covered(method, budget, seeds, spectrum):
    a = with_spectrum(SPECTRA[spectrum])
    truth = parts(a.diagonal())
    found = [estimated(method, a, never, seed=seed, max_products=budget) for seed in range(seeds)]
    errors = torch.stack([one.sums for one in found]) - truth
    claimed = torch.stack([one.sum_errors for one in found])
    assert (errors.mean(dim=0).abs() <= 4 * errors.std(dim=0) / seeds**0.5).all()
    assert (errors.abs() <= 2 * claimed).double().mean() >= 0.85
    assert claimed.square().mean().sqrt() <= 3 * errors.square().mean().sqrt()  # and not by being enormous
    entries = torch.stack([one.values - a.diagonal() for one in found])
    claimed = torch.stack([one.standard_errors for one in found])
    assert (entries.abs() <= 2 * claimed).double().mean() >= 0.85


@pytest.mark.parametrize("budget", [4, 10])
def test_every_entry_is_unbiased_with_few_test_vectors(budget):
    """Where the terms that leave a vector out are not small: the mean over seeds lies within its own errors."""
    a = with_spectrum(uniform(12, -1, 2))
    a = torch.block_diag(a, torch.zeros(60, 60, dtype=torch.float64))  # beyond what is taken exactly
    entries = torch.stack([estimated(xdiag, a, never, seed=s, max_products=budget).values for s in range(200)])
    errors, spread = entries.mean(dim=0) - a.diagonal(), entries.std(dim=0) / 200**0.5
    assert (errors[:12].abs() <= 4 * spread[:12] + 1e-13).all()


def test_xdiag_beats_signs_on_a_spectrum_that_decays():
    a = with_spectrum(SPECTRA["decay"])
    errors = {
        method: np.median(
            [(estimated(method, a, never, s, max_products=48).values - a.diagonal()).norm() for s in range(8)]
        )
        for method in METHODS
    }
    assert errors[xdiag] < errors[hutchinson_diagonal] / 20


def test_the_diagonal_adds_up_to_the_trace_of_xtrace():
    """From the same test vectors: both within their errors of the truth, and of each other."""
    a = with_spectrum(SPECTRA["outliers"])
    found = estimated(xdiag, a, never, max_products=64, sums=lambda values: values.double().sum()[None])
    trace = xtrace(a, probes=GROUPS_OF_XTRACE, generator=seeded())
    assert trace.products == found.products
    assert abs(found.sums.item() - trace.value) <= 2 * (found.sum_errors.item() + trace.standard_error)
    assert abs(found.sums.item() - a.trace().item()) <= 4 * found.sum_errors.item()


@pytest.mark.parametrize("scale", [2.0**-30, -(2.0**30)])
@pytest.mark.parametrize("method", METHODS)
def test_scaling_the_matrix_scales_the_answer(method, scale):
    a = with_spectrum(SPECTRA["outliers"])
    one, other = (estimated(method, m, partial(within, 0.05), max_products=500) for m in (a, scale * a))
    assert (one.products, one.converged) == (other.products, other.converged)
    for what, factor in (("values", scale), ("sums", scale), ("replicates", scale), ("standard_errors", abs(scale))):
        torch.testing.assert_close(
            getattr(other, what), factor * getattr(one, what), rtol=1e-9, atol=1e-10 * abs(scale)
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method):
    a, state = with_spectrum(SPECTRA["indefinite"]).float(), torch.get_rng_state()
    one, other, third = (estimated(method, a, never, seed, max_products=40) for seed in (3, 3, 4))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.sum_errors, other.sum_errors)
    assert not torch.equal(one.values, third.values)
    assert torch.equal(torch.get_rng_state(), state)


# What it costs


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 31, 32, 33, 47, 48, 77, 150])
@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_never_exceeded(method, budget):
    counted = Counting(with_spectrum(SPECTRA["outliers"]))
    found = estimated(method, counted, never, max_products=budget)
    assert found.products == counted.products <= budget
    assert found.products >= budget - 1 or found.products == len(counted.operator) + 32
    assert found.converged == (found.sum_errors == 0).all()  # where all has been taken
    assert found.finite


@pytest.mark.parametrize("method", METHODS)
def test_it_ends_as_soon_as_the_sums_will_do(method):
    found = estimated(method, with_spectrum(SPECTRA["outliers"]), always)
    assert found.converged
    assert found.products == (32 if method is xdiag else 16)
    few = estimated(method, with_spectrum(SPECTRA["outliers"]), always, max_products=10)
    assert not few.converged  # ten samples do not know their own error


def test_test_vectors_are_kept_as_they_grow():
    """Half as many again each time, two products each, and the answer is that of all at once."""
    a = with_spectrum(SPECTRA["outliers"])
    seen = []
    enough = partial(within, 0.006)
    found = estimated(xdiag, Counting(a), enough, progress=lambda products: seen.append(products))
    assert seen == [32, 48, 72][: len(seen)]
    assert len(seen) > 1
    once = estimated(xdiag, a, never, max_products=found.products)
    torch.testing.assert_close(once.values, found.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_signs_go_on_where_the_sketch_would_be_too_large(spectrum, monkeypatch):
    """Beside a basis of 16 that stays: the truth within their errors, better than signs alone."""
    monkeypatch.setattr(diagonal, "LARGEST", 4 * 100 * 8 * 20)
    a = with_spectrum(SPECTRA[spectrum])
    counted = Counting(a)
    found = [estimated(xdiag, counted, never, seed, max_products=90) for seed in range(20)]
    assert {one.products for one in found} == {90}
    assert counted.products == 20 * 90
    assert len(found[0].replicates) == 90 - 32
    errors = torch.stack([one.sums for one in found]) - parts(a.diagonal())
    claimed = torch.stack([one.sum_errors for one in found])
    assert (errors.abs() <= 2 * claimed).double().mean() >= 0.85
    assert (errors.mean(dim=0).abs() <= 4 * errors.std(dim=0) / 20**0.5).all()
    alone = estimated(hutchinson_diagonal, a, never, max_products=90)
    assert spectrum == "indefinite" or claimed.mean() < alone.sum_errors.mean()  # which a basis of 16 serves little
    assert estimated(xdiag, a, partial(within, 0.05), max_products=500).converged


def test_signs_alone_where_no_sketch_fits_memory():
    a = with_spectrum(uniform(200))
    with fixed_memory_share(70 * 200 * 8):
        found = estimated(xdiag, a, never, max_products=40)
    expected = estimated(hutchinson_diagonal, a, never, max_products=40)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-12)
    assert not torch.allclose(found.values, estimated(xdiag, a, never, max_products=40).values)


def test_memory_that_the_sketch_itself_takes_does_not_end_it(monkeypatch):
    """Room is asked for once: less of it later throws no products away, nor leaves them uncounted."""
    a = with_spectrum(uniform(200))
    expected = estimated(xdiag, a, never, max_products=60)
    rooms = iter([1000])
    monkeypatch.setattr(diagonal, "fitting_vectors", lambda _: next(rooms, 0))
    found = estimated(xdiag, a, never, max_products=60)
    assert found.products == expected.products
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("n", "good"), [(100, 0), (100, 1), (100, 2), (40, 0), (1, 0)])
@pytest.mark.parametrize("method", METHODS)
def test_products_that_are_not_finite_end_it(method, n, good, bad):
    counted = Counting(not_finite(n, good, bad))
    found = estimated(method, counted, never, max_products=150)
    assert found.products == counted.products <= 150
    assert not found.converged
    assert not found.finite
