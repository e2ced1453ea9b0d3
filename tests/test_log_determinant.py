"""The log-determinant against dense eigenvalues and slogdet, and both of its errors against what they are to cover."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import TABLE, matrix, not_finite, seeded, uniform, with_spectrum
from scipy.linalg import eigh_tridiagonal

import spectra
from spectra import SpectraError, SpectralMeasure, log_determinant, spectral_measure
from spectra.krylov.eigenpairs import eigenpairs
from spectra.spectrum.summaries import jacobi

GGN = np.concatenate([[40, 22, 15, 9, 5], 10 ** uniform(75, -6, 0), np.zeros(40)])  # as of a network: n = 120


def dense(a: torch.Tensor, damping: float = 0.0) -> float:
    sign, value = np.linalg.slogdet(a.numpy() + damping * np.eye(len(a)))
    assert sign == 1
    return float(value)


@cache
def measures(kind: str) -> tuple[torch.Tensor, list[SpectralMeasure]]:
    """A matrix with 60 measures of it, each of other probes."""
    a = with_spectrum(GGN if kind == "ggn" else 10 ** uniform(120, -2, 0))
    return a, [spectral_measure(a, steps=20, generator=seeded(seed)) for seed in range(60)]


def first(probes: int, measure: SpectralMeasure) -> SpectralMeasure:
    return replace(measure, nodes=measure.nodes[:probes], weights=measure.weights[:probes])


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", ["low rank", "softmax", "flat", "decay", "strakos", "zero", "identity"])
def test_exact_where_lanczos_ends(name, damping):
    """As of as many steps as rows, or of a matrix with few different eigenvalues."""
    given = matrix(name)
    measure = spectral_measure(given.matrix, probes=3, steps=min(given.n, 60 if name == "low rank" else given.n))
    for semidefinite in (True, False):
        found = log_determinant(measure, damping, semidefinite=semidefinite)
        assert found.value == pytest.approx(dense(given.matrix, damping), rel=1e-9, abs=1e-9 * given.n)
        assert found.standard_error == pytest.approx(0, abs=1e-6 * given.n)
        assert found.quadrature_error == pytest.approx(0, abs=1e-6 * given.n)


def test_the_determinant_of_a_matrix_itself():
    given = matrix("flat")
    assert log_determinant(spectral_measure(given.matrix, steps=120)).value == pytest.approx(dense(given.matrix))


@pytest.mark.parametrize("probes", [1, 2, 3, 10])
@pytest.mark.parametrize("damping", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize(("kind", "semidefinite"), [("ggn", True), ("positive", False)])
def test_intervals_cover(kind, semidefinite, damping, probes):
    a, some = measures(kind)
    found = [log_determinant(first(probes, measure), damping, semidefinite=semidefinite) for measure in some]
    truth = dense(a, damping)
    covered = [abs(value - truth) <= 2 * error + rest for value, error, rest in found]
    assert np.mean(covered) >= 0.9
    spread = np.std([value for value, _, _ in found], ddof=1)
    expected = np.mean([error for _, error, _ in found])
    assert 0.75 * spread <= expected <= (4 if probes < 4 else 2) * spread  # neither too small nor of no use


@pytest.mark.parametrize("damping", [1e-6, 1e-4, 0.01, 1.0])
@pytest.mark.parametrize("steps", [3, 6, 12])
def test_the_quadrature_error_bounds_that_of_each_probe(steps, damping):
    """Rules of a measure that is known, without any chance: the true sum lies between Gauss and Gauss-Radau."""
    nodes, weights = uniform(100, 0.0, 1) ** 4, uniform(100, seed=1)
    weights /= weights.sum()
    diagonal, off_diagonal = jacobi(nodes, weights)
    gauss, vectors = eigh_tridiagonal(diagonal[:steps], off_diagonal[: steps - 1])
    rule = SpectralMeasure(torch.tensor(gauss[None]), torch.tensor(vectors[:1] ** 2), dimension=50)
    found = log_determinant(rule, damping, semidefinite=True)
    truth = 50 * weights @ np.log(nodes + damping)
    assert abs(found.value - truth) <= found.quadrature_error + 1e-12
    estimated = log_determinant(rule, damping)
    assert estimated.value >= truth - 1e-9  # Gauss quadrature of a logarithm
    assert estimated.value == pytest.approx(found.value + found.quadrature_error)
    if damping >= 0.01:
        assert estimated.value - truth <= estimated.quadrature_error


def rule_of(nodes: list[float], weights: list[list[float]]) -> SpectralMeasure:
    """A measure of ten dimensions, whose probes share their nodes."""
    shares = torch.tensor(weights, dtype=torch.float64)
    return SpectralMeasure(torch.tensor(nodes, dtype=torch.float64).expand(shares.shape), shares, dimension=10)


def test_probes_that_share_all_nodes_have_no_quadrature_error():
    """Their nodes are all the eigenvalues there are; chance is left."""
    found = log_determinant(rule_of([1, 2, 8], [[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]), semidefinite=True)
    assert found.value == pytest.approx(10 * (0.45 + 3 * 0.25) * math.log(2))
    assert found.standard_error > found.quadrature_error == 0


def test_a_node_that_may_be_zero_may_be_zero():
    """In single precision 1e-9 beside 1 is rounding, however far off from the damping."""
    found = log_determinant(rule_of([1e-9, 1], [[0.5, 0.5]]), 1e-10, semidefinite=True)
    assert found.quadrature_error == pytest.approx(0.5 * 10 * 0.5 * math.log(11))


@pytest.mark.parametrize("name", ["decay", "flat"])
@pytest.mark.parametrize("scale", [2.0**-30, 2.0**30])
def test_scaling_the_matrix_adds_n_log_of_the_scale(name, scale):
    given = matrix(name)
    one, other = (
        log_determinant(spectral_measure(c * given.matrix, probes=3, steps=12), c * 0.01, semidefinite=True)
        for c in (1.0, scale)
    )
    assert other.value == pytest.approx(one.value + given.n * math.log(scale), rel=1e-9)
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-6)
    assert other.quadrature_error == pytest.approx(one.quadrature_error, rel=1e-6)


def test_a_shifted_matrix_is_one_with_damping():
    given = matrix("decay")
    shifted = given.matrix + 0.5 * torch.eye(given.n, dtype=torch.float64)
    by_matrix = log_determinant(spectral_measure(shifted, probes=3, steps=10), 0.1)
    by_damping = log_determinant(spectral_measure(given.matrix, probes=3, steps=10), 0.6)
    assert abs(by_matrix.value - by_damping.value) <= 3 * (by_matrix.standard_error + by_damping.standard_error)
    truth = dense(given.matrix, 0.6)
    assert by_matrix.value == pytest.approx(truth, abs=3 * by_matrix.standard_error + by_matrix.quadrature_error)


def test_known_eigenvalues_have_no_error():
    """The smallest weigh most: those that are known take their share of chance away."""
    a = with_spectrum(np.concatenate([np.linspace(1, 1.5, 99), [1e-9]]))
    smallest = eigenpairs(a, 1, which="SA", tolerance=1e-8)
    alone, beside = (log_determinant(spectral_measure(a, probes=4, steps=8, known=known)) for known in (None, smallest))
    truth = dense(a)
    assert abs(beside.value - truth) <= 2 * beside.standard_error + beside.quadrature_error
    assert beside.standard_error < 0.2 * alone.standard_error


def test_products_in_single_precision():
    """Nodes that are zero but for rounding may be taken for what rounding makes of them, and the error says so."""
    a = with_spectrum(GGN)
    for damping in (1e-9, 1e-7, 1e-5, 1e-2):
        found = log_determinant(spectral_measure(a.float(), steps=60), damping, semidefinite=True)
        assert abs(found.value - dense(a, damping)) <= 3 * found.standard_error + found.quadrature_error


def test_noise_of_products_widens_the_error():
    given = matrix("flat")
    measure = spectral_measure(given.matrix, steps=120)
    found = log_determinant(replace(measure, noise=1e-3), 0.5)
    moved = 0.5 * (dense(given.matrix, 0.501) - dense(given.matrix, 0.499))
    assert found.quadrature_error == pytest.approx(moved)
    with pytest.raises(SpectraError, match="take a damping above"):
        log_determinant(replace(measure, noise=2.0), 0.5)


def test_one_damping_after_another_costs_nothing():
    """The log-determinant grows with the damping, by tr (A + damping I)^-1."""
    given = matrix("decay")
    measure = spectral_measure(given.matrix, steps=150)
    low, high = (log_determinant(measure, 0.1 + step).value for step in (-1e-5, 1e-5))
    assert (high - low) / 2e-5 == pytest.approx((1 / (given.spectrum + 0.1)).sum().item(), rel=1e-6)


def test_every_known_spectrum_has_an_answer_or_a_way_out():
    for name in TABLE:
        given = matrix(name)
        for probes, steps in ((1, 1), (1, 12), (3, 2)):
            measure = spectral_measure(given.matrix, probes=probes, steps=steps)
            damping = 0.1 * given.size - min(given.spectrum.min().item(), 0)
            found = log_determinant(measure, damping)
            truth = dense(given.matrix, damping)
            assert abs(found.value - truth) <= 4 * found.standard_error + found.quadrature_error + 1e-9 * given.n


def test_matrices_without_one_are_refused():
    indefinite = spectral_measure(with_spectrum(np.linspace(-0.5, 1, 40)), steps=40)
    with pytest.raises(SpectraError, match=r"`damping` 0.4: .* nodes down to -0.1; take a damping above 0.5"):
        spectra.log_determinant(indefinite, 0.4)
    assert log_determinant(indefinite, 0.6).value == pytest.approx(np.log(np.linspace(-0.5, 1, 40) + 0.6).sum())
    singular = spectral_measure(matrix("low rank").matrix)
    for semidefinite in (False, True):
        with pytest.raises(SpectraError, match="not positive definite"):
            log_determinant(singular, semidefinite=semidefinite)
    with pytest.raises(SpectraError, match="`measure`: a node is not finite"):
        log_determinant(spectral_measure(not_finite(), steps=5, probes=2), 1.0)
    with pytest.raises(SpectraError, match=r"`measure`: expected a SpectralMeasure, .*, got Tensor"):
        log_determinant(torch.eye(3), 1.0)
    with pytest.raises(SpectraError, match="`damping`"):
        log_determinant(indefinite, math.nan)


def test_a_matrix_that_is_not_semidefinite_is_not_called_so():
    measure = spectra.spectral_measure(torch.diag(torch.tensor([-2.0, 1.0, 5.0], dtype=torch.float64)))
    with pytest.raises(spectra.SpectraError, match="`semidefinite` True: the lowest node is -2"):
        spectra.log_determinant(measure, 0.1, semidefinite=True)
