"""Laplace's evidence: exact for Bayesian linear regression, and what the example of it is to show."""

import math

import pytest
import torch
from helpers import seeded
from torch import nn
from torch.func import functional_call, jacrev

import spectra
from scripts.examples import evidence
from scripts.examples.evidence import log_evidence

EXAMPLES, PARAMETERS = 60, 24


@pytest.fixture(scope="module")
def regression():
    """Inputs of very different sizes, and targets of a linear model with noise."""
    draw = seeded()
    x = torch.randn(EXAMPLES, PARAMETERS, dtype=torch.float64, generator=draw) * torch.logspace(0, -3, PARAMETERS)
    truth = torch.randn(PARAMETERS, 1, dtype=torch.float64, generator=draw)
    return x, x @ truth + 0.5**0.5 * torch.randn(EXAMPLES, 1, dtype=torch.float64, generator=draw)


def measured(regression, decay: float, **settings):
    """Laplace's log evidence of the least squares fit with this weight decay, and its error."""
    x, y = regression
    linear = nn.Linear(PARAMETERS, 1, bias=False, dtype=torch.float64)
    curvature = 2 / EXAMPLES * x.T @ x + decay * torch.eye(PARAMETERS)
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.solve(curvature, 2 / EXAMPLES * x.T @ y).T)
    regularised = nn.functional.mse_loss(linear(x), y).item() + decay / 2 * linear.weight.square().sum().item()
    found = spectra.density(linear, nn.MSELoss(), (x, y), curvature="ggn", dtype="float64", **settings)
    determinant = spectra.log_determinant(found.measure(), decay, semidefinite=True)
    value = log_evidence(regularised, EXAMPLES, decay, PARAMETERS, determinant.value)
    # The squared error is -log of a Gaussian of variance 1/2, but for this constant.
    return value - EXAMPLES / 2 * math.log(math.pi), determinant.standard_error / 2, determinant.quadrature_error / 2


def closed_form(regression, decay: float) -> float:
    """The log density of the targets, Gaussian of variance 1/2 plus what the prior of the weights gives."""
    x, y = regression
    covariance = 0.5 * torch.eye(EXAMPLES) + x @ x.T / (EXAMPLES * decay)
    return torch.distributions.MultivariateNormal(torch.zeros(EXAMPLES).double(), covariance).log_prob(y[:, 0]).item()


@pytest.mark.parametrize("decay", [1e-6, 1e-3, 1.0])
def test_it_is_exact_for_linear_regression(regression, decay):
    value, error, quadrature_error = measured(regression, decay, steps=PARAMETERS, probes=2)
    assert value == pytest.approx(closed_form(regression, decay), rel=1e-10)
    assert error + quadrature_error < 1e-9


@pytest.mark.parametrize("decay", [1e-4, 1e-2, 1.0])
def test_an_estimate_is_as_far_off_as_it_says(regression, decay):
    truth = closed_form(regression, decay)
    found = [measured(regression, decay, steps=6, probes=4, seed=seed) for seed in range(12)]
    assert sum(abs(value - truth) <= 2 * error + rest for value, error, rest in found) >= 11


def test_the_example_prefers_the_decay_that_generalises(capsys):
    decays = (1e-5, 2e-3, 1e-1)
    rows = evidence.main(samples=120, width=4, decays=decays, steps=20, probes=8)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + len(decays)
    few, best, many = rows
    assert [row.decay for row in rows] == list(decays)
    assert best.evidence == max(row.evidence for row in rows)
    assert best.held_out == min(row.held_out for row in rows)
    assert few.effective > best.effective > many.effective
    assert few.loss < best.loss < many.loss
    assert best.evidence - many.evidence > 4 * math.hypot(best.evidence_error, many.evidence_error)


def test_the_example_is_laplaces_formula():
    """By dense derivatives, in MacKay's form: a sum over examples, alpha = N X, and the determinant as it stands."""
    images, labels = evidence.digits()
    data, decay = (images[:100].double(), labels[:100]), 1e-2
    network = evidence.trained(4, data, decay)
    row = evidence.row_of(network, data, data, decay, steps=30, probes=8)
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    theta = torch.cat([p.flatten() for p in parameters.values()])
    gradient = torch.autograd.grad(
        nn.functional.cross_entropy(network(data[0]), data[1]) + decay / 2 * evidence.square(network),
        list(network.parameters()),
    )
    assert max(g.abs().max() for g in gradient) < 1e-6

    outputs = functional_call(network, parameters, data[0])
    jacobian = jacrev(lambda p: functional_call(network, p, data[0]))(parameters)
    jacobian = torch.cat([j.flatten(2) for j in jacobian.values()], dim=2)  # (examples, classes, parameters)
    p = outputs.softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    whole = torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian)  # N G
    alpha, n = len(data[1]) * decay, len(theta)
    sum_loss = nn.functional.cross_entropy(outputs, data[1], reduction="sum")
    truth = (
        -sum_loss
        - alpha / 2 * theta @ theta
        + n / 2 * math.log(alpha)
        - torch.linalg.slogdet(whole + alpha * torch.eye(n)).logabsdet / 2
    ).item()
    assert abs(row.evidence - truth) <= 3 * row.evidence_error + row.quadrature_error
    assert row.evidence_error < 0.05 * abs(truth)
    eigenvalues = torch.linalg.eigvalsh(whole).clamp(min=0)
    assert row.effective == pytest.approx(
        (eigenvalues / (eigenvalues + alpha)).sum().item(), abs=3 * row.effective_error
    )
