"""The example of influence: its predictions against closed forms, derivatives of training, and training again."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

import spectra
from scripts.examples import influence
from scripts.examples.influence import (
    LOGISTIC,
    RIDGE,
    Digits,
    first_order,
    hessian_of,
    main,
    most_and_random,
    with_leverage,
)

DECAY = 0.05


def trained(regression, data):
    x, y = data.x, regression.targets(data.labels)
    start = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype)
    return x, y, regression.train(x, y, torch.ones(len(x), dtype=x.dtype), DECAY, start)


def slope_of(regression, data, weights):
    """The gradient of the held-out loss, by autograd."""
    leaf = weights.clone().requires_grad_()
    y = regression.targets(data.labels_test)
    return torch.autograd.grad(regression.loss(data.x_test @ leaf.T, y).mean(), leaf)[0]


@pytest.mark.parametrize("regression", [RIDGE, LOGISTIC], ids=lambda r: r.name)
def test_training_ends_at_the_minimum(regression):
    """By the gradient of autograd, and the network that is looked at has these weights and PyTorch's loss."""
    data = Digits.drawn(30, 10)
    x, y, weights = trained(regression, data)
    leaf = weights.clone().requires_grad_()
    whole = regression.loss(x @ leaf.T, y).mean() + DECAY * leaf.square().sum() / 2
    assert torch.autograd.grad(whole, leaf)[0].norm() < 1e-11
    problem = hessian_of(regression, data, weights).problem
    held = parameters_to_vector(problem.model.parameters()).detach()
    torch.testing.assert_close(influence.matrix(held), weights)
    torch.testing.assert_close(influence.vector(weights), held)
    assert spectra.mean_loss(problem) == pytest.approx(regression.loss(x @ weights.T, y).mean().item())


@pytest.mark.parametrize("regression", [RIDGE, LOGISTIC], ids=lambda r: r.name)
def test_first_order_is_the_derivative_of_training(regression):
    """The slope of the held-out loss by the weight of an example, by training with a little more and less of it."""
    data = Digits.drawn(40, 20)
    x, y, weights = trained(regression, data)
    slope = slope_of(regression, data, weights)
    predicted, _ = first_order(regression, hessian_of(regression, data, weights), weights, slope, x, y, DECAY)
    y_test = regression.targets(data.labels_test)
    for i in (0, 17):
        ends = []
        for less in (1e-3, -1e-3):
            kept = torch.ones(len(x), dtype=x.dtype)
            kept[i] -= less
            moved = regression.train(x, y, kept, DECAY, weights)
            ends.append(regression.loss(data.x_test @ moved.T, y_test).mean().item())
        assert predicted[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-4, abs=1e-9)


def test_leverage_is_exact_for_ridge_regression():
    """By Sherman and Morrison in NumPy, and by the normal equations without the example."""
    data = Digits.drawn(40, 20)
    x, y, weights = trained(RIDGE, data)
    moves, _ = with_leverage(RIDGE, hessian_of(RIDGE, data, weights), weights, x, y, DECAY, torch.tensor([0, 17]))
    z, t, count = x.numpy(), y.numpy()[:, 0], len(x)
    inverse = np.linalg.inv(2 * z.T @ z / count + DECAY * np.eye(z.shape[1]))
    for move, i in zip(moves, (0, 17), strict=True):
        residual = z[i] @ weights.numpy()[0] - t[i]
        leverage = 2 * z[i] @ inverse @ z[i] / count
        np.testing.assert_allclose(move.numpy()[0], inverse @ z[i] * 2 * residual / count / (1 - leverage), atol=1e-10)
        rest = np.arange(count) != i
        normal = 2 * z[rest].T @ z[rest] / count + DECAY * np.eye(z.shape[1])
        alone = np.linalg.solve(normal, 2 * z[rest].T @ t[rest] / count)
        np.testing.assert_allclose(weights.numpy()[0] + move.numpy()[0], alone, atol=1e-10)


def test_the_error_of_first_order_falls_as_one_over_n():
    """With every example there k times the matrix is the same, and a copy has a k-th of the leverage."""
    data, errors = Digits.drawn(30, 20), []
    for k in (2, 4, 8):
        many = Digits(data.x.repeat(k, 1), data.labels.repeat(k), data.x_test, data.labels_test)
        x, y, weights = trained(RIDGE, many)
        hessian = hessian_of(RIDGE, many, weights)
        slope = slope_of(RIDGE, many, weights)
        predicted = first_order(RIDGE, hessian, weights, slope, x, y, DECAY)[0][3].item()
        move = with_leverage(RIDGE, hessian, weights, x, y, DECAY, torch.tensor([3]))[0][0]
        errors.append(1 - predicted / (move * slope).sum().item())
    assert np.log2(np.array(errors[:-1]) / errors[1:]) == pytest.approx([1, 1], abs=1e-6)


def test_the_table(capsys):
    rows = main(samples=100, left_out=10, decay=DECAY, held_out=100)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
    table = {(row.regression, row.prediction): row for row in rows}
    for name in ("ridge", "logistic"):
        plain, damped, exact = (table[name, how] for how in ("first order", "the same, damping x 10", "with leverage"))
        assert plain.correlation > 0.9
        assert damped.slope < plain.slope < exact.slope
        assert exact.correlation > 0.99
        assert exact.slope == pytest.approx(1, abs=0.05)
        assert exact.error < plain.error < damped.error
        assert plain.products < exact.products / 2
    assert table["ridge", "with leverage"].error < 1e-9


def test_most_and_random():
    sizes = torch.tensor([0.0, -5, 1, 4, 0.5, 0.2])
    chosen = most_and_random(sizes, 4).tolist()
    assert chosen[:2] == [1, 3]
    assert len(set(chosen)) == 4
