"""Curves of a measure: theorems about bounds, mass and scale, and the coverage of every band."""

import numpy as np
import pytest
import scipy.stats
import torch

from spectra.directions.spread import spread
from spectra.krylov.results import SpectralMeasure
from spectra.spectrum.curves import (
    asinh_grid,
    asinh_scale,
    cms_bounds,
    cumulative,
    density,
    linear_grid,
    mass_near_zero,
    student_quantile,
    wasserstein,
)
from spectra.spectrum.recording import negative_share


def quadrature(eigenvalues, probe, steps):
    """Gauss quadrature of sum_i probe_i^2 delta(eigenvalue_i): Lanczos on a diagonal matrix."""
    basis, diagonal, off_diagonal = [], [], []
    vector = probe / np.linalg.norm(probe)
    for _ in range(steps):
        basis.append(vector)
        image = eigenvalues * vector
        diagonal.append(vector @ image)
        for _ in range(2):
            image = image - np.transpose(basis) @ (np.array(basis) @ image)
        if (residual := np.linalg.norm(image)) <= 1e-9 * np.abs(eigenvalues).max():
            break
        off_diagonal.append(residual)
        vector = image / residual
    side = off_diagonal[: len(diagonal) - 1]
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(side, 1) + np.diag(side, -1))
    return nodes, vectors[0] ** 2


def slq(eigenvalues, steps=40, probes=4, deflated=0, seed=0):
    """What stochastic Lanczos quadrature returns for a matrix with these eigenvalues."""
    generator = np.random.default_rng(seed)
    eigenvalues = np.asarray(eigenvalues, dtype=float)
    order = np.argsort(-np.abs(eigenvalues), kind="stable")
    known, rest = eigenvalues[order[:deflated]], eigenvalues[order[deflated:]]
    rows = [quadrature(rest, generator.standard_normal(rest.size), steps) for _ in range(probes if rest.size else 0)]
    longest = max((len(nodes) for nodes, _ in rows), default=0)
    nodes = np.zeros((probes, deflated + longest))
    weights = np.zeros_like(nodes)
    nodes[:, :deflated], weights[:, :deflated] = known, 1 / eigenvalues.size
    for row, (some_nodes, some_weights) in enumerate(rows):
        stop = deflated + len(some_nodes)
        nodes[row, deflated:stop] = some_nodes
        weights[row, deflated:stop] = some_weights * rest.size / eigenvalues.size
    return SpectralMeasure(torch.tensor(nodes), torch.tensor(weights), eigenvalues.size, deflated)


def network(size=1000, seed=0):
    """Ten outliers, a bulk that crowds around zero over many decades, a fifth of it negative."""
    generator = np.random.default_rng(seed)
    bulk = np.minimum(10 ** generator.normal(-3.5, 1, size - 10), 0.5)
    bulk *= np.where(generator.random(size - 10) < 0.2, -0.3, 1)
    return np.concatenate([np.geomspace(50, 5, 10), bulk])


def marchenko_pastur(size=300, seed=0):
    factor = np.random.default_rng(seed).standard_normal((2 * size, size))
    return np.linalg.eigvalsh(factor.T @ factor / (2 * size))


def low_rank(size=400, rank=30, seed=0):
    return np.concatenate([np.random.default_rng(seed).uniform(0.5, 3, rank), np.zeros(size - rank)])


def semicircle_with_spikes(size=300, seed=0):
    noise = np.random.default_rng(seed).standard_normal((size, size))
    return np.linalg.eigvalsh((noise + noise.T) / np.sqrt(2 * size) + np.diag([5.0, 4, 3] + [0] * (size - 3)))


def scaled(measure, factor):
    return SpectralMeasure(measure.nodes * factor, measure.weights, measure.dimension, measure.deflated)


SPECTRA = {
    "network": (network(), 10),
    "network, nothing deflated": (network(), 0),
    "negative network": (-network(), 10),
    "marchenko-pastur": (marchenko_pastur(), 0),
    "low rank": (low_rank(), 10),
    "spikes": (semicircle_with_spikes(), 3),
    "zero": (np.zeros(50), 0),
    "one point": (np.full(50, -3.0), 0),
    "one dimension": (np.array([2.0]), 0),
    "bulk of zeros": (np.concatenate([[3.0, 2.0, -1.0], np.zeros(60)]), 3),
    "all known": (np.linspace(-1, 2, 30), 30),
}


@pytest.fixture(params=SPECTRA, scope="module")
def measure(request):
    eigenvalues, deflated = SPECTRA[request.param]
    return slq(eigenvalues, deflated=deflated)


def true_fraction(eigenvalues, x):
    return np.searchsorted(np.sort(eigenvalues), x, side="right") / eigenvalues.size


@pytest.mark.parametrize("seed", range(60))
def test_cms_bounds_hold_the_measure_whose_quadrature_they_come_from(seed):
    generator = np.random.default_rng(seed)
    size, steps = generator.integers(2, 200), generator.integers(1, 30)
    eigenvalues = generator.choice([generator.standard_normal(size), network(size + 10, seed)[:size]])
    probe = generator.standard_normal(size)
    nodes, weights = quadrature(eigenvalues, probe, steps)
    padded = np.pad(nodes, (0, 3)), np.pad(weights, (0, 3))
    low, high = eigenvalues.min(), eigenvalues.max()
    x = np.concatenate([np.linspace(2 * low - high, 2 * high - low, 500), eigenvalues, eigenvalues - 1e-9])
    share = probe**2 / (probe @ probe)
    order = np.argsort(eigenvalues)
    exact = np.append(0, np.cumsum(share[order]))[np.searchsorted(eigenvalues[order], x, side="right")]
    lower, upper = cms_bounds(*padded, x)
    assert (lower <= exact + 1e-10).all()
    assert (exact <= upper + 1e-10).all()


def test_cms_bounds_are_the_masses_before_and_through_the_neighbouring_nodes():
    lower, upper = cms_bounds(np.array([1.0, 2, 3, 0]), np.array([0.2, 0.5, 0.3, 0]), np.array([1.5, 2.5]))
    np.testing.assert_allclose(lower, [0, 0.2])
    np.testing.assert_allclose(upper, [0.7, 1.0])


def test_cms_bounds_close_in_far_outside_the_nodes():
    nodes, weights = quadrature(marchenko_pastur(), np.ones(300), 12)
    lower, upper = cms_bounds(nodes, weights, np.array([-3.0, 6.0]))
    assert upper[0] < 1e-6
    assert lower[1] > 1 - 1e-6


def test_cumulative_is_a_distribution_inside_its_band(measure):
    band = cumulative(measure, linear_grid([measure]))
    for curve in (band.value, band.lower, band.upper):
        assert (np.diff(curve) >= -1e-12).all()
        assert curve.min() >= -1e-12
        assert curve.max() <= 1 + 1e-12
    assert (band.lower <= band.value + 1e-12).all()
    assert (band.value <= band.upper + 1e-12).all()
    np.testing.assert_allclose(band.value[[0, -1]], [0, 1], atol=1e-12)


@pytest.mark.parametrize("probes", [1, 2, 8])
@pytest.mark.parametrize(
    ("eigenvalues", "deflated"),
    [(np.linspace(0, 1, 25), 0), (marchenko_pastur(60), 0), (network(120), 10), (low_rank(80, 9), 3)],
    ids=["25 points, exact", "marchenko-pastur", "network", "low rank"],
)
def test_the_whole_true_distribution_lies_in_the_band_in_93_percent_of_runs(eigenvalues, deflated, probes):
    covered, narrow = [], []
    grid = np.concatenate([linear_grid([slq(eigenvalues, deflated=deflated)], 101), np.sort(eigenvalues)])
    grid = np.unique(np.concatenate([grid, eigenvalues + 1e-6]))
    truth = true_fraction(eigenvalues, grid - 1e-9)
    for seed in range(60):
        band = cumulative(slq(eigenvalues, 25, probes, deflated, seed), grid - 1e-9)
        covered.append(((band.lower - 1e-9 <= truth) & (truth <= band.upper + 1e-9)).all())
        narrow.append(np.mean(band.upper - band.lower))
    assert np.mean(covered) >= 0.93
    assert np.mean(narrow) < 0.75


def test_one_large_matrix_needs_one_probe_for_a_narrow_band():
    measure = slq(np.linspace(-1, 1, 5_000), steps=60, probes=1)
    band = cumulative(measure, linear_grid([measure]))
    assert (band.upper - band.lower).max() < 0.12


def test_mass_near_zero_is_in_its_band_and_exact_where_quadrature_is():
    eigenvalues = low_rank()
    hits = [mass_near_zero(slq(eigenvalues, deflated=5, seed=seed), 0.1) for seed in range(30)]
    assert all(abs(hit.value - 370 / 400) < 0.05 for hit in hits)
    assert np.mean([hit.lower <= 370 / 400 <= hit.upper for hit in hits]) >= 0.9
    assert max(hit.upper - hit.lower for hit in hits) < 0.05
    assert mass_near_zero(slq(np.zeros(9)), 1.0) == pytest.approx((1, 1, 1))
    assert mass_near_zero(slq(np.linspace(-1, 2, 30), deflated=30), 0.5) == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_density_integrates_to_one_on_either_grid(measure, width):
    for grid in (linear_grid([measure]), asinh_grid([measure], asinh_scale([measure]))):
        band = density(measure, grid, width)
        tolerance = 1e-3 if width <= 1 else 3e-2  # grids leave room for kernels of the default width
        assert np.trapezoid(band.value, grid) == pytest.approx(1, abs=tolerance)
        assert (band.lower >= 0).all()
        assert (band.lower <= band.value).all()
        assert (band.value <= band.upper).all()


@pytest.mark.parametrize("factor", [1e-6, 1e6, -1.0])
def test_everything_scales_with_the_matrix(measure, factor):
    other, size = scaled(measure, factor), abs(factor)
    if not measure.nodes.any():
        return  # a zero matrix is its own multiple
    turn = slice(None, None, 1 if factor > 0 else -1)
    scale = asinh_scale([measure])
    assert asinh_scale([other]) == pytest.approx(size * scale, rel=1e-9)
    np.testing.assert_allclose(mass_near_zero(other, 1.01 * size * scale), mass_near_zero(measure, 1.01 * scale))
    for grid, grid_of_other in (
        (linear_grid([measure]), linear_grid([other])),
        (asinh_grid([measure], scale), asinh_grid([other], size * scale)),
    ):
        np.testing.assert_allclose(grid_of_other, factor * grid[turn], atol=1e-12 * size * np.abs(grid).max())
        curve, of_other = density(measure, grid), density(other, factor * grid[turn])
        for name in ("value", "lower", "upper"):
            expected = getattr(curve, name)[turn] / size
            np.testing.assert_allclose(getattr(of_other, name), expected, rtol=1e-6, atol=1e-9 * expected.max())
        if factor > 0:
            np.testing.assert_allclose(
                cumulative(other, factor * grid).upper, cumulative(measure, grid).upper, atol=1e-9
            )


def test_probes_of_unequal_length_and_padding_change_nothing():
    eigenvalues = network()
    rows = [slq(eigenvalues, steps, 1, seed=steps) for steps in (12, 20)]
    longest = max(row.nodes.shape[1] for row in rows) + 4
    pad = [(0, longest - row.nodes.shape[1]) for row in rows]
    both = SpectralMeasure(
        *(
            torch.cat([torch.nn.functional.pad(getattr(row, field), p) for row, p in zip(rows, pad, strict=True)])
            for field in ("nodes", "weights")
        ),
        dimension=eigenvalues.size,
    )
    grid = linear_grid([both])
    assert grid[0] == pytest.approx(linear_grid(rows)[0], rel=0.2)
    apart = [cumulative(row, grid).value for row in rows]
    np.testing.assert_allclose(cumulative(both, grid).value, np.mean(apart, axis=0), atol=1e-12)
    assert np.trapezoid(density(both, grid).value, grid) == pytest.approx(1, abs=1e-3)


def test_density_finds_the_marchenko_pastur_law_within_its_band():
    measure = slq(marchenko_pastur(600), steps=40, probes=8)
    low, high = (1 - 0.5**0.5) ** 2, (1 + 0.5**0.5) ** 2
    grid = np.linspace(0.3, 2.5, 200)
    band = density(measure, np.linspace(-0.5, 4, 2001))
    law = np.sqrt((high - grid) * (grid - low)) / (np.pi * grid)
    value, lower, upper = (np.interp(grid, band.grid, y) for y in (band.value, band.lower, band.upper))
    np.testing.assert_allclose(value, law, rtol=0.25)
    assert np.mean((lower <= law) & (law <= upper)) > 0.9


def test_deflated_eigenvalues_are_drawn_with_exactly_their_weight():
    measure = slq(network(), deflated=10)
    grid = linear_grid([measure], 4001)
    near = np.abs(grid - 50) < 1
    assert np.trapezoid(density(measure, grid).value[near], grid[near]) == pytest.approx(1 / 1000, rel=1e-3)


def test_wasserstein_closed_forms():
    one = np.ones(1)
    assert wasserstein(np.array([2.0]), one, np.array([5.0]), one) == 3
    assert wasserstein([0, 1], [0.5, 0.5], [0.25, 0.75], [1, 1]) == pytest.approx(0.25)
    assert wasserstein([0, 10], [0.9, 0.1], [0.0], [1.0]) == pytest.approx(1.0)
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 100))
    sorted_gap = np.abs(np.sort(a) - np.sort(b)).mean()
    assert wasserstein(a, np.ones(100), b, np.ones(100)) == pytest.approx(sorted_gap)
    assert wasserstein(a, np.ones(100), a[::-1], np.full(100, 7.0)) == pytest.approx(0, abs=1e-14)
    assert wasserstein(-1e6 * a, one.repeat(100), -1e6 * b, one.repeat(100)) == pytest.approx(1e6 * sorted_gap)
    weights = generator.random((2, 100))
    expected = scipy.stats.wasserstein_distance(a, b, *weights)
    assert wasserstein(a, weights[0], b, weights[1]) == pytest.approx(expected)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 9, 30, 1000])
def test_student_quantile(freedom):
    assert student_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_no_share_below_zero_within_rounding(scale):
    """Zeros, and what rounding leaves of them, are on neither side: of a zero matrix nothing is below."""

    def measure(nodes):
        nodes = scale * torch.tensor(nodes, dtype=torch.float64).expand(3, -1)
        return SpectralMeasure(nodes, torch.full(nodes.shape, 1 / nodes.shape[1], dtype=torch.float64), 1000)

    assert negative_share(measure([0.0]), False).value == 0
    assert negative_share(measure([0.0, -1e-7, 1e-7, 1.0]), False).value == 0
    assert negative_share(measure([0.0, -1e-7, 1e-7, 1.0]), False).upper < 0.1
    assert negative_share(measure([0.0, -1e-3, 1e-7, 1.0]), False).value == pytest.approx(0.25)
    assert spread(scale * np.array([0.0, -1e-9, 1.0])).negative == 0
    assert spread(np.zeros(5)).negative == 0
