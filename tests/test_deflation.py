"""Eigenpairs of an earlier run: taken on the evidence of one product, projected out, their part counted exactly."""

from dataclasses import replace

import pytest
import torch
from helpers import TABLE, known, seeded, with_spectrum

from spectra.krylov.deflation import known_pairs, with_deflation
from spectra.krylov.dense import dense_trace
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.hutch_plus_plus import hutch_plus_plus
from spectra.krylov.hutchinson import hutchinson
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.xtrace import xtrace
from spectra.operator import Counting
from spectra.vectors import orthonormal

NAMES = ["ghosts", "strakos", "low rank", "softmax", "opposite", "network"]
METHODS = [xtrace, hutch_plus_plus, hutchinson, dense_trace]


def earlier(case, k=6, tolerance=1e-3):
    return eigenpairs(case.matrix, k, tolerance=tolerance, generator=seeded(5))


def taken(matrix, pairs):
    return known_pairs(matrix, pairs.values, pairs.vectors, pairs.residuals)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_of_the_matrix_are_taken_for_a_product_each(name):
    case = TABLE[name]()
    counted = Counting(case.matrix)
    pairs = taken(counted, earlier(case))
    k = len(pairs.values)
    assert counted.products == pairs.products == k
    assert k == 6
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_stored_in_float32_serve_float64(name):
    case = TABLE[name]()
    stored = earlier(case)
    pairs = known_pairs(case.matrix, stored.values, stored.vectors.float(), stored.residuals)
    assert pairs.vectors.dtype == torch.float64
    torch.testing.assert_close(pairs.vectors, stored.vectors, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("forge", ["shifted values", "alike sums"])
def test_what_a_forged_file_says_of_pairs_does_not_count(name, forge):
    """Values within the residuals they claim, and vectors of which only the sum is an eigenvector's."""
    case = TABLE[name]()
    pairs = earlier(case, tolerance=1e-8)
    loose = 0.999e-3 * pairs.values.abs()
    if forge == "shifted values":
        forged = replace(pairs, values=pairs.values - 0.9 * loose, residuals=loose)
    else:
        turn = torch.linalg.qr(torch.cat([torch.ones(6, 1), torch.eye(6)[:, 1:]], dim=1).double()).Q
        top = pairs.vectors[0]
        others = torch.linalg.qr(torch.cat([top[None], torch.randn(5, case.n, generator=seeded())]).double().T).Q.T
        vectors = turn * turn[0, 0].sign() @ (others * others[0].dot(top).sign())
        forged = replace(pairs, values=torch.full((6,), pairs.values[0].item()), vectors=vectors, residuals=loose)
    found = taken(case.matrix, forged)
    if forge == "alike sums":
        torch.testing.assert_close(vectors.sum(dim=0), 6**0.5 * top, rtol=0, atol=1e-12)  # all that one product saw
        assert found is None
    else:
        exact = torch.einsum("ki,ij,kj->k", found.vectors, case.matrix, found.vectors)
        torch.testing.assert_close(found.values, exact, rtol=1e-12, atol=1e-12)
        true = case.spectrum.sum().item()
        assert dense_beside(case, found) == pytest.approx(true, rel=1e-9, abs=1e-9 * case.size)


def dense_beside(case, pairs):
    return with_deflation(dense_trace)(case.matrix, known=pairs, generator=seeded()).value


def test_a_budget_takes_the_largest_pairs():
    case = TABLE["network"]()
    counted, pairs = Counting(case.matrix), earlier(case)
    some = known_pairs(counted, pairs.values, pairs.vectors, pairs.residuals, most=3)
    assert counted.products == 3
    torch.testing.assert_close(some.values, pairs.values[:3], rtol=1e-6, atol=0)


OTHERS = {
    "the same spectrum in other directions": lambda c, p: (known(c.spectrum, with_spectrum(c.spectrum, seed=1)), p),
    "a matrix one step on": lambda c, p: (c * 1.01, p),
    "another size": lambda c, p: (c, replace(p, vectors=p.vectors[:, 1:])),
    "vectors in another order": lambda c, p: (c, replace(p, vectors=p.vectors.roll(1, 0))),
    "vectors that are not unit": lambda c, p: (c, replace(p, vectors=2 * p.vectors)),
    "vectors that are not orthogonal": lambda c, p: (c, replace(p, vectors=p.vectors + p.vectors.roll(1, 0))),
    "vectors that are not finite": lambda c, p: (c, replace(p, vectors=p.vectors * torch.nan)),
    "values that are not finite": lambda c, p: (c, replace(p, values=p.values * torch.nan)),
    "none": lambda c, p: (c, replace(p, values=p.values[:0], vectors=p.vectors[:0], residuals=p.residuals[:0])),
}


@pytest.mark.parametrize("wrong", OTHERS)
def test_pairs_of_something_else_are_not(wrong):
    case = TABLE["ghosts"]()
    other, pairs = OTHERS[wrong](case, earlier(case))
    assert taken(other.matrix, pairs) is None


def test_pairs_that_have_not_converged_stay_behind():
    case = TABLE["network"]()
    pairs = earlier(case)
    loose = replace(pairs, residuals=torch.where(torch.arange(6) < 4, pairs.residuals, pairs.values.abs()))
    assert len(taken(case.matrix, loose).values) == 4


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_trace_beside_pairs_is_within_its_error(name, method):
    case = TABLE[name]()
    pairs = taken(case.matrix, earlier(case))
    estimate = with_deflation(method)(case.matrix, known=pairs, rtol=0.02, generator=seeded(1))
    assert estimate.converged
    true = case.spectrum.sum().item()
    assert abs(estimate.value - true) <= 4 * estimate.standard_error + 1e-6 * case.spectrum.abs().sum().item()
    assert estimate.standard_error <= 0.02 * abs(estimate.value)


def test_the_tolerance_is_relative_to_the_whole_trace():
    """What is left of this one is a thousandth of it: Hutchinson's first sixteen samples are enough."""
    case = known([1000.0, 800.0, *torch.linspace(-0.1, 0.1, 198).tolist()])
    pairs = taken(case.matrix, earlier(case, k=2))
    counted = Counting(case.matrix)
    estimate = with_deflation(hutchinson)(counted, known=pairs, rtol=1e-3, generator=seeded())
    assert counted.products == 16
    assert abs(estimate.value - case.spectrum.sum().item()) <= 4 * estimate.standard_error


@pytest.mark.parametrize("seed", range(4))
def test_pairs_spare_products(seed):
    case = TABLE["network"]()
    pairs = taken(case.matrix, earlier(case, k=10))
    alone, beside = Counting(case.matrix), Counting(case.matrix)
    hutchinson(alone, rtol=0.05, generator=seeded(seed))
    with_deflation(hutchinson)(beside, known=pairs, rtol=0.05, generator=seeded(seed))
    assert beside.products < alone.products / 4


def test_without_pairs_the_method_is_as_it_was():
    case = TABLE["network"]()
    one = with_deflation(xtrace)(case.matrix, known=None, generator=seeded())
    assert one == xtrace(case.matrix, generator=seeded())


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_has_known_pairs_for_atoms(name):
    case = TABLE[name]()
    pairs = taken(case.matrix, earlier(case))
    counted = Counting(case.matrix)
    measure = spectral_measure(counted, probes=3, steps=12, known=pairs, generator=seeded(2))
    assert measure.products == counted.products <= 4 * 12
    atoms = measure.nodes[:, : measure.deflated]
    for value in pairs.values:
        assert ((atoms - value).abs().min(dim=1).values <= 1e-3 * value.abs()).all()
    torch.testing.assert_close(measure.weights[:, : measure.deflated], torch.full_like(atoms, 1 / case.n))
    torch.testing.assert_close(measure.weights.sum(dim=1), torch.ones(3, dtype=torch.float64))
    plain = spectral_measure(case.matrix, probes=3, steps=12, generator=seeded(2))
    assert measure.deflated >= plain.deflated


def test_a_measure_whose_budget_ends_in_the_first_run_still_has_the_atoms():
    case = TABLE["network"]()
    pairs = taken(case.matrix, earlier(case))
    measure = spectral_measure(case.matrix, steps=20, known=pairs, generator=seeded(), max_products=5)
    assert not measure.converged
    assert measure.deflated == 6
    torch.testing.assert_close(measure.nodes[0, :6], pairs.values)
    torch.testing.assert_close(measure.weights.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_measure_of_which_everything_is_known_takes_no_product():
    case = known([3.0, 2.0, 1.0, -1.0])
    pairs = taken(case.matrix, earlier(case, k=4, tolerance=1e-8))
    measure = spectral_measure(case.matrix, probes=2, steps=3, known=pairs, generator=seeded())
    assert measure.products == 0
    torch.testing.assert_close(measure.nodes.sort(dim=1).values, case.spectrum.expand(2, 4))


class LowRank:
    """U' diag(values) U in float32, for rows U with entries of very different sizes, as in networks."""

    def __init__(self, values, size):
        rows = torch.randn(len(values), size, generator=seeded(0), dtype=torch.float64) ** 7
        self.rows, self.values = torch.linalg.qr(rows.T).Q.T.float(), torch.tensor(values)
        self.shape, self.dtype, self.device = torch.Size((size, size)), torch.float32, torch.device("cpu")

    def __matmul__(self, columns):
        return self.rows.T @ (torch.diag(self.values) @ (self.rows @ columns))


def test_long_vectors_in_float32_have_length_one_and_are_taken():
    """Sums in float32 would be off by 1e-4, so that the pairs would not be those of the matrix."""
    matrix = LowRank([9.0, 8.0, 5.0, 3.0], 400_000)
    pairs = eigenpairs(matrix, 3, generator=seeded(1))
    again = taken(matrix, pairs)
    assert again is not None
    scaled, _ = orthonormal(matrix.rows * torch.tensor([[2.0], [3.0], [1.0], [4.0]]))
    for vectors in (pairs.vectors, again.vectors, scaled):
        lengths = torch.linalg.vector_norm(vectors.double(), dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)
