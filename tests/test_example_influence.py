"""The example of influence: its predictions against closed forms, derivatives of training, and training again."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

import spectra
from scripts.examples import influence
from scripts.examples.influence import LOGISTIC, RIDGE, Digits, Trained, main, most_and_random

DECAY = 0.05


def slope_of(fit, data):
    """The gradient of the held-out loss, by autograd."""
    leaf, y = fit.weights.clone().requires_grad_(), fit.regression.targets(data.labels_test)
    return torch.autograd.grad(fit.regression.loss(data.x_test @ leaf.T, y).mean(), leaf)[0]


@pytest.mark.parametrize("regression", [RIDGE, LOGISTIC], ids=lambda r: r.name)
def test_training_ends_at_the_minimum(regression):
    """By the gradient of autograd, and the network that is looked at has these weights and PyTorch's loss."""
    data = Digits.drawn(30, 10)
    fit = Trained.on(regression, data, DECAY)
    leaf = fit.weights.clone().requires_grad_()
    whole = regression.loss(fit.x @ leaf.T, fit.y).mean() + DECAY * leaf.square().sum() / 2
    assert torch.autograd.grad(whole, leaf)[0].norm() < 1e-11
    problem = fit.hessian.problem
    held = parameters_to_vector(problem.model.parameters()).detach()
    torch.testing.assert_close(influence.matrix(held), fit.weights)
    torch.testing.assert_close(influence.vector(fit.weights), held)
    assert spectra.mean_loss(problem) == pytest.approx(regression.loss(fit.x @ fit.weights.T, fit.y).mean().item())


@pytest.mark.parametrize("regression", [RIDGE, LOGISTIC], ids=lambda r: r.name)
def test_first_order_is_the_derivative_of_training(regression):
    """The slope of the held-out loss by the weight of an example, by training with a little more and less of it."""
    data = Digits.drawn(40, 20)
    fit = Trained.on(regression, data, DECAY)
    predicted, _ = fit.first_order(slope_of(fit, data), DECAY)
    y_test = regression.targets(data.labels_test)
    for i in (0, 17):
        moved = [fit.reweighted(i, weight) for weight in (1 - 1e-3, 1 + 1e-3)]
        less, more = (regression.loss(data.x_test @ weights.T, y_test).mean().item() for weights in moved)
        assert predicted[i].item() == pytest.approx((less - more) / 2e-3, rel=1e-4, abs=1e-9)


def test_leverage_is_exact_for_ridge_regression():
    """By Sherman and Morrison in NumPy, and by the normal equations without the example."""
    data = Digits.drawn(40, 20)
    fit = Trained.on(RIDGE, data, DECAY)
    moves, _ = fit.with_leverage(torch.tensor([0, 17]))
    z, t, w, count = fit.x.numpy(), fit.y.numpy()[:, 0], fit.weights.numpy()[0], len(fit.x)
    inverse = np.linalg.inv(2 * z.T @ z / count + DECAY * np.eye(z.shape[1]))
    for move, i in zip(moves, (0, 17), strict=True):
        residual = z[i] @ w - t[i]
        leverage = 2 * z[i] @ inverse @ z[i] / count
        np.testing.assert_allclose(move.numpy()[0], inverse @ z[i] * 2 * residual / count / (1 - leverage), atol=1e-10)
        rest = np.arange(count) != i
        normal = 2 * z[rest].T @ z[rest] / count + DECAY * np.eye(z.shape[1])
        alone = np.linalg.solve(normal, 2 * z[rest].T @ t[rest] / count)
        np.testing.assert_allclose(w + move.numpy()[0], alone, atol=1e-10)


def test_the_error_of_first_order_falls_as_one_over_n():
    """With every example there k times the matrix is the same, and a copy has a k-th of the leverage."""
    data, errors = Digits.drawn(30, 20), []
    for k in (2, 4, 8):
        many = Digits(data.x.repeat(k, 1), data.labels.repeat(k), data.x_test, data.labels_test)
        fit = Trained.on(RIDGE, many, DECAY)
        slope = slope_of(fit, many)
        predicted, move = fit.first_order(slope, DECAY)[0][3].item(), fit.with_leverage(torch.tensor([3]))[0][0]
        errors.append(1 - predicted / (move * slope).sum().item())
    assert np.log2(np.array(errors[:-1]) / errors[1:]) == pytest.approx([1, 1], abs=1e-6)


def test_the_table(capsys):
    rows = main(samples=100, left_out=6, decay=DECAY, held_out=100)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
    table = {(row.regression, row.prediction): row for row in rows}
    for name in ("ridge", "logistic"):
        plain, damped, exact = (table[name, how] for how in ("first order", "the same, damping x 10", "with leverage"))
        assert plain.correlation > 0.9
        assert damped.slope < plain.slope < exact.slope
        assert exact.correlation > 0.99
        assert exact.slope == pytest.approx(1, abs=0.1)
        assert exact.error < plain.error < damped.error
        assert plain.products < exact.products / 2
    assert table["ridge", "with leverage"].error < 1e-9


def test_most_and_random():
    sizes = torch.tensor([0.0, -5, 1, 4, 0.5, 0.2])
    chosen = most_and_random(sizes, 4).tolist()
    assert chosen[:2] == [1, 3]
    assert len(set(chosen)) == 4
