"""Matrices set against each other: exact answers where all is known, honest errors where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import not_finite, seeded, uniform, with_spectrum
from matplotlib.text import Text
from torch import Tensor

from spectra.comparison.agreement import LeadingEigenpairs, agreements
from spectra.comparison.comparison import compare
from spectra.comparison.frobenius import frobenius_products
from spectra.comparison.pairs import Difference
from spectra.errors import SpectraError
from spectra.krylov.lanczos import lanczos
from spectra.krylov.quadrature import gauss_quadrature
from spectra.operator import Counting
from spectra.plots.comparison import comparison_figure
from spectra.plots.examples import held_out_figure
from spectra.spectrum.estimates import Estimate, jackknife_of_means
from spectra.spectrum.subspaces import LEAST_GAP
from spectra.spectrum.transport import halved
from spectra.vectors import orthonormal
from spectra.wording import brief

N = 60
OUTLIERS = np.concatenate([[9, -6, 4, 2.5], uniform(N - 4, -0.5, 1)])
A = with_spectrum(OUTLIERS)
ALIKE = A + with_spectrum(uniform(N, -0.2, 0.2, seed=2), seed=2)
APART = with_spectrum(uniform(N, seed=3) ** 6, seed=3)
PAIRS = {"alike": (A, ALIKE), "apart": (A, APART), "apart, other way round": (APART, A), "flat": (ALIKE - A, APART)}


def truth(a: Tensor, b: Tensor) -> dict[str, float]:
    inner, difference = (a * b).sum().item(), a - b
    cosine = inner / (a.norm() * b.norm()).item()
    return {
        "distance": (difference.norm() / a.norm()).item(),
        "cosine": cosine,
        "scale": inner / b.norm().item() ** 2,
        "scaled_distance": math.sqrt(1 - cosine**2),
        "trace_difference": difference.trace().item(),
    }


def two(a: Tensor, b: Tensor, seed: int = 0, **settings):
    return compare({"a": a, "b": b}, generator=seeded(seed), **settings)


def transport(a: Tensor, b: Tensor) -> float:
    """W1 of two spectra: eigenvalues matched by rank."""
    return (torch.linalg.eigvalsh(a) - torch.linalg.eigvalsh(b)).abs().mean().item()


@pytest.mark.parametrize("name", PAIRS)
def test_all_is_exact_where_eigenvectors_span_the_space(name):
    a, b = PAIRS[name]
    found = two(a, b, k=N, probes=3, steps=5)
    (pair,) = found.pairs
    for quantity, expected in truth(a, b).items():
        value, error = getattr(pair, quantity)
        assert value == pytest.approx(expected, rel=1e-10, abs=1e-10), quantity
        assert error == 0
    assert pair.wasserstein == pytest.approx((transport(a, b), 0), rel=1e-9, abs=1e-12)
    assert pair.agreements[-1].overlap == pytest.approx(1)  # of the whole space with itself
    assert pair.agreements[-1].reliable
    assert found.summaries["a"].norm == pytest.approx((a.norm().item(), 0))
    assert found.summaries["a"].trace == pytest.approx((a.trace().item(), 0), abs=1e-12)


def leading_span(matrices: list[Tensor], rank: int) -> Tensor:
    pairs = [torch.linalg.eigh(m) for m in matrices]
    rows = [vectors.T[values.abs().argsort(descending=True)[:rank]] for values, vectors in pairs]
    return orthonormal(torch.cat(rows))[0].contiguous() if rank else torch.cat(rows)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", PAIRS)
def test_errors_cover_and_squares_are_unbiased_over_seeds(name, rank):
    a, b = PAIRS[name]
    basis, seeds = leading_span([a, b], rank), 400
    hits, squares = {}, []
    for seed in range(seeds):
        found = frobenius_products({"a": a, "b": b}, basis, 16, seeded(seed))
        assert found.samples.shape == (16, 3, 3)
        squares.append((found.exact + found.samples.mean(0)).ravel())
        for quantity, expected in truth(a, b).items():
            if quantity == "trace_difference":
                value, error = found.trace("a", "b")
            else:
                value, error = getattr(found, quantity)("a", "b")
            hits.setdefault(quantity, []).append(abs(value - expected) <= 2 * error)
    for quantity, held in hits.items():
        # Student's t of 15 degrees: 0.936. The sine of a right angle, almost, is at its maximum, and not normal.
        at_maximum = (name, quantity) == ("flat", "scaled_distance")
        assert np.mean(held) >= (0.84 if at_maximum else 0.9), quantity
    stack = torch.stack([a, b, a - b]).flatten(1)
    error = np.std(squares, axis=0, ddof=1) / math.sqrt(seeds)
    assert (np.abs(np.mean(squares, axis=0) - (stack @ stack.T).numpy().ravel()) <= 4 * error + 1e-10).all()


def test_what_the_basis_holds_is_no_matter_of_chance():
    """The span of all that two matrices of low rank are: errors vanish."""
    u = torch.linalg.qr(torch.randn(N, 4, generator=seeded(1), dtype=torch.float64)).Q.T
    a, b = (u[:3].T * torch.tensor([3.0, 2, 1])) @ u[:3], (u[1:].T * torch.tensor([2.0, 5, 1])) @ u[1:]
    (pair,) = two(a, b, k=3, probes=2, steps=0).pairs
    for quantity, expected in truth(a, b).items():
        value, error = getattr(pair, quantity)
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-6), quantity
        assert error < 1e-6


def test_a_matrix_and_itself():
    (pair,) = two(A, A.clone(), k=5).pairs
    assert pair.rounding
    assert pair.distance == (0, 0)
    assert pair.scaled_distance == (0, 0)
    assert pair.cosine == pytest.approx((1, 0), abs=1e-12)
    assert pair.trace_difference == (0, 0)
    assert pair.largest == pair.smallest == (0, 0)
    assert pair.wasserstein == pytest.approx((0, 0), abs=1e-14)
    assert [spaces.overlap for spaces in pair.agreements] == pytest.approx([1] * 5)
    assert pair.agreements[-1].angles == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("c", [2.0, 0.01, -3.0])
def test_a_multiple(c):
    found = two(A, c * A, k=3, steps=20)
    (pair,) = found.pairs
    assert not pair.rounding
    assert pair.scale == pytest.approx((1 / c, 0), abs=1e-12)
    assert pair.cosine == pytest.approx((np.sign(c), 0), abs=1e-12)
    assert pair.distance == pytest.approx((abs(1 - c), 0), abs=1e-12)
    assert pair.scaled_distance.value < 1e-6
    assert [spaces.overlap for spaces in pair.agreements] == pytest.approx([1] * 3)
    assert pair.first_by_second == pytest.approx(c * found.summaries["a"].eigenpairs.values[:3].numpy())
    if c > 0:
        assert pair.wasserstein_share == pytest.approx((abs(1 - c), 0), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_ratios_know_no_scale(scale):
    one, other = (two(s * A, s * ALIKE, k=4, steps=12).pairs[0] for s in (1, scale))
    for quantity in ("distance", "cosine", "scale", "scaled_distance", "wasserstein_share"):
        assert getattr(other, quantity) == pytest.approx(getattr(one, quantity), rel=1e-6), quantity
    for quantity in ("trace_difference", "wasserstein", "largest", "smallest"):
        expected = [scale * x for x in getattr(one, quantity)]
        assert getattr(other, quantity) == pytest.approx(expected, rel=1e-6), quantity
    for here, there in zip(one.agreements, other.agreements, strict=True):
        assert (there.overlap, there.gap, there.reliable) == pytest.approx(
            (here.overlap, here.gap, here.reliable), rel=1e-6
        )


def test_commuting_matrices():
    """Diagonals: spaces share basis vectors or not at all, and quotients are entries."""
    a, b = torch.zeros(2, 40, dtype=torch.float64)
    a[:6], b[[0, 7, 2, 1, 8, 9]] = (
        torch.tensor([10.0, 8, 6, 4, 2, 1]).double(),
        torch.tensor([9.0, 7, 5, 3, 2, 1]).double(),
    )
    (pair,) = two(a.diag(), b.diag(), k=5, steps=0).pairs
    shared = [1, 1, 2, 3, 3]  # of {0}, {0, 1}, {0, 1, 2}, ... with {0}, {0, 7}, {0, 7, 2}, {0, 7, 2, 1}, ...
    assert [spaces.overlap for spaces in pair.agreements] == pytest.approx([s / j for j, s in enumerate(shared, 1)])
    for spaces, s in zip(pair.agreements, shared, strict=True):
        assert spaces.angles == pytest.approx([0] * s + [math.pi / 2] * (spaces.j - s), abs=1e-6)
        assert spaces.reliable
    assert pair.first_by_second == pytest.approx([9, 3, 5, 0, 0], abs=1e-9)
    assert pair.second_by_first == pytest.approx([10, 0, 6, 8, 0], abs=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.3, 1.2, math.pi / 2])
def test_two_directions_at_an_angle(angle):
    u, v = torch.linalg.qr(torch.randn(N, 2, generator=seeded(4), dtype=torch.float64)).Q.T
    w = math.cos(angle) * u + math.sin(angle) * v
    (pair,) = two(torch.outer(u, u), torch.outer(w, w), k=1, steps=0).pairs
    (spaces,) = pair.agreements
    assert spaces.angles == pytest.approx([angle], abs=1e-9)
    assert spaces.overlap == pytest.approx(math.cos(angle) ** 2, abs=1e-9)
    assert pair.cosine.value == pytest.approx(math.cos(angle) ** 2, abs=1e-9)
    assert pair.distance.value == pytest.approx(math.sqrt(2) * math.sin(angle), abs=1e-9)


def test_spaces_without_a_gap_are_marked():
    """A triple eigenvalue: any two bases of it are right, and only the whole space of three can be compared."""
    spectrum = np.concatenate([[5, 5, 5, 2, 2 * (1 - LEAST_GAP / 2)], uniform(N - 5, 0, 0.5)])
    a = with_spectrum(spectrum)
    turned = a + 1e-9 * with_spectrum(uniform(N), seed=5)
    (pair,) = two(a, turned, k=5, steps=0, tolerance=1e-6).pairs
    assert [spaces.reliable for spaces in pair.agreements] == [False, False, True, False, True]
    assert pair.agreements[2].overlap == pytest.approx(1, abs=1e-9)


def test_a_gap_of_opposite_signs_is_none():
    """Which of 5 and -5 leads by |value| is a matter of rounding."""
    a = with_spectrum([5, -5, *uniform(N - 2, -1, 1)])
    pair = two(a, a + 1e-9 * APART, k=2, steps=0, tolerance=1e-6).pairs[0]
    assert [spaces.reliable for spaces in pair.agreements] == [False, True]


@pytest.mark.parametrize(
    ("values", "residual", "told"),
    [
        ([5, 4], 1e-3, True),
        ([5, 4], 0.6, False),  # residuals do not resolve it
        ([5, 4.9], 1e-6, False),  # so small a change would close it
        ([5, -4.9], 1e-6, False),
        ([5, -4], 1e-6, True),
    ],
)
def test_a_gap_is_reliable_by_values_and_residuals(values, residual, told):
    known = LeadingEigenpairs(np.array([5.0, 1]), np.zeros(2), np.eye(2))
    one = LeadingEigenpairs(np.array(values, float), np.full(2, residual), np.eye(2))
    for first, second in ((one, known), (known, one)):
        (spaces,) = agreements(first, second, 1)
        assert spaces.reliable == told
        assert spaces.gap == pytest.approx(1 - abs(values[1]) / 5)


@pytest.mark.parametrize("name", PAIRS)
def test_ends_of_the_difference_lie_within_residuals(name):
    a, b = PAIRS[name]
    (pair,) = two(a, b, k=3).pairs
    spectrum = torch.linalg.eigvalsh(a - b)
    for end, true in ((pair.largest, spectrum[-1]), (pair.smallest, spectrum[0])):
        assert abs(end.value - true) <= end.residual + 1e-10
        assert end.residual <= 0.06 * spectrum.abs().max()


def test_the_difference_is_an_operator():
    x = torch.randn(N, 3, generator=seeded(0), dtype=torch.float64)
    difference = Difference(A, APART)
    assert torch.allclose(difference @ x, (A - APART) @ x, atol=1e-12)
    assert difference.shape == A.shape


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PAIRS)
def test_distance_of_spectra_and_its_error(name):
    """Within chance of the truth, and below the distance of the matrices (Hoffman, Wielandt 1953)."""
    a, b = PAIRS[name]
    hits = []
    for seed in range(6):
        (pair,) = two(a, b, seed, k=4, probes=16, steps=30).pairs
        value, error = pair.wasserstein
        hits.append(abs(value - transport(a, b)) <= 2 * error)
        assert value <= (a - b).norm() / math.sqrt(N) + 3 * error
    assert np.mean(hits) >= 0.8


def test_half_the_steps_are_known_from_all():
    probe = torch.randn(N, generator=seeded(3), dtype=torch.float64)
    nodes, weights = (x.numpy() for x in gauss_quadrature(lanczos(A, probe, 16)))
    found, shares = halved(np.append(7.0, nodes), np.append(0.1, 0.9 * weights), 1)
    expected = gauss_quadrature(lanczos(A, probe, 8))
    assert found == pytest.approx(np.append(7.0, expected[0]), abs=1e-9)
    assert shares == pytest.approx(np.append(0.1, 0.9 * expected[1]), abs=1e-9)


def test_jackknife_of_a_mean_is_its_standard_error():
    samples = torch.randn(11, 2, generator=seeded(0), dtype=torch.float64).numpy()
    found = jackknife_of_means(lambda x: x[..., 1], np.array([1.0, 2.0]), samples)
    expected = Estimate(2 + samples[:, 1].mean(), samples[:, 1].std(ddof=1) / math.sqrt(11))
    assert found == pytest.approx(expected)
    assert math.isnan(jackknife_of_means(lambda x: x[..., 0], np.zeros(2), samples[:1]).standard_error)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.648812, 0.00021, "0.6488 ± 2e-4"),
        (17.34, 0.19, "17.3 ± 0.2"),
        (0.94, 0.0979, "0.9 ± 0.1"),
        (5.03664, 0.00134, "5.037 ± 0.001"),
        (1.37e-7, 1.2e-10, "1.370e-7 ± 1e-10"),
        (23.1, 12.3, "23 ± 12"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.0, 0.0, "0 ± 0"),
        (math.nan, 0.1, "nan ± 0.1"),
        (0.123456, math.nan, "0.1235"),
    ],
)
def test_numbers_are_short(value, error, text):
    assert str(Estimate(value, error)) == brief(value, error) == text


def test_products_are_counted():
    a, b = Counting(A), Counting(ALIKE)
    found = compare({"a": a, "b": b}, k=3, probes=4, steps=10, generator=seeded(0))
    assert {name: summary.products for name, summary in found.summaries.items()} == {"a": a.products, "b": b.products}


@pytest.mark.parametrize("limit", [1, 4, 10, 20, 40, 60, 100, 300])
def test_a_budget_is_kept_and_told(limit):
    found = two(A, ALIKE, k=4, probes=5, steps=12, max_products=limit)
    for summary in found.summaries.values():
        assert summary.products <= limit
        assert summary.converged == (limit == 300)
    for pair in found.pairs:
        assert math.isfinite(pair.distance.value)


def test_known_summaries_are_not_made_again():
    first = two(A, ALIKE, k=4, probes=5, steps=12)
    again = compare(
        {"a": A, "c": APART}, k=4, probes=5, steps=12, known={"a": first.summaries["a"]}, generator=seeded(0)
    )
    fresh = compare({"a": A, "c": APART}, k=4, probes=5, steps=12, generator=seeded(0))
    assert again.pairs[0].distance == fresh.pairs[0].distance
    assert again.pairs[0].wasserstein == fresh.pairs[0].wasserstein
    assert again.summaries["a"].products < fresh.summaries["a"].products / 3


@pytest.mark.parametrize("good", [0, 5, 30])
def test_products_that_are_not_finite(good):
    found = compare({"a": not_finite(N, good), "b": A}, k=3, probes=3, steps=6, generator=seeded(0))
    assert not found.summaries["a"].converged
    assert found.summaries["b"].eigenpairs.converged
    assert math.isnan(found.pairs[0].distance.value)


def test_a_zero_matrix_is_at_no_relative_distance():
    (pair,) = two(torch.zeros_like(A), A, k=2, steps=5).pairs
    assert math.isinf(pair.distance.value) or math.isnan(pair.distance.value)
    assert math.isnan(pair.cosine.value)
    assert pair.wasserstein.value == pytest.approx(torch.linalg.eigvalsh(A).abs().mean().item(), rel=0.2)


def test_a_figure_of_zero_matrices():
    """No pair has a relative distance: a warning of matplotlib's would be an error here."""
    zero = torch.zeros_like(A)
    comparison_figure(compare({"a": zero, "b": zero}, k=2, probes=2, steps=4, generator=seeded(0)))


@pytest.mark.parametrize(
    ("operators", "k", "told"),
    [
        ({"a": A}, 1, "`operators` a"),
        ({"a": A, "b": torch.eye(3, dtype=torch.float64)}, 1, "different sizes"),
        ({"a": A, "b": ALIKE}, N + 1, f"`k` {N + 1}"),
    ],
)
def test_what_cannot_be_compared(operators, k, told):
    with pytest.raises(SpectraError, match=told):
        compare(operators, k=k, generator=seeded(0))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("count", [2, 4, 7])
def test_figures_hold_all_that_is_written(count):
    operators = {f"fisher-empirical-{i}": A + 0.1 * i * APART for i in range(count)}
    found = compare(operators, k=6, probes=3, steps=8, generator=seeded(0))
    with_itself = {name: two(A, ALIKE, k=6, probes=3, steps=0) for name in list(operators)[:4]}
    for figure in (comparison_figure(found), held_out_figure(with_itself)):
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        ticks = {
            t for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for t in axis.get_ticklabels(which="both")
        }
        for text in set(figure.findobj(Text)) - ticks:
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert box.x0 >= -1, text
                assert box.y0 >= -1, text
                assert box.x1 <= width + 1, text
                assert box.y1 <= height + 1, text


def test_there_is_no_figure_of_numbers_that_are_not_finite():
    found = compare({"a": not_finite(N), "b": A}, k=3, probes=3, steps=6, generator=seeded(0))
    assert comparison_figure(found) is None
