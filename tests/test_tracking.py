"""Eigenpairs of a matrix that changes, each search from the last: what is found, what it costs, and what is claimed."""

import numpy as np
import pytest
import torch
from helpers import seeded, with_spectrum
from torch import Tensor

from spectra.krylov import tracking
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.tracking import EVERY, Tracking, apart
from spectra.operator import Counting

N = 300
TOP = [10.0, -8.0, 6.0, 5.0, 4.0]
SPECTRUM = np.array([*TOP, *np.random.default_rng(0).uniform(-0.3, 0.5, N - 5)])
BASE = with_spectrum(SPECTRUM)


def rotation(angle: float, seed: int = 1) -> Tensor:
    """A rotation of space by at most so much."""
    skew = torch.randn(N, N, generator=seeded(seed), dtype=torch.float64)
    skew = skew - skew.T
    return torch.matrix_exp(angle * skew / torch.linalg.matrix_norm(skew, 2))


def search(track: Tracking, matrix: Tensor, most: int = 200):
    counted = Counting(matrix)
    pairs = track.eigenpairs(counted, generator=seeded(7), max_products=most)
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
    track, turn, matrix, searched = Tracking(5, 1e-3), rotation(1e-3), BASE, []
    for step in range(2 * EVERY + 1):
        pairs = search(track, matrix)
        assert_right(pairs, matrix)
        searched.append(pairs.complete)
        if pairs.complete is None:
            assert pairs.products <= 10
            assert torch.equal(pairs.error_estimates, pairs.residuals)
        matrix = turn @ matrix @ turn.T + 1e-3 * step * torch.eye(N, dtype=torch.float64)
    assert searched == [True if step % EVERY == 0 else None for step in range(2 * EVERY + 1)]


@pytest.mark.parametrize("angle", [0.03, 0.3])
def test_a_faster_matrix_takes_no_more_than_from_a_random_start(angle):
    track, turn, matrix = Tracking(5, 1e-3, every=1), rotation(angle), BASE
    for _ in range(4):
        pairs, fresh = search(track, matrix), eigenpairs(matrix, 5, seed=3)
        assert_right(pairs, matrix)
        assert pairs.complete
        assert pairs.products <= fresh.products + 2
        matrix = turn @ matrix @ turn.T


def risen(height: float) -> Tensor:
    """The matrix with one more eigenvalue of that height, whose eigenvector is orthogonal to those of the top five."""
    values, vectors = torch.linalg.eigh(BASE)
    inner = vectors[:, values.abs() < 1][:, 40]
    return BASE + height * torch.outer(inner, inner)


@pytest.mark.parametrize("random", [0.0, tracking.RANDOM])
def test_an_eigenvalue_that_rises_from_below(random, monkeypatch):
    """It is found by the next search of the complement at the latest; before that the list is not called complete.

    Without a random part in its starts no other search can see it.
    """
    monkeypatch.setattr(tracking, "RANDOM", random)
    track = Tracking(5, 1e-3)
    assert search(track, BASE).complete
    assert search(track, BASE).complete is None
    matrix, missed = risen(5.5), 0
    for step in range(2, EVERY + 1):
        pairs = search(track, matrix)
        right = bool(((pairs.values.sort().values - torch.tensor([-8.0, 5.0, 5.5, 6.0, 10.0])).abs() < 0.6).all())
        listed = bool(((pairs.values - 5.5).abs() < 0.6).any()) and right
        missed += not listed
        assert pairs.complete is not True or listed
        if step == EVERY:
            assert pairs.complete
            assert_right(pairs, matrix)
    assert random or missed == EVERY - 2
    assert not random or missed == 0  # of this matrix: it grew out of the random part


def test_copies_of_an_eigenvalue_stay_listed():
    """Also where the sum of their eigenvectors would show one of them alone."""
    spectrum = np.array([7.0, 5.0, 5.0, 5.0, 4.0, *SPECTRUM[5:]])
    matrix, track, turn = with_spectrum(spectrum), Tracking(5, 1e-3), rotation(1e-3)
    for step in range(EVERY):
        pairs = search(track, matrix)
        assert_right(pairs, matrix)
        assert (pairs.complete is None) == (step > 0)
        matrix = turn @ matrix @ turn.T
    assert apart(torch.tensor([7.0, 5.0, 5.0, 4.99, 4.0])).tolist() == [
        [1, 1, 0, 0, 1],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
    ]


def test_a_jump_is_searched_at_once():
    """One of the values, and one of the vectors alone."""
    track = Tracking(5, 1e-3)
    search(track, BASE)
    pairs = search(track, 1.5 * BASE)
    assert pairs.complete
    assert_right(pairs, 1.5 * BASE)
    assert search(track, 1.5 * BASE).complete is None
    values, vectors = torch.linalg.eigh(BASE)
    order = values.abs().argsort(descending=True)
    swapped = values.clone()
    swapped[order[4]], swapped[order[9]] = values[order[9]], values[order[4]]
    other = 1.5 * (vectors * swapped) @ vectors.T
    pairs = search(track, other)
    assert pairs.complete
    assert_right(pairs, other)


def test_more_and_fewer_pairs():
    """More are searched for afresh beside the old ones, fewer start from the first of them."""
    track = Tracking(3, 1e-3)
    search(track, BASE)
    track.k = 5
    pairs = search(track, BASE)
    assert pairs.complete
    assert_right(pairs, BASE)
    track.k = 2
    pairs = search(track, BASE)
    assert pairs.complete is None
    assert_right(pairs, BASE, 2)


def test_a_short_budget_is_kept_and_the_search_stays_due():
    track = Tracking(5, 1e-3)
    pairs = search(track, BASE, most=8)
    assert not pairs.converged
    assert pairs.complete is None
    assert track.due
    for _ in range(6):
        pairs = search(track, BASE, most=14)
    assert_right(pairs, BASE)


def test_a_matrix_that_was_not_finite_is_begun_afresh():
    track = Tracking(5, 1e-3)
    search(track, BASE)
    pairs = search(track, BASE * torch.nan)
    assert not pairs.converged
    pairs = search(track, BASE)
    assert pairs.complete
    assert_right(pairs, BASE)


def test_the_same_seed_gives_the_same_numbers():
    turn = rotation(0.01)
    runs = []
    for _ in range(2):
        track, matrix, found = Tracking(5, 1e-3), BASE, []
        for _ in range(3):
            found.append(search(track, matrix).values)
            matrix = turn @ matrix @ turn.T
        runs.append(torch.stack(found))
    assert torch.equal(*runs)


@pytest.mark.parametrize("n", [6, 9])
def test_small_matrices(n):
    """All of the space is in the basis, so nothing can be missed."""
    matrix = with_spectrum([*TOP, 0.5, 0.25, 0.1, 0.0][:n])
    track = Tracking(5, 1e-3)
    for _ in range(3):
        pairs = search(track, matrix)
        assert_right(pairs, matrix)
