"""The example of a restricted machine of digits: it learns, and samples agree with what is exact."""

import pytest

from scripts.examples.boltzmann import binary_digits, main, train


def test_the_machine_learns():
    images, likelihoods = binary_digits(), []
    train(
        images,
        4,
        30,
        progress=lambda step, machine, gradient: likelihoods.append(machine.negative_log_likelihood(images)),
    )
    assert likelihoods[0] == pytest.approx(24.43, abs=0.01)  # as of independent pixels
    assert likelihoods[-1] < 23


def test_the_example(capsys):
    rows = main(hidden=4, steps=30, samples=40)
    assert len(rows) == 6
    assert rows[0].exact > 1
    assert min(row.exact for row in rows) < -1e-3  # hidden units leave directions of negative curvature
    assert max(abs(row.deviation) for row in rows) < 4
    assert all(0 < row.standard_error < 0.2 * abs(row.exact) for row in rows)
    assert "64 chains of 40, 10 sweeps apart after 1,000 sweeps" in capsys.readouterr().out
