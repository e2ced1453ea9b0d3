"""Boltzmann machines: closed forms, a likelihood by brute force with autograd, and what may not change a matrix."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from boltzmann import LOW, dense, draw, examples, log_probabilities, loss, machine, restricted, states
from networks import DEVICES
from torch.autograd.functional import hessian, jacobian

import spectra
from spectra.errors import ArgumentError, SpectraError
from spectra.product_checks import check_operator
from spectra.systems import enumeration, pair_features
from spectra.systems.boltzmann import BoltzmannMachine
from spectra.systems.restricted import RestrictedBoltzmannMachine

FORMS = [("binary", "plus", 0), ("binary", "minus", 2), ("spin", "plus", 2), ("spin", "minus", 0)]


def close(found, expected, tolerance=1e-13):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def tensor(numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("sign", ["plus", "minus"])
def test_two_spins(sign):
    """p is exp(-+ w s1 s2 / T) / 4 cosh(w / T): <s1 s2> = -+ tanh(w / T), with the variance 1 - tanh^2."""
    w, temperature, factor = 0.7, 1.3, -1 if sign == "plus" else 1
    pair = BoltzmannMachine(tensor([[0, w], [w, 0]]), temperature=temperature, energy_sign=sign, units="spin")
    tanh = math.tanh(w / temperature)
    variance = 1 - tanh**2
    assert pair.correlations().item() == pytest.approx(factor * tanh, rel=1e-14)
    assert pair.correlation_derivative(torch.ones(1).double()).item() == pytest.approx(factor * variance / temperature)
    assert dense(pair.hessian()).item() == pytest.approx(variance / temperature**2, rel=1e-14)
    data = torch.tensor([[1, 1], [1, -1], [1, 1]])
    expected = math.log(4 * math.cosh(w / temperature)) - factor * w / temperature / 3
    assert pair.negative_log_likelihood(data).item() == pytest.approx(expected, rel=1e-14)
    assert pair.gradient(data).item() == pytest.approx(-factor * (1 / 3 - factor * tanh) / temperature, rel=1e-14)


def test_two_units_with_biases():
    """Four states, by hand: exp(0), exp(-b2), exp(-b1), exp(-b1 - b2 - w)."""
    b1, b2, w = 0.3, -0.5, 0.8
    pair = BoltzmannMachine(tensor([[0, w], [w, 0]]), tensor([b1, b2]))
    weights = [1, math.exp(-b2), math.exp(-b1), math.exp(-b1 - b2 - w)]
    p = [weight / sum(weights) for weight in weights]
    first, second, both = p[2] + p[3], p[1] + p[3], p[3]
    close(pair.correlations(), tensor([first, second, both]))
    means = tensor([first, second, both])
    together = tensor([[first, both, both], [both, second, both], [both, both, both]])
    close(dense(pair.hessian()), together - means[:, None] * means)


def test_independent_units():
    """Without weights <s_i s_j> = m_i m_j, and all covariances follow from means and variances of single units."""
    biases = draw(4, seed=3)
    alone = BoltzmannMachine(torch.zeros(4, 4).double(), biases)
    mean = torch.sigmoid(-biases)
    subsets = [*([i] for i in range(4)), *(list(pair) for pair in combinations(range(4), 2))]

    def expected(units) -> float:
        return math.prod(mean[i].item() for i in units)

    close(alone.correlations(), tensor([expected(units) for units in subsets]))
    covariances = [[expected({*a, *b}) - expected(a) * expected(b) for b in subsets] for a in subsets]
    close(dense(alone.hessian()), tensor(covariances))


def test_high_temperature():
    """Spins without biases: T^2 H tends to the identity, and <s_i s_j> to -w_ij / T, with errors of order 1 / T^2."""
    for temperature in (100.0, 1000.0):
        hot = machine(6, biased=False, temperature=temperature, units="spin")
        apart = dense(hot.hessian()) * temperature**2 - torch.eye(15, dtype=torch.float64)
        # to first order in 1 / T, <s_i s_j s_j s_k> is <s_i s_k>
        pairs = list(combinations(range(6), 2))
        first = torch.zeros(15, 15, dtype=torch.float64)
        for a, one in enumerate(pairs):
            for b, other in enumerate(pairs):
                if len(rest := {*one} ^ {*other}) == 2:
                    first[a, b] = -hot.weights[tuple(rest)] / temperature
        assert (apart - first).abs().max() < 30 / temperature**2
        assert (hot.correlations() + hot.parameters / temperature).abs().max() < 30 / temperature**2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("units", "sign", "hidden"), FORMS)
def test_likelihood_gradient_and_hessian(units, sign, hidden, biased, device):
    options = {"hidden": hidden, "temperature": 1.7, "energy_sign": sign, "units": units}
    own = machine(5, biased, device=device, **options)
    brute = machine(5, biased, **options)
    data = examples(7, 5 - hidden, LOW[units])

    def f(parameters):
        return loss(brute, data, parameters)

    close(own.negative_log_likelihood(data).cpu(), f(brute.parameters))
    close(own.gradient(data).cpu(), jacobian(f, brute.parameters))
    close(dense(own.hessian(data)), hessian(f, brute.parameters))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's jvp uses it
@pytest.mark.parametrize(("units", "sign", "hidden"), FORMS)
def test_derivative_of_correlations(units, sign, hidden):
    """R{p_ij} against the forward derivative of p_ij by brute force, and against a difference quotient."""
    own = machine(5, hidden=hidden, temperature=0.8, energy_sign=sign, units=units)
    every, direction = states(5, LOW[units]), draw(15, seed=8)
    first, second = torch.triu_indices(5, 5, 1)
    features = torch.cat([every, every[:, first] * every[:, second]], dim=1)

    def correlations(parameters):
        return log_probabilities(own, parameters).exp() @ features

    value, derivative = torch.func.jvp(correlations, (own.parameters,), (direction,))
    close(own.correlations(), value)
    close(own.correlation_derivative(direction), derivative)
    step = 1e-5

    def moved(by):
        return own.at(own.parameters + by * direction).correlations()

    close((moved(step) - moved(-step)) / (2 * step), derivative, tolerance=1e-8)


@pytest.mark.parametrize("of", [machine(4), machine(4, biased=False, hidden=1), machine(1), restricted()])
def test_the_machine_with_other_parameters(of):
    moved = of.at(2 * of.parameters)
    close(moved.parameters, 2 * of.parameters, tolerance=0)
    close(moved.weights, 2 * of.weights, tolerance=0)
    twice = (given := of.parameters.clone()) * 2
    kept = of.at(given)
    given.mul_(2)  # as an optimiser changes it in place
    close(2 * kept.parameters, twice, tolerance=0)
    with pytest.raises(ArgumentError, match="`parameters` of shape"):
        of.at(of.parameters[1:])


@pytest.mark.parametrize("make", [machine, restricted])
def test_parameters_may_require_gradients(make):
    """Autograd then differentiates the likelihood; products and eigenvalues carry no graph."""
    data = examples(6, 5)
    parameters = make().parameters.requires_grad_()
    own = make().at(parameters)
    (found,) = torch.autograd.grad(own.negative_log_likelihood(data), parameters)
    close(found, make().gradient(data))
    pairs = spectra.eigenpairs(own.hessian(data), 2, tolerance=1e-9)
    assert not pairs.values.requires_grad
    assert not pairs.vectors.requires_grad
    close(pairs.values, spectra.eigenpairs(make().hessian(data), 2, tolerance=1e-9).values)


def test_sign_of_the_energy():
    """The minus sign with negated weights is the same machine: R{p} changes its sign, the Hessian does not."""
    plus, data, direction = machine(5, hidden=2), examples(7, 3), draw(15, seed=8)
    minus = BoltzmannMachine(-plus.weights, -plus.biases, hidden=2, energy_sign="minus")
    close(minus.correlations(), plus.correlations(), tolerance=0)
    close(minus.gradient(data), -plus.gradient(data), tolerance=0)
    close(minus.correlation_derivative(direction), -plus.correlation_derivative(direction), tolerance=0)
    close(dense(minus.hessian(data)), dense(plus.hessian(data)), tolerance=0)


def test_a_bias_is_a_weight_to_a_unit_that_is_always_on():
    """The machine with one more visible unit, given that it is on: a clamped phase of the larger machine."""
    own = machine(4, seed=2)
    weights = torch.zeros(5, 5, dtype=torch.float64)
    weights[0, 1:] = weights[1:, 0] = own.biases
    weights[1:, 1:] = own.weights
    explicit = BoltzmannMachine(weights, hidden=4)
    close(explicit.parameters, own.parameters, tolerance=0)
    clamped = explicit._clamped(torch.ones(1, 1))
    close(clamped.means(), own.correlations())
    close(clamped.times(torch.eye(10, dtype=torch.float64)), dense(own.hessian()))


def test_without_hidden_units_the_hessian_is_the_fisher_matrix():
    """Independent of the data, positive semidefinite, and the mean over states of the gradients' outer products."""
    own = machine(5)
    matrix = dense(own.hessian())
    close(dense(own.hessian(examples(3, 5))), matrix, tolerance=0)
    gradients = torch.stack([own.gradient(row[None]) for row in states(5, 0)])
    p = log_probabilities(own, own.parameters).exp()
    close(gradients.T @ (p[:, None] * gradients), matrix)
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-15


def test_hidden_units_make_the_hessian_indefinite():
    values = torch.linalg.eigvalsh(dense(machine(6, hidden=3, seed=4).hessian(examples(9, 3))))
    assert values[0] < -0.01
    assert values[-1] > 0.1


@pytest.mark.parametrize("of", ["free", "hidden", "restricted"])
def test_an_operator_as_any_other(of):
    data = examples(9, 4)
    operator = {
        "free": lambda: machine(6).hessian(),
        "hidden": lambda: machine(6, hidden=2).hessian(data),
        "restricted": lambda: restricted(4, 3).hessian(data),
    }[of]()
    n = operator.shape[0]
    assert operator.shape == (n, n)
    assert operator.dtype == torch.float64
    matrix = dense(operator)
    close(matrix, matrix.T, tolerance=1e-15)
    vectors = draw(n, 3, seed=1)
    close(operator @ vectors, matrix @ vectors)
    close(operator @ vectors[:, 0], matrix @ vectors[:, 0])
    with pytest.raises(TypeError, match="float32"):
        operator @ vectors.float()
    assert check_operator(operator) < 1e-14
    found = spectra.eigenpairs(operator, 3)
    expected = torch.linalg.eigvalsh(matrix)
    close(found.values, expected[expected.abs().sort(descending=True).indices[:3]], tolerance=1e-4)
    close(spectra.xtrace(operator).value, matrix.trace().item(), tolerance=1e-12)


def test_blocks_of_states_change_nothing(monkeypatch):
    data, vectors = examples(9, 4), draw(21, 3, seed=1)
    whole = machine(6, hidden=2).hessian(data) @ vectors
    small = restricted(4, 3).hessian(data) @ vectors[:19]
    for module in (pair_features, enumeration):
        monkeypatch.setattr(module, "ENTRIES", 50)
    close(machine(6, hidden=2).hessian(data) @ vectors, whole)
    close(restricted(4, 3).hessian(data) @ vectors[:19], small)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sign", ["plus", "minus"])
def test_a_restricted_machine_is_a_machine_with_fewer_weights(sign, device):
    visible, hidden = 5, 3
    own = restricted(visible, hidden, temperature=1.3, energy_sign=sign, device=device)
    weights = torch.zeros(8, 8, dtype=torch.float64)
    weights[:visible, visible:] = own.weights.cpu()
    biases = torch.cat([own.visible_biases, own.hidden_biases]).cpu()
    whole = BoltzmannMachine(weights + weights.T, biases, hidden, 1.3, sign)
    place = {pair: index for index, pair in enumerate(combinations(range(9), 2))}
    columns = [0, *range(visible + 1, 9)]
    chosen = [place[i, j] if i < j else place[j, i] for i in range(visible + 1) for j in columns if (i, j) != (0, 0)]
    data = examples(7, visible)
    close(own.parameters.cpu(), whole.parameters[chosen], tolerance=0)
    close(own.correlations().cpu(), whole.correlations()[chosen])
    close(own.negative_log_likelihood(data).cpu(), whole.negative_log_likelihood(data))
    close(own.gradient(data).cpu(), whole.gradient(data)[chosen])
    close(dense(own.hessian(data)), dense(whole.hessian(data))[chosen][:, chosen])


def test_a_restricted_machine_without_weights():
    """Visible and hidden units are independent: log Z = sum of log(1 + exp(-b)), whatever their number."""
    biases, others = draw(64, seed=1), draw(10, seed=2)
    alone = RestrictedBoltzmannMachine(torch.zeros(64, 10, dtype=torch.float64), biases, others)
    v, h = torch.sigmoid(-biases), torch.sigmoid(-others)
    expected = torch.log1p(torch.exp(-biases)).sum() + torch.log1p(torch.exp(-others)).sum()
    close(alone.log_partition(), expected)
    close(alone.correlations(), torch.cat([h, torch.cat([v[:, None], v[:, None] * h], dim=1).flatten()]))


def wide(m=23, **options):
    return BoltzmannMachine(torch.zeros(m, m), **options)


W = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: wide().hessian(), "23 units: 8,388,608 states are too many .* use `sampled_hessian`"),
        (lambda: wide(22, hidden=20).hessian(examples(9, 2)), "20 hidden units for 9 examples: 9,437,184 states"),
        (lambda: RestrictedBoltzmannMachine(torch.zeros(9, 21), torch.zeros(9), torch.zeros(21)).log_partition(), "21"),
        (lambda: BoltzmannMachine(torch.zeros(2, 3)), r"`weights` of shape \(2, 3\): give a symmetric matrix"),
        (lambda: BoltzmannMachine(W.triu()), "symmetric"),
        (lambda: BoltzmannMachine(W + torch.eye(2)), "`weights`: the diagonal is not zero.*`biases`"),
        (lambda: BoltzmannMachine(W / 0), "`weights`: not all numbers are finite"),
        (lambda: BoltzmannMachine(W.long()), r"`weights` of shape \(2, 2\) and torch.int64"),
        (lambda: BoltzmannMachine(W, torch.zeros(3)), r"`biases` of shape \(3,\): give a tensor of shape \(2,\)"),
        (lambda: BoltzmannMachine(W, torch.zeros(2).double()), "`biases` of torch.float64"),
        (lambda: BoltzmannMachine(W, hidden=2), "`hidden` 2"),
        (lambda: BoltzmannMachine(W, temperature=0.0), "`temperature` 0"),
        (lambda: BoltzmannMachine(W, energy_sign="down"), "`energy_sign` 'down': expected one of plus, minus"),
        (lambda: BoltzmannMachine(W, units="real"), "`units` 'real': expected one of binary, spin"),
        (
            lambda: BoltzmannMachine(W, hidden=1).hessian(),
            "`data` None: a machine with hidden units needs visible states",
        ),
        (lambda: BoltzmannMachine(W).gradient(torch.zeros(3, 1)), r"`data` \(3, 1\): give a tensor \(N, 2\)"),
        (lambda: BoltzmannMachine(W).gradient(torch.full((3, 2), 0.5)), "`data`: it has values other than 0 and 1"),
        (
            lambda: BoltzmannMachine(W, units="spin").gradient(torch.zeros(3, 2)),
            "`data`: it has values other than -1 and 1",
        ),
        (lambda: BoltzmannMachine(W).sampled_hessian(chains=1), "`chains` 1"),
    ],
)
def test_errors(make, told):
    with pytest.raises(SpectraError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ArgumentError) == ("too many" not in str(caught.value))


def test_single_precision():
    data = examples(9, 4)
    for one in (machine(6, hidden=2), restricted(4, 3)):
        half = replace(
            one, **{name: getattr(one, name).float() for name in vars(one) if "weights" in name or "biases" in name}
        )
        operator = half.hessian(data)
        assert operator.dtype == torch.float32
        torch.testing.assert_close(dense(operator).double(), dense(one.hessian(data)), rtol=1e-5, atol=1e-6)
        sampled = half.sampled_hessian(data, chains=8, count=5)
        assert (sampled @ half.parameters).dtype == torch.float32
        assert sampled.standard_errors(half.parameters[:, None]).dtype == torch.float64
