"""Summaries of a spectrum: exact sums where the spectrum is known, errors that cover, laws that fit and that do not."""

import json
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import TABLE, matrix, not_finite, seeded, uniform, with_spectrum
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import expon, kstest, norm
from scipy.stats import pareto as law
from torch import nn

import spectra
from spectra import SpectraError, SpectralMeasure, spectral_measure, summarise
from spectra.cli import run
from spectra.krylov.lanczos import lanczos
from spectra.krylov.quadrature import gauss_quadrature
from spectra.spectrum import ranks
from spectra.spectrum.marchenko_pastur import distribution, marchenko_pastur
from spectra.spectrum.outliers import leading_eigenvalues
from spectra.spectrum.power_law import power_law

GGN = np.concatenate([[40, 22, 15, 9, 5], 10 ** uniform(75, -6, 0), np.zeros(40)])  # as of a network: n = 120
NAMES = ["effective_rank", "stable_rank", "participation_ratio", "entropy", "entropy_rank", "outlier_share"]


def exact(spectrum) -> SpectralMeasure:
    """The measure whose nodes are all eigenvalues."""
    nodes = torch.as_tensor(np.array(spectrum, dtype=np.float64))[None]
    return SpectralMeasure(nodes, torch.full_like(nodes, 1 / nodes.numel()), nodes.numel(), nodes.numel())


def truth(spectrum: np.ndarray, outliers: int = 0) -> dict[str, float]:
    """Each number by its definition."""
    spectrum = np.sort(spectrum)[::-1]
    sizes, trace, squares = np.abs(spectrum), spectrum.sum(), (spectrum**2).sum()
    shares = sizes[sizes > 0] / sizes.sum()
    entropy = -(shares * np.log(shares)).sum()
    return {
        "effective_rank": trace / sizes.max(),
        "stable_rank": squares / sizes.max() ** 2,
        "participation_ratio": trace**2 / squares,
        "entropy": entropy,
        "entropy_rank": math.exp(entropy),
        "outlier_share": spectrum[:outliers].sum() / trace,
    }


@pytest.mark.parametrize(("count", "outliers"), [(120, 5), (1, 0)])
def test_numbers_of_a_known_spectrum(count, outliers):
    spectrum = np.concatenate([[40, 22, 15, 9, 5], uniform(115)])[:count]
    found = summarise(exact(spectrum), semidefinite=True, damping=0.1)
    for name, value in truth(spectrum, outliers).items():
        number = getattr(found, name)
        assert number.value == pytest.approx(value, rel=1e-12, abs=1e-12), name
        assert number.standard_error == pytest.approx(0, abs=1e-9)
        assert number.quadrature_error == 0
    assert found.log_determinant.value == pytest.approx(np.log(spectrum + 0.1).sum())


def test_equal_eigenvalues_are_as_many_as_they_are():
    found = summarise(exact(np.concatenate([np.full(7, 3.0), np.zeros(13)])), semidefinite=True)
    for name in ("effective_rank", "stable_rank", "participation_ratio", "entropy_rank"):
        assert getattr(found, name).value == pytest.approx(7)
    assert found.entropy.value == pytest.approx(math.log(7))


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_scale_changes_none(scale):
    measure = spectral_measure(with_spectrum(GGN), steps=20, probes=4)
    one = summarise(measure, semidefinite=True)
    other = summarise(replace(measure, nodes=scale * measure.nodes), semidefinite=True)
    for name in NAMES:
        assert vars(getattr(other, name)) == pytest.approx(vars(getattr(one, name)), rel=1e-6, abs=1e-9)


@cache
def measures() -> list[SpectralMeasure]:
    a = with_spectrum(GGN)
    return [spectral_measure(a, steps=20, generator=seeded(seed)) for seed in range(30)]


@pytest.mark.parametrize("probes", [1, 3, 10])
@pytest.mark.parametrize("semidefinite", [True, False])
def test_intervals_cover(probes, semidefinite):
    some = [replace(one, nodes=one.nodes[:probes], weights=one.weights[:probes]) for one in measures()]
    for name in ("effective_rank", "stable_rank", "participation_ratio", "entropy"):
        value = truth(GGN)[name]
        found = np.array([getattr(ranks, name)(one, semidefinite) for one in some])
        assert np.mean(np.abs(found[:, 0] - value) <= 2 * found[:, 1] + found[:, 2] + 1e-9) >= 0.85, name
        spread = found[:, 0].std(ddof=1)
        assert 0.7 * spread <= found[:, 1].mean() <= (4 if probes < 4 else 2) * spread, name


def test_the_share_of_outliers_covers():
    bulk = np.concatenate([GGN[:5], uniform(115, 0, 0.5)])
    value = truth(bulk, 5)["outlier_share"]
    a = with_spectrum(bulk)
    found = np.array(
        [ranks.outlier_share(spectral_measure(a, steps=25, probes=4, generator=seeded(s)), True) for s in range(20)]
    )
    assert np.mean(np.abs(found[:, 0] - value) <= 2 * found[:, 1]) >= 0.85
    assert found[:, 1].mean() < 0.02


@pytest.mark.parametrize("steps", [4, 6, 10])
def test_the_entropy_lies_between_two_quadratures(steps):
    """One probe on all eigenvectors alike has no chance: what is left is the quadrature's error, which is a bound."""
    spectrum = np.sort(uniform(60, 0, 1) ** 3)
    diagonal, start = torch.from_numpy(spectrum).diag(), torch.full((60,), 60**-0.5, dtype=torch.float64)
    nodes, weights = gauss_quadrature(lanczos(diagonal, start, steps))
    found = ranks.entropy(SpectralMeasure(nodes[None], weights[None], 60), semidefinite=True)
    assert 0 < abs(found.value - truth(spectrum)["entropy"]) <= found.quadrature_error * (1 + 1e-9)


def test_outliers_that_are_not_resolved_have_no_share():
    """Nothing is said of them but what could hide them; where all eigenvalues are known there are none."""
    spectrum = np.concatenate([GGN[:5], uniform(115, 0, 0.5)])
    found = summarise(spectral_measure(with_spectrum(spectrum), steps=3, probes=4), semidefinite=True)
    assert found.outlier_share is None
    reason = found.left_out["outlier_share"]
    assert "no outlier is resolved; the outermost node of a probe has up to" in reason
    assert float(re.search(r"up to ([\d.e+]+) %", reason)[1]) > 60  # of 74.6
    smooth = summarise(spectral_measure(with_spectrum(uniform(300)), steps=20, probes=4), semidefinite=True)
    assert float(re.search(r"up to ([\d.e+]+) %", smooth.left_out["outlier_share"])[1]) < 3
    assert vars(summarise(exact(np.linspace(0, 1, 50)), semidefinite=True).outlier_share) == {
        "value": 0.0,
        "standard_error": 0.0,
        "quadrature_error": 0.0,
    }


def test_rounding_beside_one_eigenvalue_has_no_law():
    """A matrix of rank one, computed: what lies at 1e-14 of its eigenvalue is no spectrum."""
    found = summarise(exact(np.concatenate([1e-14 * 10 ** uniform(119, 0, 3), [1e-3]])))
    assert found.power_law is found.marchenko_pastur is None
    assert "needs 20 known leading eigenvalues, got 1" in found.left_out["power_law"]
    assert "above zero" in found.left_out["marchenko_pastur"]


def test_too_few_steps_tell_of_the_largest_eigenvalue():
    spectrum = np.concatenate([[1.5], np.linspace(0, 1, 199)])
    a = with_spectrum(spectrum)
    for seed in range(5):
        found = ranks.effective_rank(spectral_measure(a, steps=5, probes=2, generator=seeded(seed)), True)
        missed = abs(found.value - truth(spectrum)["effective_rank"])
        assert missed <= 2 * found.standard_error + found.quadrature_error


def test_noise_of_products_is_an_error():
    measure = exact(GGN)
    clean, noisy = (summarise(replace(measure, noise=noise), semidefinite=True) for noise in (0.0, 1e-3))
    moved = summarise(exact(GGN + 1e-3), semidefinite=True)
    for name in NAMES:
        before, after = getattr(clean, name), getattr(noisy, name)
        assert after.quadrature_error >= abs(getattr(moved, name).value - before.value) - 1e-12


def test_an_indefinite_matrix_has_some_and_a_zero_matrix_none():
    spectrum = np.linspace(-0.5, 1, 40)
    found = summarise(exact(spectrum), damping=0.1)
    for name in ("stable_rank", "entropy", "entropy_rank"):
        assert getattr(found, name).value == pytest.approx(truth(spectrum)[name])
    for name in ("effective_rank", "participation_ratio", "outlier_share", "marchenko_pastur"):
        assert getattr(found, name) is None
        assert "indefinite" in found.left_out[name]
    assert "not positive definite" in found.left_out["log_determinant"]
    zero = summarise(exact(np.zeros(5)), semidefinite=True)
    assert {*zero.left_out} == {*NAMES, "power_law", "marchenko_pastur", "log_determinant"}
    assert zero.left_out["log_determinant"] == "no damping was given"


def test_every_known_spectrum_has_an_answer():
    for name in TABLE:
        for probes in (1, 3):
            found = summarise(spectral_measure(matrix(name).matrix, steps=12, probes=probes))
            told = {key for key, value in vars(found).items() if value is not None}
            assert told | found.left_out.keys() >= {*NAMES, "power_law", "marchenko_pastur", "log_determinant"}


def pareto(count: int, exponent: float, seed: int = 0) -> np.ndarray:
    return (1 - uniform(count, seed=seed)) ** (1 / (1 - exponent))


def test_the_exponent_of_samples_of_a_power_law():
    found = [power_law(pareto(200, 2.5, seed)) for seed in range(20)]
    assert np.mean([abs(one.exponent - 2.5) <= 2 * one.standard_error for one in found]) >= 0.8
    assert np.mean([one.exponent for one in found]) == pytest.approx(2.5, abs=0.1)
    assert np.mean([one.rejected for one in found]) <= 0.2
    assert np.mean([one.p_value for one in found]) == pytest.approx(0.5, abs=0.2)


def test_the_estimate_is_that_of_the_formula_and_the_distance_that_of_scipy():
    for seed in range(5):
        values = pareto(50, 3.0, seed)
        found = power_law(values, smallest=values.min())
        assert found.exponent == pytest.approx(1 + 50 / np.log(values / values.min()).sum())
        expected = kstest(values, law(found.exponent - 1, scale=values.min()).cdf).statistic
        assert (found.distance, found.count) == (pytest.approx(expected), 50)


def reference_fit(values: np.ndarray) -> tuple[float, float, float]:
    """Exponent, x_min and distance by the definitions of Clauset, Shalizi and Newman, for every x_min in turn."""
    found = []
    for smallest in np.sort(values)[: len(values) - 9]:
        tail = values[values >= smallest]
        shape = len(tail) / np.log(tail / smallest).sum()
        found.append((kstest(tail, law(shape, scale=smallest).cdf).statistic, smallest, shape + 1))
    distance, smallest, exponent = min(found)
    return exponent, smallest, distance


def reference_ratios(tail: np.ndarray) -> dict[str, tuple[float, float]]:
    """Vuong's statistic and p-value against other laws cut off at the least of the tail, with SciPy's distributions."""
    smallest, count = tail.min(), len(tail)
    power = law(count / np.log(tail / smallest).sum(), scale=smallest).logpdf(tail)

    def densities(parameters):
        other = norm(parameters[0], np.exp(parameters[1]))
        return other.logpdf(np.log(tail)) - np.log(tail) - other.logsf(np.log(smallest))

    precise = {"xatol": 1e-6, "fatol": 1e-8, "maxiter": 4000, "maxfev": 4000}
    found = [  # the likelihood is flat where the law tends to a power law
        minimize(lambda p: -densities(p).sum(), start, method="Nelder-Mead", options=precise)
        for start in ([0.0, 0.0], [-6.0, 1.0], [-140.0, 2.3])
    ]
    best = min(found, key=lambda one: one.fun).x
    others = {"lognormal": densities(best), "exponential": expon(smallest, tail.mean() - smallest).logpdf(tail)}
    ratios = {}
    for name, other in others.items():
        ratio = (power - other).mean() / (power - other).std() * count**0.5
        ratios[name] = (ratio, 2 * norm.sf(abs(ratio)))
    return ratios


LAWS = {
    "pareto": lambda seed: pareto(55, 2.5, seed),
    "lognormal": lambda seed: np.random.default_rng(seed).lognormal(0, 0.7, 55),
    "exponential": lambda seed: np.random.default_rng(seed).exponential(size=55),
    "a tail alone": lambda seed: np.concatenate([uniform(60, 0.1, 1, seed), pareto(60, 2.5, seed)]),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("seed", [0, 1])
def test_fits_are_those_of_an_independent_reference(name, seed):
    values = LAWS[name](seed)
    found = power_law(values)
    assert (found.exponent, found.smallest, found.distance) == pytest.approx(reference_fit(values), rel=1e-9)
    tail = values[values >= found.smallest]
    assert found.count == len(tail)
    ratios = reference_ratios(values)
    for one in power_law(values, smallest=values.min()).alternatives:
        ratio, p_value = ratios[one.name]
        assert (one.ratio, one.p_value) == (pytest.approx(ratio, abs=0.01), pytest.approx(p_value, abs=0.01))


@pytest.mark.sampled(0)
@pytest.mark.parametrize("exponent", [1.7, 2.5, 4.0])
def test_the_levels_of_the_tests_hold(exponent):
    """Samples of a power law have p-values below 0.1 in a tenth of the cases, and few are rejected by either test."""
    found = [power_law(pareto(100, exponent, seed)) for seed in range(200)]
    assert np.mean([one.p_value < 0.1 for one in found]) <= 0.1 + 3 * (0.09 / 200) ** 0.5
    for name in ("lognormal", "exponential"):
        others = [other for one in found for other in one.alternatives if other.name == name]
        assert np.mean([one.ratio < 0 and one.p_value < 0.1 for one in others]) <= 0.1
    assert np.mean([one.rejected for one in found]) <= 0.2


def test_where_the_law_begins():
    """Below 1 eigenvalues are evenly spread: x_min is found there."""
    values = np.concatenate([uniform(200), pareto(200, 2.5, seed=1)])
    found = power_law(values)
    assert found.smallest == pytest.approx(1, abs=0.35)
    assert found.exponent == pytest.approx(2.5, abs=0.4)


@pytest.mark.parametrize("sigma", [0.3, 0.6])
def test_a_lognormal_law_is_rejected(sigma):
    normal = np.random.default_rng(0).normal(size=300)
    found = power_law(np.exp(sigma * normal), smallest=float(np.exp(-sigma)))
    assert found.rejected
    (lognormal,) = [one for one in found.alternatives if one.name == "lognormal"]
    assert lognormal.ratio < 0
    assert lognormal.p_value < 0.01


def test_an_exponential_law_is_rejected():
    found = power_law(np.random.default_rng(0).exponential(size=400), smallest=0.05)
    assert found.rejected
    assert [one.ratio < 0 and one.p_value < 0.01 for one in found.alternatives] == [True, True]


def test_a_power_law_of_eigenvalues_of_a_matrix():
    values = 2 * np.arange(1, 61) ** -0.5  # j^-s: exponent 1 + 1/s
    measure = spectral_measure(with_spectrum(values), steps=60, probes=3)
    np.testing.assert_allclose(leading_eigenvalues(measure), values)
    found = summarise(measure).power_law
    assert found.exponent == pytest.approx(3, abs=0.4)
    assert summarise(measure).power_law.to_dict() == found.to_dict()  # the samples of its test are the same


@pytest.mark.parametrize(
    ("values", "reason"), [(np.arange(1, 20), "needs 20 known leading eigenvalues, got 19"), (np.ones(30), "the same")]
)
def test_no_power_law_of(values, reason):
    with pytest.raises(SpectraError, match=reason):
        power_law(values.astype(float))


def wishart(n: int, ratio: float, seed: int = 0) -> torch.Tensor:
    z = torch.randn(n, round(n / ratio), generator=seeded(seed), dtype=torch.float64)
    return z @ z.T / z.shape[1]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize(("steps", "probes"), [(30, 10), (200, 2)])
def test_marchenko_pastur_of_a_wishart_matrix(ratio, steps, probes):
    """Of variance 2, beside three spikes."""
    spikes = torch.zeros(200, dtype=torch.float64)
    spikes[:3] = torch.tensor([60, 50, 40]) * (1 + ratio)
    a = 2 * wishart(200, ratio) + spikes.diag()
    found = marchenko_pastur(spectral_measure(a, steps=steps, probes=probes), semidefinite=True)
    assert found.fits
    assert found.count == 197
    for number, value in ((found.variance, 2), (found.ratio, ratio), (found.edge, 2 * (1 + ratio**0.5) ** 2)):
        assert number.value == pytest.approx(value, rel=0.05, abs=3 * number.standard_error)


def semicircle(seed: int = 0, n: int = 200) -> torch.Tensor:
    z = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    return (z + z.T) / (2 * n) ** 0.5 + 3 * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("steps", [40, 200])
@pytest.mark.parametrize(
    "bulk",
    [
        semicircle,
        lambda: with_spectrum(uniform(200)),
        lambda: with_spectrum(10 ** uniform(200, -4, 0)),
        lambda: with_spectrum(np.repeat([1.0, 2.0], 100)),
    ],
    ids=["semicircle", "uniform", "decades", "two values"],
)
def test_marchenko_pastur_does_not_fit(bulk, steps):
    assert not marchenko_pastur(spectral_measure(bulk(), steps=steps, probes=10), semidefinite=True).fits


def gamma(seed: int) -> torch.Tensor:
    return with_spectrum(np.random.default_rng(seed).gamma(2, size=200))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "bulk",
    [semicircle, lambda seed: with_spectrum(uniform(200, seed=seed)), gamma],
    ids=["semicircle", "uniform", "gamma"],
)
def test_probes_that_are_too_few_test_nothing(bulk):
    """Where a wrong bulk is not found to be wrong it is said to be untested: few fits, with any number of probes."""
    found = [
        marchenko_pastur(spectral_measure(bulk(seed), steps=40, probes=probes, generator=seeded(seed)), True).fits
        for seed in range(6)
        for probes in (1, 2, 3)
    ]
    assert found.count(True) <= 2
    assert found.count(None) >= 3


def with_zeros(a: torch.Tensor, zeros: int) -> torch.Tensor:
    return torch.block_diag(a, torch.zeros(zeros, zeros, dtype=a.dtype))


@pytest.mark.parametrize("spikes", [0, 3])
def test_marchenko_pastur_beside_more_zeros_than_it_has(spikes):
    """As of a network with more parameters than outputs on all examples."""
    a = wishart(200, 0.2)
    a = 2 * a + torch.diag(torch.tensor([60.0, 50, 40][:spikes] + [0.0] * (200 - spikes), dtype=torch.float64))
    measure = spectral_measure(with_zeros(a, 300), steps=40, probes=10)
    found = marchenko_pastur(measure, semidefinite=True)
    assert found.fits
    assert (found.count, found.zeros) == (pytest.approx(200 - spikes, abs=12), pytest.approx(300, abs=12))
    for number, value in ((found.variance, 2), (found.ratio, 0.2), (found.edge, 2 * (1 + 0.2**0.5) ** 2)):
        assert number.value == pytest.approx(value, rel=0.05, abs=3 * number.standard_error)
    assert summarise(measure, semidefinite=True).marchenko_pastur.zeros == found.zeros


def test_a_wrong_bulk_beside_zeros_does_not_fit():
    for a in (semicircle(), with_spectrum(10 ** uniform(200, -2, 0))):
        found = marchenko_pastur(spectral_measure(with_zeros(a, 300), steps=40, probes=10), semidefinite=True)
        assert found.fits is False


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("examples", "inputs", "outputs"), [(200, 80, 1), (80, 200, 1), (400, 200, 2)])
def test_the_bulk_of_a_linear_regression(examples, inputs, outputs):
    """Its GGN is 2/(N K) I (x) X'X: variance 2/K and ratio d/N, with d - N zeros an output where d > N."""
    random = seeded()
    x = torch.randn(examples, inputs, generator=random, dtype=torch.float64)
    y = torch.randn(examples, outputs, generator=random, dtype=torch.float64)
    model = nn.Linear(inputs, outputs, bias=False).double()
    entry = spectra.density(model, nn.MSELoss(), (x, y), curvature="ggn", steps=40, probes=10)
    found = summarise(entry).marchenko_pastur
    assert found.fits
    for number, value in ((found.variance, 2 / outputs), (found.ratio, inputs / examples)):
        assert number.value == pytest.approx(value, rel=0.05, abs=3 * number.standard_error)


@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.0])
def test_the_distribution_of_marchenko_and_pastur(ratio):
    low, high = ((1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2)
    x = np.linspace(low, high, 7)[1:]
    masses = [
        quad(lambda t: math.sqrt(max(0, (high - t) * (t - low))) / (2 * math.pi * ratio * t), low, end)[0] for end in x
    ]
    np.testing.assert_allclose(distribution(2 * x, 2.0, ratio), max(0, 1 - 1 / ratio) + np.array(masses), atol=2e-6)


def test_localisation_of_known_vectors():
    one, even = np.zeros(12), np.full(12, -3.0)
    one[4] = 2
    found = spectra.localisation(np.stack([one, even]), {"0.weight": [3, 2], "0.bias": [2], "1.weight": [4]})
    np.testing.assert_allclose(found.inverse_participation, [1, 1 / 12])
    np.testing.assert_allclose(found.participants(), [1, 12])
    assert (found.layers, found.sizes, found.random) == (["0", "1"], [8, 4], 3 / 14)
    np.testing.assert_allclose(found.shares, [[1, 0], [2 / 3, 1 / 3]])
    np.testing.assert_allclose(found.inverse_participation_by_layer, [[1, np.nan], [1 / 8, 1 / 4]])
    np.testing.assert_allclose(found.random_by_layer, [3 / 10, 3 / 6])


@pytest.mark.parametrize("size", [1, 2, 50])
def test_localisation_of_random_vectors(size):
    vectors = torch.randn(4000, size, generator=seeded(), dtype=torch.float64)
    found = spectra.localisation(vectors, {"a.w": [size]})
    ratios = found.inverse_participation
    assert ratios.mean() == pytest.approx(found.random, abs=4 * found.random_deviation / 4000**0.5 + 1e-12)
    assert ratios.std() == pytest.approx(found.random_deviation, rel=0.1, abs=1e-12)


@pytest.mark.parametrize(
    ("vectors", "shapes", "reason"),
    [
        (np.ones((2, 5)), {"w": [4]}, "they have 4 entries in total, but eigenvectors have 5"),
        (np.zeros((1, 5)), None, "zero or not finite"),
        (np.full((1, 5), np.nan), None, "zero or not finite"),
    ],
)
def test_vectors_that_have_no_localisation(vectors, shapes, reason):
    with pytest.raises(SpectraError, match=reason):
        spectra.localisation(vectors, shapes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Results of a command on a small network, read again."""
    out = tmp_path_factory.mktemp("summaries")
    base = "--model spectra.demo:mlp --data digits --samples 60 --dtype float64 --curvature ggn --out"
    assert run(f"density {base} {out} --damping 0.01 --steps 25 --probes 3".split()) == 0
    assert run(f"eig {base} {out} -k 3".split()) == 0
    return out


def test_saved_results(saved):
    tree = json.loads((saved / "density.json").read_text())["results"][0]["summaries"]
    entry = spectra.load_result(saved / "density.json").results[0]
    again = summarise(entry, damping=0.01)
    assert again.to_dict() == entry.summaries.to_dict() == tree
    assert summarise(spectra.load_result(saved / "density.json"), damping=0.01).to_dict() == tree
    assert "log_determinant" in summarise(entry).left_out
    problem = spectra.load_problem(model="spectra.demo:mlp", data="digits", samples=60, dtype="float64").problem
    gram = torch.linalg.eigvalsh(spectra.Curvature(problem, "ggn").factor().gram()).clamp(min=0).cpu().numpy()
    spectrum = np.concatenate([gram, np.zeros(entry.dimension - len(gram))])
    for name, value in truth(spectrum, entry.outliers.above.count).items():
        number = tree[name]
        assert abs(number["value"] - value) <= 4 * number["standard_error"] + number["quadrature_error"] < value / 2
    determinant = np.log(spectrum + 0.01).sum()
    number = tree["log_determinant"]
    assert abs(number["value"] - determinant) <= 4 * number["standard_error"] + number["quadrature_error"]


def test_a_result_of_before_there_were_summaries(saved, tmp_path, capfd):
    """Its report and its summaries are read from its nodes and weights alone."""
    tree = json.loads((saved / "density.json").read_text())
    kept = tree["results"][0].pop("summaries")
    (tmp_path / "density.json").write_text(json.dumps(tree))
    record = spectra.load_result(tmp_path)
    assert record.results[0].summaries is None
    assert summarise(record, damping=0.01).to_dict() == kept
    pages = []
    for directory in (saved, tmp_path):
        page = tmp_path / "page.html"
        assert run(["report", str(directory / "density.json"), "--out", str(page)]) == 0
        pages.append(re.sub(r"\s+", " ", page.read_text()))
    for line in ("effective rank", "Marchenko-Pastur", "log-determinant"):
        assert pages[0].count(line) == pages[1].count(line) > 0


def test_localisation_of_saved_eigenvectors(saved):
    record = spectra.load_result(saved / "eig.json")
    found = spectra.localisation(record)
    (vectors,) = [entry.vectors for entry in record.results]
    assert found.layers == ["1", "3", "5"]
    np.testing.assert_allclose(found.inverse_participation, (vectors**4).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.shares[:, 0], (vectors[:, : 64 * 32 + 32] ** 2).sum(axis=1), rtol=1e-9)
    assert max(map(len, str(found).splitlines())) <= 80
    assert len(list(found.rows())) == 9


def test_summaries_in_words(capfd, tmp_path):
    base = "density --model spectra.demo:mlp --data digits --samples 60 --steps 20 --probes 3 --damping 0.01 --out"
    assert run([*base.split(), str(tmp_path), "--curvature", "ggn", "--curvature", "hessian"]) == 0
    out = capfd.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("ggn: outliers above the bulk make up") for line in lines)
    assert any(line.startswith("hessian: effective rank, participation ratio, outlier share,") for line in lines)
    assert "log-determinant" in out
    assert "None" not in out
    assert " nan" not in out


def test_results_that_are_refused(saved):
    a = with_spectrum(GGN)
    density = spectra.load_result(saved / "density.json")
    eig = spectra.load_result(saved / "eig.json")
    several = replace(density, results=2 * density.results)
    for given in (a, several, eig.results[0], eig, nn.Linear(1, 1)):
        with pytest.raises(SpectraError, match="`result`"):
            summarise(given)
    with pytest.raises(SpectraError, match="`semidefinite` True"):
        summarise(exact(np.linspace(-0.5, 1, 40)), semidefinite=True)
    with pytest.raises(SpectraError, match="not finite"):
        summarise(spectral_measure(not_finite(), steps=2, probes=1))
