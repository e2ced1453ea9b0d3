"""Forecasts against what methods then spend: products within a factor of two, and the bytes of their vectors."""

import gc
import math

import numpy as np
import pytest
import torch
from helpers import matrix, seeded, uniform, with_spectrum

from spectra.curvature.evaluation import cut_batches
from spectra.curvature.matrices import MATRICES
from spectra.curvature.operator import Curvature
from spectra.demo import mlp, train
from spectra.inputs.data import load_data
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.forecast import (
    PILOT,
    PRODUCTS,
    VectorMeter,
    forecast_eigenpairs,
    forecast_measure,
    forecast_trace,
    outline,
    products_needed,
    surrogate,
)
from spectra.krylov.lanczos import lanczos, random_start
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.xtrace import xtrace
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.problem import Problem


def marchenko_pastur(n: int = 400, ratio: float = 0.5) -> np.ndarray:
    samples = np.random.default_rng(0).normal(size=(int(n / ratio), n))
    return np.linalg.eigvalsh(samples.T @ samples / len(samples))


INDEX = np.arange(1, 401)
SPECTRA = {
    "0.7^i": 0.7**INDEX,
    "1/i": 1 / INDEX,
    "two levels": np.repeat([1.0, 3.0], 200),
    "low rank": np.concatenate([uniform(15, 0.5, 3), np.zeros(385)]),
    "outliers": np.concatenate([[50, 30, 20, 10, 8], marchenko_pastur()]),
    "marchenko-pastur": marchenko_pastur(),
    "decay": np.exp(-0.02 * INDEX),
    "network": np.concatenate([[40, 22, 15, 9, 5], -(uniform(130) ** 4), uniform(265, seed=1) ** 4]),
    "identity": np.ones(400),
}
NAMES = [*SPECTRA, "softmax", "multiple top", "strakos"]


def spectrum(name: str):
    return with_spectrum(SPECTRA[name]) if name in SPECTRA else matrix(name).matrix


@pytest.fixture(scope="module")
def digits():
    """The digits network as it was built and trained, on 500 examples."""
    data = load_data("digits", 500, 0)
    x, y = data.inputs.float(), data.targets
    networks = {}
    for name, trained, _ in train(x, y):
        networks[name] = mlp().eval()
        networks[name].load_state_dict(trained.state_dict())
    batches = cut_batches(x, y, torch.arange(len(y)), len(y))
    return {name: Problem(network, CrossEntropy(), batches) for name, network in networks.items()}


def seen(operator, seed: int = 1):
    return outline(lanczos(operator, random_start(operator, seeded(seed)), PILOT))


def usual(values) -> int:
    """The median: runs of `xtrace` from other seeds differ by up to three times."""
    return sorted(values)[2]


def assert_foretold(forecast, spent: int) -> None:
    assert forecast.products <= 2 * spent
    assert forecast.at_least or forecast.products >= spent / 2


@pytest.mark.sampled(8)
@pytest.mark.parametrize("k", [5, 10, 20])
@pytest.mark.parametrize("name", NAMES)
def test_products_of_eigenpairs_are_foretold(name, k):
    operator = spectrum(name)
    spent = eigenpairs(operator, k, generator=seeded()).products
    assert_foretold(forecast_eigenpairs(seen(operator), k, generator=seeded()), spent)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NAMES)
def test_products_of_xtrace_are_foretold(name):
    operator = spectrum(name)
    spent = usual(xtrace(operator, generator=seeded(s)).products for s in range(5))
    assert_foretold(forecast_trace(seen(operator), generator=seeded()), spent)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["initial", "final"])
@pytest.mark.parametrize("curvature", [name for name in MATRICES if name != "fisher-batch"])
def test_products_are_foretold_for_a_network(digits, name, curvature):
    operator = Curvature(digits[name], curvature)
    view = seen(operator)
    assert_foretold(
        forecast_eigenpairs(view, 10, generator=seeded()), eigenpairs(operator, 10, generator=seeded()).products
    )
    budget = 200  # a trace near zero, as the Hessian's at the start, takes thousands
    trace = forecast_trace(view, generator=seeded())
    runs = [xtrace(operator, generator=seeded(s), max_products=budget) for s in range(5)]
    if all(run.converged for run in runs):
        assert_foretold(trace, usual(run.products for run in runs))
    else:
        assert trace.products >= budget / 2


@pytest.mark.parametrize("name", NAMES)
def test_products_of_a_density_are_foretold_exactly(name):
    operator = spectrum(name)
    spent = spectral_measure(operator, probes=3, steps=25, generator=seeded()).products
    foretold = forecast_measure(seen(operator), probes=3, steps=25, generator=seeded()).products
    assert foretold == spent or (spent < 4 * 25 and foretold <= 2 * spent)


def test_a_forecast_knows_no_unit():
    operator = with_spectrum(SPECTRA["network"])
    for forecast in (lambda view: forecast_eigenpairs(view, 10, generator=seeded()), lambda view: trace_of(view)):
        assert forecast(seen(operator)).products == forecast(seen(operator * 2.0**-30)).products


def trace_of(view):
    return forecast_trace(view, generator=seeded())


def test_a_surrogate_has_the_spectrum_of_its_outline():
    view = seen(with_spectrum(SPECTRA["two levels"]))
    twin = surrogate(view, seeded())
    values = torch.linalg.eigvalsh(twin @ torch.eye(400, dtype=torch.float64))
    ones = int((values < 2).sum())
    assert torch.allclose(values[:ones], torch.tensor(1.0).double())
    assert torch.allclose(values[ones:], torch.tensor(3.0).double())
    assert abs(ones - 200) < 4 * math.sqrt(400 / 2)  # what one random vector tells


@pytest.mark.parametrize("name", NAMES)
def test_an_outline_holds_n_eigenvalues(name):
    view = seen(spectrum(name))
    assert view.shape[0] == len(spectrum(name))
    assert view.counts.min() >= 1


def test_groups_are_cut_and_keep_their_norm():
    view = seen(with_spectrum(SPECTRA["1/i"]))
    large = type(view)(**{**vars(view), "counts": view.counts * torch.where(view.alone, 1, 10**6)})
    for keep in (False, True):
        cut = surrogate(large, seeded(), keep_norm=keep)
        assert cut.shape[0] <= 2000
    norm = (large.counts * large.values.square())[~large.alone].sum()
    held = cut.values.double().square().sum() - large.values[large.alone].square().sum()
    assert held == pytest.approx(norm.item(), rel=0.05)


def test_copies_that_rounding_makes_are_one_group():
    operator = matrix("softmax").matrix.float()
    view = seen(operator)
    assert view.values.diff().min() > 10 * torch.finfo(torch.float32).eps
    assert not view.alone.any()  # each eigenvalue stands nine times


def test_a_trace_that_may_be_zero_is_told_as_at_least():
    balanced = with_spectrum(np.concatenate([uniform(200), -uniform(200)]))
    assert trace_of(seen(balanced)).at_least
    assert not trace_of(seen(with_spectrum(SPECTRA["1/i"]))).at_least


def test_growth_ends_exactly_or_at_the_budget():
    assert products_needed(100, 1.0, 10**6) == 200
    assert products_needed(100, 1.2, 10**6) == 300  # one stage: error falls by the root of 1.5
    assert products_needed(100, 100.0, 101) == 301
    assert products_needed(100, 1e9, 10**9) >= PRODUCTS


def test_scales_weigh_what_is_alive():
    with VectorMeter(1000) as scales:
        first = torch.zeros(3, 1000)
        assert scales.peak == 12_000
        view = first[1:]
        second = first + 1
        assert scales.peak == 24_000
        del first, second
        gc.collect()
        third = view * 2
        assert scales.bytes == 12_000 + 8_000
        assert scales.peak == 24_000
        assert torch.zeros(7, 7).sum() == third.sum() == 0


@pytest.mark.parametrize(
    ("method", "forecast"),
    [
        (lambda a: eigenpairs(a, 10, generator=seeded()), lambda v: forecast_eigenpairs(v, 10, generator=seeded())),
        (lambda a: xtrace(a, generator=seeded()), trace_of),
        (
            lambda a: spectral_measure(a, probes=2, steps=40, generator=seeded()),
            lambda v: forecast_measure(v, probes=2, steps=40, generator=seeded()),
        ),
    ],
)
def test_bytes_are_foretold(digits, method, forecast):
    operator = Curvature(digits["final"], "ggn")
    operator.prepare()
    foretold = forecast(seen(operator)).bytes
    with VectorMeter(operator.shape[0]) as scales:
        method(operator)
    assert 0.5 <= foretold / scales.peak <= 2


@pytest.mark.parametrize("vectors", [60, 100, 200])
def test_bytes_of_a_density_are_of_as_many_bases_as_fit(monkeypatch, vectors):
    """Of the true matrix, a thousand times the surrogate."""
    view = seen(with_spectrum(SPECTRA["1/i"]))
    large = type(view)(**{**vars(view), "counts": view.counts * torch.where(view.alone, 1, 10**4)})
    monkeypatch.setattr("spectra.krylov.blocks.memory_share", lambda device: vectors * row)
    row = 8 * large.shape[0]
    foretold = forecast_measure(large, probes=20, steps=20, generator=seeded()).bytes
    assert 0.6 <= foretold / (vectors * row) <= 1.2


def test_bytes_of_eigenpairs_hold_the_basis_and_the_vectors():
    operator = with_spectrum(SPECTRA["1/i"])
    pairs = eigenpairs(operator, 10, generator=seeded())
    foretold = forecast_eigenpairs(seen(operator), 10, generator=seeded()).bytes
    row = 400 * 8
    assert foretold >= pairs.products * row + pairs.vectors.nbytes
    assert foretold <= 2 * (2 * pairs.products * row + 2 * pairs.vectors.nbytes)
