"""Stochastic Lanczos quadrature: the theorems of Gauss quadrature, and distance to known spectra."""

import math

import numpy as np
import pytest
import torch
from helpers import TABLE, Products, Widths, known, matrix, not_finite, seeded, uniform, with_spectrum

from spectra.krylov.deflation import known_pairs
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.forecast import VectorMeter
from spectra.krylov.lanczos import lanczos, random_start
from spectra.krylov.quadrature import converged_pairs, gauss_quadrature, spectral_measure
from spectra.operator import Counting, Deflated
from spectra.spectrum.curves import cms_bounds, wasserstein


def distance(measure, given):
    """Wasserstein-1 from the true spectrum, relative to its range."""
    truth = given.spectrum.numpy()
    scale = np.ptp(truth) or given.size
    return wasserstein(measure.nodes, measure.weights, truth, np.ones(given.n)) / scale


@pytest.mark.parametrize("name", ["ghosts", "network", "strakos", "flat", "softmax", "low rank", "wilkinson"])
def test_gauss_quadrature_is_exact_up_to_its_degree(name):
    """Moments 0 ... 2m - 1, as Chebyshev polynomials of the spectrum on [-1, 1]; 2m is not."""
    given = matrix(name)
    operator = given.matrix / given.size
    values, directions = torch.linalg.eigh(operator)
    start = random_start(operator, seeded())
    measure = (directions.T @ start).square() / start.dot(start)
    for steps in (1, 2, 5, 9):
        nodes, weights = gauss_quadrature(lanczos(operator, start, steps))
        assert len(nodes) == steps

        def error(degree, nodes=nodes, weights=weights):
            chebyshev = [torch.cos(degree * torch.acos(x.clamp(-1, 1))) for x in (values, nodes)]
            return abs((measure @ chebyshev[0] - weights @ chebyshev[1]).item())

        assert max(error(degree) for degree in range(2 * steps)) <= 1e-12
        if steps == 2:
            assert error(4) > 1e-9


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_measure_of_every_matrix(name, dtype):
    given = matrix(name)
    operator = Counting(given.matrix.to(dtype))
    measure = spectral_measure(operator, probes=4, steps=40, generator=seeded())
    eps = torch.finfo(dtype).eps
    assert measure.products == operator.products <= 5 * min(40, given.n)
    assert measure.converged
    assert measure.probes == 4
    assert measure.dimension == given.n
    assert measure.nodes.dtype == measure.weights.dtype == torch.float64
    torch.testing.assert_close(measure.weights.sum(dim=1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert measure.weights.min() >= 0
    atoms = measure.nodes[:, : measure.deflated]
    assert torch.equal(atoms, atoms[:1].expand(4, -1))
    assert (measure.weights[:, : measure.deflated] == 1 / given.n).all()
    nearest = (atoms[0][:, None] - given.spectrum).abs().min(dim=1).values
    assert (nearest <= 1e-3 * atoms[0].abs() + 20 * eps * given.size).all()
    assert measure.nodes.min() >= given.spectrum.min() - 20 * eps * given.size
    assert measure.nodes.max() <= given.spectrum.max() + 20 * eps * given.size


@pytest.mark.parametrize("name", TABLE)
def test_close_to_the_true_spectrum(name):
    given = matrix(name)
    measure = spectral_measure(given.matrix, generator=seeded())
    chance = (2 / (measure.probes * (given.n - measure.deflated + 2))) ** 0.5 * (1 - measure.deflated / given.n)
    assert distance(measure, given) <= 0.003 + 0.7 * chance  # of a Brownian bridge the mean |.| is 0.31


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**30])
def test_scaling_the_matrix_scales_nodes_alone(scale):
    operator = matrix("network").matrix
    one = spectral_measure(operator, probes=2, steps=30, generator=seeded())
    other = spectral_measure(operator * scale, probes=2, steps=30, generator=seeded())
    torch.testing.assert_close(other.nodes, one.nodes * scale, rtol=1e-12, atol=1e-13 * scale)
    torch.testing.assert_close(other.weights, one.weights, rtol=1e-6, atol=1e-12)
    assert (other.products, other.deflated) == (one.products, one.deflated)


def test_marchenko_pastur():
    """Edges (1 +- sqrt(d / N))^2, and what lies between."""
    d, examples = 300, 600
    data = torch.randn(examples, d, generator=seeded(), dtype=torch.float64)
    covariance = data.T @ data / examples
    measure = spectral_measure(covariance, probes=6, steps=60, generator=seeded(1))
    edges = [(1 - 0.5**0.5) ** 2, (1 + 0.5**0.5) ** 2]
    assert measure.nodes.min().item() == pytest.approx(edges[0], abs=0.03)
    assert measure.nodes.max().item() == pytest.approx(edges[1], abs=0.1)
    grid = np.linspace(*edges, 4001)
    middle = (grid[1:] + grid[:-1]) / 2
    law = np.sqrt((edges[1] - middle) * (middle - edges[0])) / (np.pi * middle)
    assert wasserstein(measure.nodes, measure.weights, middle, law) <= 0.03
    assert measure.mean()[0] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_null_space_is_a_mass_at_zero(dtype):
    given = matrix("low rank")
    measure = spectral_measure(given.matrix.to(dtype), generator=seeded())
    near = measure.nodes.abs() <= 100 * torch.finfo(dtype).eps * given.size
    mass = (measure.weights * near).sum(dim=1).mean().item()
    assert mass == pytest.approx(370 / 400, abs=1e-6)
    assert measure.deflated >= 30


@pytest.mark.parametrize(("n", "steps"), [(1, 1), (1, 80), (2, 5), (12, 80), (40, 40), (40, 41)])
def test_as_many_steps_as_rows_give_the_spectrum_itself(n, steps):
    given = known(uniform(n, -1, 2))
    operator = Counting(given.matrix)
    measure = spectral_measure(operator, probes=3, steps=steps, generator=seeded())
    assert measure.converged
    assert measure.deflated == n
    torch.testing.assert_close(measure.nodes.sort().values, given.spectrum.expand(3, n), rtol=0, atol=1e-12)
    assert (measure.weights == 1 / n).all()
    assert measure.products == operator.products == n


@pytest.mark.parametrize(("name", "value"), [("zero", 0.0), ("identity", 1.0)])
def test_one_value_is_one_atom(name, value):
    measure = spectral_measure(matrix(name).matrix, probes=3, steps=20, generator=seeded())
    torch.testing.assert_close(measure.nodes, torch.full_like(measure.nodes, value), rtol=0, atol=1e-14)
    assert measure.converged
    assert measure.products <= 4
    value_again, error = measure.mean()
    assert value_again == pytest.approx(value, abs=1e-14)
    assert error <= 1e-14


def test_deflation_takes_the_chance_out_of_outliers():
    """Without it a lone eigenvalue's weight varies by sqrt(2 / probes) of itself."""
    given = matrix("ghosts")
    for seed in range(10):
        measure = spectral_measure(given.matrix, probes=2, steps=20, generator=seeded(seed))
        outliers = (measure.weights * (measure.nodes > 1.5)).sum(dim=1)
        torch.testing.assert_close(outliers, torch.full_like(outliers, 3 / given.n), rtol=0, atol=1e-6)


def test_the_mean_covers_the_trace():
    given = matrix("network")
    truth = given.spectrum.mean().item()
    means = [spectral_measure(given.matrix, probes=8, steps=12, generator=seeded(s)).mean() for s in range(30)]
    assert np.mean([abs(value - truth) <= 2.4 * error for value, error in means]) >= 0.9  # Student's t, 7 degrees


@pytest.mark.parametrize("name", ["ghosts", "network", "flat", "decay", "opposite", "strakos", "multiple top"])
def test_the_band_is_never_violated_by_any_probe(name):
    """Chebyshev, Markov, Stieltjes against each probe's exact measure, on the deflated matrix."""
    given = matrix(name)
    probes, steps, seed = 4, 15, 7
    measure = spectral_measure(given.matrix, probes=probes, steps=steps, generator=seeded(seed))
    generator = seeded(seed)
    first = lanczos(given.matrix, random_start(given.matrix, generator), steps)
    deflated = Deflated(given.matrix, converged_pairs(first)[1])
    assert len(deflated.basis) == measure.deflated
    whole = deflated @ torch.eye(given.n, dtype=torch.float64)
    values, directions = torch.linalg.eigh((whole + whole.T) / 2)
    share = 1 - measure.deflated / given.n
    grid = np.concatenate([np.linspace(values[0].item() - 0.1, values[-1].item() + 0.1, 501), values.numpy() + 1e-9])
    for probe in range(probes):
        start = deflated.project(random_start(deflated, generator))
        exact = (directions.T @ start).square() / start.dot(start)
        nodes = measure.nodes[probe, measure.deflated :].numpy()
        weights = measure.weights[probe, measure.deflated :].numpy() / share
        lower, upper = cms_bounds(nodes, weights, grid)
        distribution = (exact.numpy()[None, :] * (values.numpy()[None, :] <= grid[:, None])).sum(axis=1)
        assert (lower <= distribution + 1e-9).all()
        assert (distribution <= upper + 1e-9).all()
        assert (upper - lower).max() < 1


@pytest.mark.parametrize("budget", [1, 2, 7, 12, 13, 30, 31, 47, 500])
def test_the_budget_is_never_exceeded(budget):
    operator = Counting(matrix("network").matrix)
    measure = spectral_measure(operator, probes=3, steps=12, generator=seeded(), max_products=budget)
    assert measure.products == operator.products == min(budget, 48)
    assert measure.converged == (budget >= 48)
    torch.testing.assert_close(measure.weights.sum(dim=1), torch.ones(measure.probes).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("n", "good"), [(60, 0), (60, 5), (60, 35), (1, 0)])
def test_products_that_are_not_finite_end_it(bad, n, good):
    operator = Widths(not_finite(n, good, bad))
    measure = spectral_measure(operator, probes=5, steps=30, generator=seeded())
    assert len(operator.widths) <= good + 1
    assert sum(operator.widths) == measure.products
    assert not measure.converged
    assert not measure.nodes.isfinite().all()
    assert math.isnan(measure.mean()[0])


def test_one_probe_that_is_not_finite_ends_all():
    whole = matrix("network").matrix

    def multiply(vectors):
        product = whole @ vectors
        if len(operator.widths) == 15:
            product[0, 2] = math.nan
        return product

    operator = Widths(Products(multiply, len(whole)))
    measure = spectral_measure(operator, probes=5, steps=10, generator=seeded())
    assert operator.widths == [1] * 10 + [5] * 5
    assert not measure.converged
    assert not measure.nodes.isfinite().all()


def test_a_product_alone_is_enough():
    given = matrix("network")
    by_product = spectral_measure(Products(given.matrix.matmul, given.n), probes=2, steps=9, generator=seeded())
    by_tensor = spectral_measure(given.matrix, probes=2, steps=9, generator=seeded())
    torch.testing.assert_close(by_product.nodes, by_tensor.nodes, rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same_bits():
    operator = matrix("network").matrix.float()
    state = torch.get_rng_state()
    one, other = (spectral_measure(operator, probes=2, steps=15, generator=seeded(3)) for _ in range(2))
    assert torch.equal(one.nodes, other.nodes)
    assert torch.equal(one.weights, other.weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_probes_keep_the_first_ones():
    operator = matrix("network").matrix
    few, more = (spectral_measure(operator, probes=p, steps=15, generator=seeded()) for p in (2, 5))
    torch.testing.assert_close(few.nodes, more.nodes[:2], rtol=0, atol=1e-12)


def outliers_and_bulk(n=300):
    return with_spectrum(np.concatenate([[40, 22, 15, 9, 5], uniform(n - 5, -1, 1)]))


def test_all_probes_go_through_one_product():
    operator = Widths(outliers_and_bulk())
    measure = spectral_measure(operator, generator=seeded())
    assert operator.widths == [1] * 80 + [10] * 80
    assert measure.products == 880


@pytest.mark.parametrize("name", ["ghosts", "strakos", "network", "flat", "decay", "opposite", "multiple top"])
def test_the_width_of_blocks_changes_no_number(name):
    given = matrix(name)
    one, other, all_at_once = (
        spectral_measure(given.matrix, probes=7, steps=25, generator=seeded(), largest_basis=largest)
        for largest in (0, 3 * 30, 10**6)
    )
    for blocks in (other, all_at_once):
        torch.testing.assert_close(blocks.nodes, one.nodes, rtol=0, atol=1e-12 * given.size)
        torch.testing.assert_close(blocks.weights, one.weights, rtol=0, atol=1e-11)
        assert (blocks.products, blocks.deflated) == (one.products, one.deflated)


@pytest.mark.parametrize("budget", [13, 24, 35, 36, 40, 59, 60, 61, 83])
def test_a_budget_goes_to_probes_that_it_can_finish(budget):
    operator = matrix("network").matrix
    one, blocks = (
        spectral_measure(operator, probes=7, steps=12, generator=seeded(), max_products=budget, largest_basis=largest)
        for largest in (0, 10**6)
    )
    assert blocks.products == budget
    assert blocks.probes == math.ceil((budget - 12) / 12)
    torch.testing.assert_close(blocks.nodes, one.nodes, rtol=0, atol=1e-12)
    torch.testing.assert_close(blocks.weights, one.weights, rtol=0, atol=1e-12)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("vectors", "width"), [(0, 1), (74, 1), (75, 2), (109, 2), (110, 3), (10**6, 9)])
def test_bases_of_all_probes_lie_within_what_they_may_take(monkeypatch, vectors, width):
    """5 vectors are known and shared; a probe has 31 for its basis and 4 on the way."""
    operator = Widths(outliers_and_bulk(1000))
    pairs = eigenpairs(operator.operator, 5, tolerance=1e-6, generator=seeded(1))
    pairs = known_pairs(operator.operator, pairs.values, pairs.vectors, pairs.residuals)
    monkeypatch.setattr("spectra.krylov.blocks.memory_share", lambda device: vectors * 8000)
    with VectorMeter(1000) as scales:
        measure = spectral_measure(operator, probes=9, steps=30, known=pairs, generator=seeded())
    assert measure.deflated == 5
    assert max(operator.widths) == width
    assert scales.peak <= max(vectors, 40) * 8000 + pairs.vectors.nbytes  # which are the caller's
    assert scales.peak >= width * 31 * 8000
