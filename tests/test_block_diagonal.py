"""Diagonal blocks side by side: each has the eigenpairs and spectra that it has alone, at the cost of the longest."""

import numpy as np
import pytest
import torch
from helpers import Widths, expected, not_finite, seeded, uniform, with_spectrum
from torch import Tensor

from spectra.krylov import blocks as widths
from spectra.krylov.block_diagonal import BlockDiagonal, block_eigenpairs, block_measures, block_products
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.quadrature import spectral_measure
from spectra.operator import Counting

N = 150
SHUFFLED = torch.randperm(N, generator=seeded(9))


def places(*sizes: int) -> list[Tensor]:
    """Disjoint indices of these sizes, that do not lie side by side; what is left is in no block."""
    return [index.sort().values for index in SHUFFLED[: sum(sizes)].split(list(sizes))]


def with_blocks(index: list[Tensor], spectra: list) -> Tensor:
    """Blocks of these spectra, and anything between them."""
    a = with_spectrum(uniform(N, -1, 1), seed=4)
    for i, (block, spectrum) in enumerate(zip(index, spectra, strict=True)):
        a[block[:, None], block] = with_spectrum(spectrum, seed=i)
    return a


UNEVEN = places(60, 1, 25, 2, 30, 12)
SPECTRA = [
    np.concatenate([[9, -6, 4], uniform(57, -1, 1)]),
    [2.5],
    np.zeros(25),
    [1.0, -3.0],
    np.concatenate([np.full(3, 5.0), np.full(2, -5.0), uniform(25, -1, 1, seed=2)]),
    np.linspace(1, 2, 12),
]
A = with_blocks(UNEVEN, SPECTRA)


def block_of(a: Tensor, index: Tensor) -> Tensor:
    return a[index][:, index]


def dense(a: Tensor, index: list[Tensor]) -> Tensor:
    made = torch.zeros_like(a)
    for block in index:
        made[block[:, None], block] = block_of(a, block)
    return made


def found(a: Tensor = A, index: list[Tensor] = UNEVEN, k: int = 1, seed: int = 0, **settings):
    return block_eigenpairs(BlockDiagonal(a, index), index, k, generator=seeded(seed), **settings)


# The matrix


@pytest.mark.parametrize("widest", [1, 3, 16])
@pytest.mark.parametrize("columns", [None, 1, 5])
def test_it_is_the_dense_block_diagonal(columns, widest, monkeypatch):
    monkeypatch.setattr(widths, "WIDEST", widest)
    vectors = torch.randn(N, *([columns] if columns else []), generator=seeded(), dtype=torch.float64)
    made = BlockDiagonal(A, UNEVEN) @ vectors
    assert made.shape == vectors.shape
    torch.testing.assert_close(made, dense(A, UNEVEN) @ vectors, rtol=0, atol=1e-12)


def test_blocks_in_which_a_vector_is_zero_cost_nothing():
    counted = Counting(A)
    vectors = torch.zeros(N, 3, dtype=torch.float64)
    vectors[UNEVEN[0][3], 0] = 1
    vectors[UNEVEN[4], 2] = 1
    operator = BlockDiagonal(counted, UNEVEN)
    torch.testing.assert_close(operator @ vectors, dense(A, UNEVEN) @ vectors, rtol=0, atol=1e-12)
    assert counted.products == 2
    assert not (operator @ torch.zeros(N, dtype=torch.float64)).any()
    assert counted.products == 2


# Eigenpairs


@pytest.mark.parametrize("k", [1, 2, 4])
def test_eigenpairs_are_those_of_each_block(k):
    pairs = found(k=k, tolerance=1e-8)
    for own, index in zip(pairs, UNEVEN, strict=True):
        block = block_of(A, index)
        truth = expected(torch.linalg.eigvalsh(block), k, "LM")
        assert own.converged
        assert own.complete in (True, None)
        assert len(own.values) == min(k, len(index))
        torch.testing.assert_close(own.values.abs(), truth.abs(), rtol=0, atol=1e-7)
        residuals = torch.linalg.vector_norm(block @ own.vectors.T - own.vectors.T * own.values, dim=0)
        assert (residuals <= own.residuals * (1 + 1e-6) + 1e-13).all()
        assert (own.residuals <= 1e-8 * own.values.abs() + 1e-13).all()
        gram = own.vectors @ own.vectors.T
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-7)


def test_products_are_those_that_were_made():
    counted = Counting(A)
    pairs = found(counted, k=2, tolerance=1e-6)
    assert sum(own.products for own in pairs) == counted.products
    spent = [own.products for own in pairs]
    assert len(set(spent)) > 2  # each ends at a time of its own
    assert spent[1] <= 3  # of a block of one row


def test_one_call_serves_all_blocks():
    """As many calls as the block that takes longest has; of all blocks at first, of that one at last."""
    operator = Widths(BlockDiagonal(A, UNEVEN))
    inner = operator.operator.operator = Widths(A)
    pairs = block_eigenpairs(operator, UNEVEN, 1, generator=seeded())
    spent = [own.products for own in pairs]
    assert len(operator.widths) <= max(spent) < sum(spent)
    assert inner.widths[0] == len(UNEVEN)
    assert inner.widths[-1] < len(UNEVEN)


@pytest.mark.parametrize("others", [[], [2, 1], [1, 3, 4, 5]])
def test_what_a_block_comes_to_does_not_depend_on_the_others(others):
    index = [UNEVEN[0], *(UNEVEN[i] for i in others)]
    one, all_of_it = found(index=index, k=3, tolerance=1e-6)[0], found(k=3, tolerance=1e-6)[0]
    assert one.products == all_of_it.products
    torch.testing.assert_close(one.values, all_of_it.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.vectors, all_of_it.vectors, rtol=0, atol=1e-9)


def test_equal_blocks_start_from_vectors_of_their_own():
    """Else what one misses by chance all would."""
    index = places(40, 40)
    a = with_blocks(index, [uniform(40, -1, 1)] * 2)
    a[index[1][:, None], index[1]] = block_of(a, index[0])
    one, other = found(a, index, k=2, tolerance=1e-2, max_products=15)
    assert (one.vectors - other.vectors).abs().max() > 1e-6  # beyond rounding, which places alone change


def test_vectors_of_different_widths_share_a_call():
    operator = Widths(BlockDiagonal(A, UNEVEN))
    asked = {0: (60,), 2: (25, 1), 4: (30, 4), 5: (12, 2)}
    vectors = {i: torch.randn(shape, generator=seeded(i), dtype=torch.float64) for i, shape in asked.items()}
    products = block_products(operator, UNEVEN, vectors)
    assert operator.widths == [4]
    for i, given in vectors.items():
        torch.testing.assert_close(products[i], block_of(A, UNEVEN[i]) @ given, rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget", [2, 3, 5, 10])
def test_a_budget_is_that_of_each_block(budget):
    counted = Counting(A)
    pairs = found(counted, k=1, tolerance=1e-10, max_products=budget)
    assert counted.products == sum(own.products for own in pairs) <= budget * len(UNEVEN)
    for own, index in zip(pairs, UNEVEN, strict=True):
        assert own.products <= budget
        assert len(own.values) == 1
        spectrum = torch.linalg.eigvalsh(block_of(A, index))
        assert (spectrum - own.values).abs().min() <= own.residuals + 1e-12
        allowed = allowed_residuals(own.values, spectrum.abs().max().item(), 1e-10, A.dtype)
        assert own.converged == bool((own.residuals <= allowed).all())
    assert not pairs[0].converged
    assert pairs[1].converged


def test_products_that_are_not_finite_end_each_block():
    index = [torch.arange(30), torch.arange(30, 60)]
    first, second = found(not_finite(60), index, k=2)  # whose bad row lies in the second
    assert first.converged
    assert not second.converged
    assert second.values.isnan().all()


def test_the_same_seed_gives_the_same_bits():
    one, other, third = (found(k=2, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a.vectors, b.vectors) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0].vectors, third[0].vectors)


def test_progress_counts_blocks_that_are_done():
    seen = []
    pairs = found(progress=lambda **numbers: seen.append((numbers["products"], numbers["converged"])))
    assert seen == sorted(seen)
    assert seen[-1] == (sum(own.products for own in pairs), len(UNEVEN))


# Spectra


def measured(known=(), a: Tensor = A, index: list[Tensor] = UNEVEN, seed: int = 0, **settings):
    return block_measures(BlockDiagonal(a, index), index, known, generator=seeded(seed), **settings)


def test_moments_are_within_their_errors():
    """The mean, and that of squares; a probe of so many products has them exactly for its start."""
    for own, index in zip(measured(probes=30, steps=4), UNEVEN, strict=True):
        spectrum = torch.linalg.eigvalsh(block_of(A, index))
        assert own.dimension == len(index)
        assert own.deflated == 0
        torch.testing.assert_close(own.weights.sum(dim=1), torch.ones(30, dtype=torch.float64), rtol=0, atol=1e-12)
        for function in (lambda x: x, lambda x: x**2):
            value, error = own.mean(function)
            assert abs(value - function(spectrum).mean().item()) <= 4 * error + 1e-12


def test_as_many_steps_as_rows_find_the_whole_spectrum():
    for i in (0, 3, 5):  # whose eigenvalues are simple
        own = measured(probes=2, steps=80)[i]
        spectrum = torch.linalg.eigvalsh(block_of(A, UNEVEN[i]))
        for nodes, weights in zip(own.nodes, own.weights, strict=True):
            torch.testing.assert_close(nodes[: len(spectrum)].sort().values, spectrum, rtol=0, atol=1e-9)
            assert (weights[len(spectrum) :] == 0).all()


def test_known_pairs_are_counted_exactly():
    pairs = found(k=3, tolerance=1e-8)
    for own, known, index in zip(measured(pairs, probes=3, steps=8), pairs, UNEVEN, strict=True):
        atoms = min(3, len(index)) if len(index) != 25 else own.deflated
        assert own.deflated == atoms
        if len(index) == 25:  # of the zero matrix all residuals are zero
            continue
        torch.testing.assert_close(own.nodes[:, :atoms], known.values.expand(3, atoms), rtol=0, atol=1e-12)
        assert (own.weights[:, :atoms] == 1 / len(index)).all()
        assert own.converged
        rest = torch.linalg.eigvalsh(block_of(A, index)).abs().sort().values[: len(index) - atoms]
        if len(rest):
            assert (own.nodes[:, atoms:].abs() <= rest.max() + 1e-6).all()
        else:
            assert own.products == 0


def test_pairs_that_have_not_converged_are_not_taken_out():
    pairs = found(k=3, tolerance=1e-8, max_products=6)
    measures = measured(pairs, probes=2, steps=5)
    assert measures[0].deflated < 3
    assert measures[3].deflated == 2


def test_a_block_alone_has_the_measure_of_its_matrix():
    """The mean of a function over many probes, beside what the method for one matrix says."""
    own = measured(probes=40, steps=15)[0]
    alone = spectral_measure(block_of(A, UNEVEN[0]), probes=40, steps=15, generator=seeded(5))
    for function in (torch.exp, torch.square):
        value, error = own.mean(function)
        other, other_error = alone.mean(function)
        assert abs(value - other) <= 4 * (error + other_error)


@pytest.mark.parametrize(("budget", "probes", "steps"), [(1, 1, 1), (7, 1, 7), (10, 1, 10), (14, 2, 10), (30, 3, 10)])
def test_a_budget_ends_it_early(budget, probes, steps):
    counted = Counting(A)
    measures = measured(a=counted, probes=3, steps=10, max_products=budget)
    assert counted.products == sum(own.products for own in measures)
    assert measures[0].products == budget
    assert measures[0].nodes.shape == (probes, steps)
    assert all(own.products <= budget for own in measures)
    assert [own.converged for own in measures] == [budget == 30] * len(UNEVEN)


def test_all_blocks_share_a_call_a_step():
    operator = Widths(BlockDiagonal(A, UNEVEN))
    measures = block_measures(operator, UNEVEN, (), probes=3, steps=6, generator=seeded())
    assert len(operator.widths) <= 3 * 6
    assert sum(own.products for own in measures) > 4 * len(operator.widths) - 18


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_spectrum_of_what_is_not_finite_is_not_converged(bad):
    index = [torch.arange(30), torch.arange(30, 60)]
    good, broken = measured(a=not_finite(60, bad=bad), index=index, probes=2, steps=5)
    assert good.converged
    assert good.nodes.isfinite().all()
    assert not broken.nodes.isfinite().all()
    assert not broken.converged
