"""The example of Newton's method: every method goes down, and Newton's arrive in fewer iterations."""

import pytest
import torch
from torch import nn

from scripts.examples.newton import DECAY, Objective, damped_newton, line, main


def test_newton_takes_fewer_iterations(capsys):
    rows = {row.method: row for row in main(samples=60, width=4, slope=1e-4, most=100)}
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == [line(row) for row in rows.values()]
    start = torch.log(torch.tensor(10.0)).item()
    assert all(row.loss < start / 4 for row in rows.values())
    newton = [rows[name] for name in ("Newton-CG", "trust-ncg", "damped")]
    assert all(row.slope <= 1e-4 for row in newton)
    assert all(row.products > 0 for row in newton)
    assert max(row.iterations for row in newton) < rows["L-BFGS-B"].iterations
    assert rows["gradient descent"].slope > 1e-4
    assert not rows["gradient descent"].products


@pytest.fixture
def objective() -> Objective:
    """Softmax regression, whose loss with weight decay is convex."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=draw, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Objective(nn.Linear(3, 4).double(), x, torch.randint(4, (30,), generator=draw))


def test_value_gradient_and_products_are_those_of_one_function(objective):
    weights = torch.linspace(-1, 1, 16, dtype=torch.float64)

    def loss(w):
        logits = objective.images @ w[:12].view(4, 3).T + w[12:]
        return nn.functional.cross_entropy(logits, objective.labels) + DECAY / 2 * w.square().sum()

    value, gradient = objective.value_and_gradient(weights)
    assert value == pytest.approx(loss(weights).item())
    torch.testing.assert_close(gradient, torch.func.grad(loss)(weights))
    vector = torch.arange(16, dtype=torch.float64)
    product = torch.tensor(objective.product_for_scipy(weights.numpy(), vector.numpy()))
    torch.testing.assert_close(product, torch.autograd.functional.hessian(loss, weights) @ vector)


def test_damped_newton_ends_at_the_one_minimum(objective):
    iterations, weights = damped_newton(objective, torch.zeros(16, dtype=torch.float64), 1e-7, 50)
    assert iterations < 30
    assert objective.value_and_gradient(weights)[1].norm() <= 1e-7
    _, other = damped_newton(objective, torch.ones(16, dtype=torch.float64), 1e-7, 50)
    torch.testing.assert_close(weights, other, rtol=0, atol=1e-3)
