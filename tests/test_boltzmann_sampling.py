"""Gibbs samples: their distribution, their correlation, and estimates of the Hessian whose errors cover."""

import math

import pytest
import scipy.stats
import torch
from boltzmann import LOW, dense, draw, examples, log_probabilities, machine, restricted, states
from helpers import seeded
from networks import DEVICES

from spectra.errors import SpectraError
from spectra.systems import sampled_covariance
from spectra.systems.boltzmann import BoltzmannMachine
from spectra.systems.gibbs import autocorrelation_time, drift, mean_with_error
from spectra.systems.sampled_hessian import unreliable

SEEDS = 60


def counts(drawn, every):
    """How often each of `every` state is among those drawn."""
    return (drawn[:, None].double() == every).all(2).sum(0).numpy()


def agree(drawn, every, p, seed_level=1e-3):
    """By a chi-squared test: the states are drawn with the probabilities p."""
    assert scipy.stats.chisquare(counts(drawn, every), len(drawn) * p.numpy()).pvalue > seed_level


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("units", "sign"), [("binary", "plus"), ("spin", "minus")])
def test_chains_end_in_the_distribution_of_the_machine(units, sign, biased):
    own = machine(4, biased, units=units, energy_sign=sign, temperature=1.5)
    drawn = own.sample(chains=8000, count=1, burn_in=40)
    assert drawn.shape == (8000, 1, 4)
    assert drawn.dtype == torch.int8
    agree(drawn[:, 0], states(4, LOW[units]), log_probabilities(own, own.parameters).exp())


def test_chains_of_a_restricted_machine():
    own = restricted(3, 2, energy_sign="minus")
    weights = torch.zeros(5, 5, dtype=torch.float64)
    weights[:3, 3:] = own.weights
    biases = torch.cat([own.visible_biases, own.hidden_biases])
    whole = BoltzmannMachine(weights + weights.T, biases, energy_sign="minus")
    drawn = own.sample(chains=8000, count=1, burn_in=40)[:, 0]
    agree(drawn, states(5, 0), log_probabilities(whole, whole.parameters).exp())


def test_clamped_units_keep_their_states():
    own = machine(5, hidden=2)
    data = examples(3, 3)
    phase = own.sampled_hessian(data, chains=4, count=1, clamped_chains=6000, clamped_count=1).clamped
    assert torch.equal(phase.states[..., 1:4], data.to(torch.int8)[None, :, None].expand(6000, 3, 1, 3))
    every, logs = states(5, 0), log_probabilities(own, own.parameters)
    for row, drawn in zip(data, phase.states[:, :, 0, 1:].unbind(1), strict=True):
        same = (every[:, :3] == row).all(1)
        agree(drawn, every[same], logs[same].softmax(0))


def test_every_few_sweeps():
    own = machine(5)
    every = own.sample(chains=4, count=12, burn_in=7, seed=3)
    assert torch.equal(own.sample(chains=4, count=4, burn_in=7, thin=3, seed=3), every[:, 2::3])
    assert torch.equal(own.sample(chains=4, count=10, burn_in=9, seed=3), every[:, 2:])
    assert not torch.equal(own.sample(chains=4, count=12, burn_in=7, seed=4), every)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("of", ["machine", "restricted"])
def test_a_seed_gives_the_same_numbers(of, device):
    data, vector = examples(6, 4), draw(19 if of == "restricted" else 21, seed=1).to(device)
    own = restricted(4, 3, device=device) if of == "restricted" else machine(6, hidden=2, device=device)
    first, second = (own.sampled_hessian(data, chains=8, count=5, seed=2) for _ in range(2))
    assert torch.equal(first @ vector, second @ vector)
    for one, other in zip(first.product_with_error(vector), second.product_with_error(vector), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert first.trace_error() == second.trace_error()


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_autocorrelation_time(memory):
    """Of x' = r x + noise the correlations are r^lag, which sum to (1 + r) / (1 - r)."""
    noise = draw(50, 4000, seed=1)
    series = torch.empty_like(noise)
    series[:, 0] = noise[:, 0] / math.sqrt(1 - memory**2)
    for step in range(1, 4000):
        series[:, step] = memory * series[:, step - 1] + noise[:, step]
    expected = (1 + memory) / (1 - memory)
    time = autocorrelation_time(torch.stack([series, torch.ones_like(series)], dim=2))
    assert time[0].item() == pytest.approx(expected, rel=0.15)
    assert time[1] == 1
    error = mean_with_error(series)[1].item()
    assert error == pytest.approx(math.sqrt(expected / (1 - memory**2) / series.numel()), rel=0.3)
    assert drift(series[..., None]).item() < 4


def brute(phase):
    """The estimate as the mean over pairs of different chains, and each chain's part in it, from all features."""
    s = phase.states.double()
    chains, groups, count, _ = s.shape
    features = s[..., phase.pairs.first] * s[..., phase.pairs.second]
    means = features.mean(2)
    both = torch.einsum("rgti,rgtj->ij", features, features) / (chains * groups * count)
    for one in range(chains):
        for other in range(chains):
            if one != other:
                both -= means[one].T @ means[other] / (groups * chains * (chains - 1))
    apart = features - features.mean((0, 2), keepdim=True)
    own = apart.mean(2)
    parts = torch.einsum("rgti,rgtj->rij", apart, apart) / (groups * count)
    return both, parts + torch.einsum("rgi,rgj->rij", own, own) / (groups * (chains - 1))


def deviations(parts):
    return (parts.var(0) * (len(parts) - 1) / (len(parts) * (len(parts) - 2))).sqrt()


@pytest.mark.parametrize("entries", [None, 200])
def test_products_and_errors_without_the_matrix(entries, monkeypatch):
    """All of them against all features of all samples, kept; also where few groups are taken at a time."""
    if entries:
        monkeypatch.setattr(sampled_covariance, "ENTRIES", entries)
    estimate = machine(5, hidden=2).sampled_hessian(examples(7, 3), chains=6, count=9, clamped_chains=5)
    assert estimate.clamped.states.shape == (5, 7, 2, 6)  # 70 samples, for 54
    (free, own), (clamped, others) = brute(estimate.free), brute(estimate.clamped)
    matrix = dense(estimate)
    torch.testing.assert_close(matrix, free - clamped, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(own.mean(0) - others.mean(0), matrix, rtol=1e-12, atol=1e-14)
    vectors = draw(15, 3, seed=1)
    product, error = estimate.product_with_error(vectors[:, 0])
    assert torch.equal(product, estimate @ vectors[:, 0])
    expected = torch.hypot(deviations(own @ vectors[:, 0]), deviations(others @ vectors[:, 0]))
    found = torch.hypot(*(phase.with_error(vectors[:, 0])[1] for phase in (estimate.free, estimate.clamped)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(error, expected.masked_fill(unreliable(estimate.free), math.nan), equal_nan=True)
    forms = [torch.einsum("ik,rij,jk->rk", vectors, parts, vectors) for parts in (own, others)]
    expected = torch.hypot(*map(deviations, forms))
    torch.testing.assert_close(estimate.standard_errors(vectors), expected, rtol=1e-12, atol=1e-14)
    traces = [deviations(parts.diagonal(dim1=1, dim2=2).sum(1)) for parts in (own, others)]
    assert estimate.trace_error() == pytest.approx(math.hypot(*traces), rel=1e-12)


def test_temperature_scales_errors_too():
    """Weights and temperature times c make the same machine: matrix and errors are divided by c^2."""
    one = machine(4)
    other = BoltzmannMachine(2 * one.weights, 2 * one.biases, temperature=2.0)
    estimates = [each.sampled_hessian(chains=8, count=5) for each in (one, other)]
    vector = draw(10, seed=1)
    for a, b in zip(*(each.product_with_error(vector) for each in estimates), strict=True):
        torch.testing.assert_close(a / 4, b, equal_nan=True)
    torch.testing.assert_close(
        estimates[0].standard_errors(vector[:, None]) / 4, estimates[1].standard_errors(vector[:, None])
    )
    assert estimates[0].trace_error() / 4 == pytest.approx(estimates[1].trace_error())


def magnet():
    """Four spins that like to be alike and on, so that all of them turn together, and seldom."""
    alike = torch.ones(4, 4, dtype=torch.float64) - torch.eye(4, dtype=torch.float64)
    return BoltzmannMachine(0.5 * alike, torch.full((4,), 0.2).double(), energy_sign="minus", units="spin")


CASES = {  # machine, data, schedule
    "slow": (lambda: magnet(), None, {"chains": 32, "count": 40, "burn_in": 100}),
    "hidden": (lambda: machine(5, hidden=2), (8, 3), {"chains": 32, "count": 10, "burn_in": 40, "clamped_chains": 32}),
    "restricted": (lambda: restricted(5, 3), (8, 5), {"chains": 32, "count": 20, "burn_in": 40}),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_cover(case):
    """Estimates are unbiased, and their errors over standard errors have a variance near 1, as Student's t has."""
    make, size, schedule = CASES[case]
    own, data = make(), examples(*size) if size else None
    exact = dense(own.hessian(data))
    vector, other = torch.linalg.qr(draw(len(exact), 2, seed=3)).Q.T
    found = []
    for seed in range(SEEDS):
        estimate = own.sampled_hessian(data, seed=seed, **schedule)
        product, error = estimate.product_with_error(vector)
        form = (other @ (estimate @ other) - other @ exact @ other) / estimate.standard_errors(other[:, None])
        trace = (torch.trace(dense(estimate)) - torch.trace(exact)) / estimate.trace_error()
        found.append(torch.cat([(product - exact @ vector) / error, form, trace[None]]))
    found = torch.stack(found)
    found, expected = found[:, found.isfinite().all(0)], 31 / 29  # without entries whose errors are not always known
    assert found.shape[1] > 0.8 * len(exact)
    assert found.square().mean(0).sub(expected).abs().max() < 4 * expected * math.sqrt(2 / SEEDS)
    assert found.square().mean() == pytest.approx(expected, abs=0.25)
    assert found.mean(0).abs().max() < 4 / math.sqrt(SEEDS)
    assert 0.92 < (found.abs() < 2.04).double().mean() < 0.98


def test_errors_of_samples_taken_for_independent_do_not_cover():
    """As if each sample were a chain of its own: what the correlation inside of chains is worth."""
    own, vector = magnet(), torch.tensor([1.0] * 4 + [0] * 6, dtype=torch.float64)
    exact, found = own.hessian() @ vector, []
    for seed in range(SEEDS // 2):
        phase = own.sampled_hessian(seed=seed, **CASES["slow"][2]).free
        scattered = phase.states.reshape(-1, 1, 1, phase.states.shape[3])
        product, error = sampled_covariance.SampledCovariance(phase.pairs, scattered, torch.float64).with_error(vector)
        found.append((product - exact) / error)
    assert torch.stack(found).square().mean(0)[:4].min() > 2


def test_notes_tell_how_much_the_samples_are_worth():
    biased, told = magnet().sampled_hessian(chains=32, count=400, burn_in=100).notes
    assert "eigenvalues of an estimate are biased outwards" in biased
    assert "32 chains of 400 after 100 sweeps; longest autocorrelation time" in told
    short = magnet().sampled_hessian(chains=32, count=400, burn_in=3).notes
    assert "`burn_in` 3 is less than 10 autocorrelation times" in short[2]
    field = BoltzmannMachine(torch.zeros(3, 3), torch.zeros(3))
    start = torch.cat([torch.ones(50, 5, 1), torch.zeros(50, 5, 1)], dim=1) + 0.01 * torch.randn(
        50, 10, 1, generator=seeded()
    )
    assert drift(start).item() > 5
    assert "2 sweeps apart" in field.sampled_hessian(count=2, thin=2).notes[1]


def test_what_no_sample_shows_has_no_error():
    """A unit that is on once in 10^13 sweeps: its products are zero in all samples, whose spread says nothing of it."""
    own = BoltzmannMachine(torch.zeros(3, 3).double(), torch.tensor([0.0, 30.0, 0.0]).double())
    estimate = own.sampled_hessian(count=20)
    product, error = estimate.product_with_error(torch.ones(6).double())
    unknown = torch.tensor([False, True, False, True, False, True])  # of the biases 1 2 3 and the pairs 12 13 23
    assert torch.equal(error.isnan(), unknown)
    assert not product[unknown].any()
    assert error[~unknown].min() > 0
    assert "for 3 of 6 products s_i s_j, fewer than 16 chains show the rarer value" in estimate.notes[2]
    assert not unreliable(machine(4, units="spin", temperature=5.0).sampled_hessian().free).any()
    still = BoltzmannMachine(torch.zeros(2, 2).double(), torch.tensor([30.0, -30.0]).double(), units="spin")
    assert unreliable(still.sampled_hessian(count=20).free).all()


@pytest.mark.parametrize("units", LOW)
def test_chains_that_show_a_rarer_value(units):
    own = machine(4, units=units)
    phase = own.sampled_hessian(chains=20, count=3).free
    values = phase.states.double()[..., phase.pairs.first] * phase.states.double()[..., phase.pairs.second]
    for one, found in zip(values[:, 0].unbind(2), phase.varying_chains().tolist(), strict=True):
        common = max(one.unique().tolist(), key=lambda value: (one == value).sum())
        assert found == (one != common).any(1).sum()


@pytest.mark.parametrize("name", ["clamped_chains", "clamped_count"])
def test_the_clamped_phase_is_named(name):
    weights = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(SpectraError, match=f"`{name}` 0: expected an integer"):
        BoltzmannMachine(weights, hidden=1).sampled_hessian(torch.ones(4, 2), **{name: 0})
