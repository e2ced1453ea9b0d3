"""Saliencies of Optimal Brain Damage and Surgeon: closed forms for a quadratic loss, and the example on digits."""

import numpy as np
import pytest
import torch
from helpers import seeded, with_spectrum

from scripts.examples.pruning import METHODS, damage, line, main, prune, surgeon, surgery
from spectra.krylov.solve import solve

N = 12


@pytest.fixture
def quadratic() -> tuple[torch.Tensor, torch.Tensor]:
    """The loss (w - w*)'H(w - w*)/2: its H, and its minimum w*."""
    return with_spectrum(np.linspace(0.5, 4, N)), torch.randn(N, generator=seeded(1), dtype=torch.float64)


def loss(matrix, minimum, weights) -> float:
    return ((weights - minimum) @ matrix @ (weights - minimum)).item() / 2


def constrained_minimum(matrix, minimum, gone) -> torch.Tensor:
    """The minimum with these weights at zero, by its conditions with Lagrange multipliers, in NumPy."""
    rows = np.eye(N)[list(gone)]
    system = np.block([[matrix.numpy(), rows.T], [rows, np.zeros((len(gone), len(gone)))]])
    right = np.concatenate([matrix.numpy() @ minimum.numpy(), np.zeros(len(gone))])
    return torch.as_tensor(np.linalg.solve(system, right)[:N])


def test_damage_is_the_rise_of_the_loss(quadratic):
    matrix, minimum = quadratic
    for index, rise in enumerate(damage(minimum, matrix.diagonal()).tolist()):
        weights = minimum.clone()
        weights[index] = 0
        assert loss(matrix, minimum, weights) == pytest.approx(rise)


def test_surgeon_is_the_rise_of_the_loss_where_others_make_up_for_it(quadratic):
    """By inverse products, a column of the identity each."""
    matrix, minimum = quadratic
    columns = solve(matrix, torch.eye(N, dtype=torch.float64), tolerance=1e-12).x
    rises = surgeon(minimum, columns.diagonal())
    for index, rise in enumerate(rises.tolist()):
        best = constrained_minimum(matrix, minimum, [index])
        assert loss(matrix, minimum, best) == pytest.approx(rise)
        moved = minimum - minimum[index] / columns[index, index] * columns[:, index]
        torch.testing.assert_close(moved, best, rtol=0, atol=1e-9)
    assert (rises <= damage(minimum, matrix.diagonal())).all()


def test_surgery_ends_at_the_constrained_minimum(quadratic):
    """Whatever the order in which weights went, and in two steps as in one."""
    matrix, minimum = quadratic
    everything = torch.ones(N, dtype=torch.bool)
    weights, alive = surgery(minimum, matrix, everything, 5)
    assert alive.sum() == N - 5
    assert not weights[~alive].any()
    gone = (~alive).nonzero().flatten().tolist()
    torch.testing.assert_close(weights, constrained_minimum(matrix, minimum, gone), rtol=0, atol=1e-10)
    halfway = surgery(minimum, matrix, everything, 2)
    again = surgery(halfway[0], matrix, halfway[1], 3)
    torch.testing.assert_close(again[0], weights, rtol=0, atol=1e-10)
    assert torch.equal(again[1], alive)


def test_each_method_takes_the_weights_that_it_finds_least(quadratic):
    matrix, minimum = quadratic
    everything, taken = torch.ones(N, dtype=torch.bool), {}
    everything[0] = False
    for method in METHODS:
        weights, alive = prune(minimum, matrix, everything, 4, method)
        assert alive.sum() == N - 5
        assert not alive[0]
        taken[method] = loss(matrix, minimum, weights)
        if method != "surgeon":
            ranks = minimum.abs() if method == "magnitude" else minimum.square() * matrix.diagonal()
            assert ranks[alive].min() >= ranks[1:][~alive[1:]].max()
            torch.testing.assert_close(weights[alive], minimum[alive])
    assert taken["surgeon"] < min(taken["magnitude"], taken["damage"])


def test_digits(capsys):
    """At the sparsity where it matters, curvature keeps more than magnitude does."""
    rows = main(samples=100, width=3, sparsities=(0.6,), seeds=2, retraining=10)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-len(rows) :] == [line(row) for row in rows]
    assert "off by" in printed
    found = {(row.method, row.sparsity): row for row in rows}
    assert set(found) == {(method, sparsity) for method in METHODS for sparsity in (0.6,)}
    assert found["surgeon", 0.6].accuracy > found["damage", 0.6].accuracy
    assert found["surgeon", 0.6].accuracy > found["magnitude", 0.6].accuracy
    for row in rows:
        assert 5 < row.accuracy <= 100
        assert row.retrained > 50
