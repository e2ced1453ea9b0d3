"""--method gram: the eigenpairs and the trace of J'M J by its factor, against the dense ones."""

import math

import pytest
import torch
from helpers import expected, seeded
from networks import BY_NAME, SOME, name_of
from test_gram import refused

from spectra.curvature.operator import Curvature
from spectra.curvature.roots import ROOTS
from spectra.krylov.dense import dense_matrix
from spectra.krylov.gram import gram_eigenpairs, gram_trace
from spectra.operator import Counting

MLP = BY_NAME["mlp"]


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_eigenpairs(case, name, which):
    """Of either end, zeros included, and of the whole spectrum: orthonormal, with residuals at rounding."""
    matrix = Curvature(case.problem(seed=5, mc_samples=2), name)
    dense = dense_matrix(matrix)
    size = dense.abs().max().item()
    for k in (1, 6, len(dense)):
        pairs = gram_eigenpairs(matrix, k, which=which, generator=seeded())
        assert (pairs.values - expected(torch.linalg.eigvalsh(dense), k, which)).abs().max() < 1e-10 * size
        assert (pairs.vectors @ pairs.vectors.T - torch.eye(k)).abs().max() < 1e-10
        residuals = (pairs.vectors @ dense - pairs.values[:, None] * pairs.vectors).norm(dim=1)
        assert (residuals - pairs.residuals).abs().max() < 1e-10 * size
        assert pairs.residuals.max() < 1e-7 * size
        assert pairs.converged or pairs.values.min() < 1e-10 * size  # such vectors are good to eps sqrt(|A| / lambda)


@pytest.mark.parametrize("which", ["LM", "SA"])
def test_weight_decay(which):
    matrix = Curvature(MLP.problem(weight_decay=0.5), "ggn")
    pairs = gram_eigenpairs(matrix, 5, which=which, generator=seeded())
    assert (pairs.values - expected(torch.linalg.eigvalsh(dense_matrix(matrix)), 5, which)).abs().max() < 1e-10
    trace = gram_trace(matrix)
    assert math.isclose(trace.value, dense_matrix(matrix).trace().item(), rel_tol=1e-10)


@pytest.mark.parametrize("which", ["LM", "SA"])
@pytest.mark.parametrize("name", ["ggn", "fisher-empirical"])
def test_single_precision(name, which):
    matrix = Curvature(MLP.problem(dtype=torch.float32), name)
    pairs = gram_eigenpairs(matrix, 10, which=which, generator=seeded())
    assert pairs.vectors.dtype == torch.float32
    size = torch.linalg.eigvalsh(dense_matrix(matrix)).abs().max().item()
    assert (pairs.residuals <= 1e-6 * size).all()
    # The contract's floor for zeros, 1e-3 eps^(2/3) |A|, lies below float32's rounding: then it has not converged.
    allowed = 1e-3 * pairs.values.abs().clamp(min=torch.finfo(torch.float32).eps ** (2 / 3) * size)
    assert pairs.converged == bool((pairs.residuals <= allowed).all())


def test_no_curvature_at_all():
    matrix = Curvature(BY_NAME["custom, curved nowhere"].problem(), "ggn")
    pairs = gram_eigenpairs(matrix, 3, generator=seeded())
    assert pairs.values.count_nonzero() == 0
    assert (pairs.vectors @ pairs.vectors.T - torch.eye(3)).abs().max() < 1e-10
    assert pairs.converged
    assert gram_trace(matrix).value == 0


def test_products_are_counted_and_bounded():
    matrix = Counting(Curvature(MLP.problem(), "fisher-empirical"))
    pairs = gram_eigenpairs(matrix, 4, generator=seeded())
    assert pairs.products == math.ceil((2 + 4) / 2) + 4  # rows and their test, vectors; residuals
    assert gram_eigenpairs(matrix, 4, generator=seeded(), max_products=pairs.products).converged
    with refused("--max-products", "6 are left", "7", "another method"):
        gram_eigenpairs(matrix, 4, generator=seeded(), max_products=6)
    assert gram_trace(matrix).products == 1
    with refused("--max-products", "0 are left"):
        gram_trace(matrix, max_products=0)
    with refused("-k", "100"):
        gram_eigenpairs(matrix, 100, generator=seeded())


def test_not_finite():
    problem = MLP.problem()
    with torch.no_grad():
        problem.leaves[0][0, 0] = float("nan")
    pairs = gram_eigenpairs(Curvature(problem, "fisher-empirical"), 2, generator=seeded())
    assert pairs.values.isnan().all()
    assert not pairs.converged
