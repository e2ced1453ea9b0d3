"""Eigenpairs of a matrix that changes, each search from the last: what is found, what it costs, and what is claimed."""

import numpy as np
import pytest
import torch
from helpers import seeded, with_spectrum
from torch import Tensor

from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.warm_start import EVERY, WarmStart, separate_sums
from spectra.operator import Counting

N = 300
TOP = [10.0, -8.0, 6.0, 5.0, 4.0]
SPECTRUM = np.array([*TOP, *np.random.default_rng(0).uniform(-0.3, 0.5, N - 5)])
HEIGHT = 5.5  # among the top five
BASE = with_spectrum(SPECTRUM)


def rotation(angle: float, seed: int = 1) -> Tensor:
    """A rotation of space by at most so much."""
    skew = torch.randn(N, N, generator=seeded(seed), dtype=torch.float64)
    skew = skew - skew.T
    return torch.matrix_exp(angle * skew / torch.linalg.matrix_norm(skew, 2))


def search(start: WarmStart, matrix: Tensor, most: int = 200):
    counted = Counting(matrix)
    pairs = start.eigenpairs(counted, generator=seeded(7), max_products=most)
    assert pairs.products == counted.products <= most
    return pairs


def assert_right(pairs, matrix: Tensor, k: int = 5):
    """The pairs are those of the matrix by LAPACK, as far as their residuals say."""
    exact = torch.linalg.eigvalsh(matrix)
    exact = exact[exact.abs().argsort(descending=True)][:k]
    images = (matrix @ pairs.vectors.T).T - pairs.values[:, None] * pairs.vectors
    measured = torch.linalg.vector_norm(images, dim=1)
    assert ((pairs.values - exact).abs() <= pairs.residuals + 1e-12).all()
    assert (measured <= 1.5 * pairs.residuals + 1e-12).all()
    assert pairs.converged
    assert (measured <= 2e-3 * pairs.values.abs()).all()


def test_a_slow_matrix_takes_few_products():
    """At most ten for the top five between searches of the complement, which come when they are due."""
    start, turn, matrix, searched = WarmStart(5, 1e-3), rotation(3e-4), BASE, []
    for step in range(2 * EVERY + 1):
        pairs = search(start, matrix)
        assert_right(pairs, matrix)
        searched.append(pairs.complete)
        if pairs.complete is None:
            assert pairs.products <= 10
            assert torch.equal(pairs.error_estimates, pairs.residuals)
        matrix = turn @ matrix @ turn.T + 1e-3 * step * torch.eye(N, dtype=torch.float64)
    assert searched == [True if step % EVERY == 0 else None for step in range(2 * EVERY + 1)]


@pytest.mark.parametrize("angle", [0.03, 0.3])
def test_a_faster_matrix_takes_no_more_than_from_a_random_start(angle):
    start, turn, matrix = WarmStart(5, 1e-3, every=1), rotation(angle), BASE
    for _ in range(4):
        pairs, fresh = search(start, matrix), eigenpairs(matrix, 5, seed=3)
        assert_right(pairs, matrix)
        assert pairs.complete
        assert pairs.products <= fresh.products + 2
        matrix = turn @ matrix @ turn.T


def risen() -> Tensor:
    """The matrix with one eigenvalue lifted to HEIGHT, whose eigenvector is orthogonal to those of the top five."""
    values, vectors = torch.linalg.eigh(BASE)
    inner = (values.abs() < 1).nonzero()[40, 0]
    values[inner] = HEIGHT
    return (vectors * values) @ vectors.T


@pytest.mark.parametrize("blind", [True, False])
def test_an_eigenvalue_that_rises_from_below(blind, monkeypatch):
    """It is found by the next search of the complement at the latest; before that the list is not called complete.

    From old eigenvectors alone no other search can see it.
    """
    if blind:
        monkeypatch.setattr(WarmStart, "starts", lambda start, *_: start.vectors)
    start = WarmStart(5, 1e-3)
    assert search(start, BASE).complete
    assert search(start, BASE).complete is None
    matrix, found = risen(), []
    while not found or found[-1][1] is None:
        pairs = search(start, matrix)
        found.append((bool(((pairs.values - HEIGHT).abs() < 1e-2).any()), pairs.complete))
    assert_right(pairs, matrix)
    assert [listed for listed, complete in found if complete is not None] == [True]
    assert [listed for listed, _ in found] == [False] * (len(found) - 1) + [True]
    assert len(found) == EVERY - 1 if blind else len(found) < EVERY - 1


def test_copies_of_an_eigenvalue_stay_listed():
    """Also where the sum of their eigenvectors would show one of them alone."""
    spectrum = np.array([7.0, 5.0, 5.0, 5.0, 4.0, *SPECTRUM[5:]])
    matrix, start, turn = with_spectrum(spectrum), WarmStart(5, 1e-3), rotation(1e-3)
    for step in range(EVERY):
        pairs = search(start, matrix)
        assert_right(pairs, matrix)
        assert (pairs.complete is None) == (step > 0)
        matrix = turn @ matrix @ turn.T
    assert separate_sums(torch.tensor([7.0, 5.0, 5.0, 4.99, 4.0])).tolist() == [
        [1, 1, 0, 0, 1],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
    ]


def test_a_jump_is_searched_at_once():
    """One of the values, and one of the vectors alone."""
    start = WarmStart(5, 1e-3)
    search(start, BASE)
    pairs = search(start, 1.5 * BASE)
    assert pairs.complete
    assert_right(pairs, 1.5 * BASE)
    assert search(start, 1.5 * BASE).complete is None
    values, vectors = torch.linalg.eigh(BASE)
    order = values.abs().argsort(descending=True)
    swapped = values.clone()
    swapped[order[4]], swapped[order[9]] = values[order[9]], values[order[4]]
    other = 1.5 * (vectors * swapped) @ vectors.T
    pairs = search(start, other)
    assert pairs.complete
    assert_right(pairs, other)


def test_more_and_fewer_pairs():
    """More are searched for afresh beside the old ones, fewer start from the first of them."""
    start = WarmStart(3, 1e-3)
    search(start, BASE)
    start.k = 5
    pairs = search(start, BASE)
    assert pairs.complete
    assert_right(pairs, BASE)
    start.k = 2
    pairs = search(start, BASE)
    assert pairs.complete is None
    assert_right(pairs, BASE, 2)


def test_a_short_budget_is_kept_and_the_search_stays_due():
    start = WarmStart(5, 1e-3)
    pairs = search(start, BASE, most=8)
    assert not pairs.converged
    assert pairs.complete is None
    assert start.due
    for _ in range(6):
        pairs = search(start, BASE, most=14)
    assert_right(pairs, BASE)


def test_a_matrix_that_was_not_finite_is_begun_afresh():
    start = WarmStart(5, 1e-3)
    search(start, BASE)
    pairs = search(start, BASE * torch.nan)
    assert not pairs.converged
    pairs = search(start, BASE)
    assert pairs.complete
    assert_right(pairs, BASE)


def test_the_same_seed_gives_the_same_numbers():
    turn = rotation(0.01)
    runs = []
    for _ in range(2):
        start, matrix, found = WarmStart(5, 1e-3), BASE, []
        for _ in range(3):
            found.append(search(start, matrix).values)
            matrix = turn @ matrix @ turn.T
        runs.append(torch.stack(found))
    assert torch.equal(*runs)


@pytest.mark.parametrize("n", [6, 9])
def test_small_matrices(n):
    """What is left of the space is taken into the basis, so that nothing can be missed."""
    matrix = with_spectrum([*TOP, 0.5, 0.25, 0.1, 0.0][:n])
    start = WarmStart(5, 1e-3)
    for _ in range(3):
        pairs = search(start, matrix)
        assert_right(pairs, matrix)
        assert pairs.complete
