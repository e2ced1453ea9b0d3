"""Outliers where they are known, none where there are none; numbers of the damped matrix against exact sums."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import TABLE, matrix, seeded, uniform, with_spectrum
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from spectra import Curvature, SpectralMeasure, load_problem, spectral_measure
from spectra.cli import run
from spectra.records.density import DEPTH
from spectra.spectrum.curves import student_quantile
from spectra.spectrum.outliers import outliers
from spectra.spectrum.summaries import condition_number, effective_dimension, jacobi, radau
from spectra.tables.outliers import beside_classes

N = 200


def wishart(n: int, ratio: float = 1.0, seed: int = 0) -> Tensor:
    """ZZ'/m with n/m = ratio: Marchenko-Pastur, edges (1 +- sqrt(ratio))^2."""
    m = round(n / ratio)
    z = torch.randn(n, m, generator=seeded(seed), dtype=torch.float64)
    return z @ z.T / m


def gaussian(n: int, seed: int = 0) -> Tensor:
    z = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    return (z + z.T) / (2 * n) ** 0.5


def measured(a: Tensor, steps: int, probes: int = 10, seed: int = 0) -> SpectralMeasure:
    return spectral_measure(a, steps=steps, probes=probes, generator=seeded(seed))


def spaced(above: float = 0.0, below: float = 0.0) -> Tensor:
    """N even eigenvalues on [0, 1], and two 0.5 apart at either end, `above` and `below` distances beyond its edges."""
    extra = [1 + above, 1.5 + above] * bool(above) + [-below, -0.5 - below] * bool(below)
    return with_spectrum(np.concatenate([np.linspace(0, 1, N), extra]))


def test_papyans_spiked_matrix():
    """Papyan 2020, figure 15a: spikes 5, 4, 3 on Marchenko-Pastur leave its edge at 4, to theta^2 / (theta - 1)."""
    a = wishart(2000) + torch.diag(torch.cat([torch.tensor([5.0, 4.0, 3.0]), torch.zeros(1997)]).double())
    measure = measured(a, steps=128)
    found = outliers(measure)
    assert (found.above.count, found.below.count, found.count) == (3, 0, 3)
    assert found.above.edge == pytest.approx(4, abs=0.1)
    assert found.above.smallest == pytest.approx(4.5, abs=0.1)
    assert found.above.gap == found.above.smallest - found.above.edge
    assert found.above.count_error == 0
    top = measure.nodes[0, : measure.deflated].sort(descending=True).values[:3]
    torch.testing.assert_close(top, torch.tensor([25 / 4, 16 / 3, 9 / 2]).double(), atol=0.2, rtol=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("bulk", [wishart, lambda n, seed: wishart(n, 0.5, seed), gaussian], ids=["1", "1/2", "goe"])
def test_a_random_matrix_has_none(bulk, steps, seed):
    found = outliers(measured(bulk(300, seed=seed), steps, seed=seed))
    assert found.count == 0
    assert found.above.smallest is found.above.gap is None
    assert found.above.edge > found.below.edge


@pytest.mark.parametrize("steps", [30, N])
@pytest.mark.parametrize("spans", [0.5, 0.9, 1.2, 3, 100])
def test_what_counts_is_the_gap_against_the_span_of_the_next_ten(spans, steps):
    span = DEPTH / (N - 1)
    found = outliers(measured(spaced(above=spans * span, below=0.5 * span), steps + 4))
    if steps == N:  # all is resolved, and the law exact
        assert found.above.count == (2 if spans > 1 else 1)  # the outermost is 0.5 further out
        assert found.below.count == 1
        if spans > 1:
            assert found.above.ratio == pytest.approx(spans, rel=1e-6)
            assert (found.above.edge, found.above.edge_error) == (pytest.approx(1), 0)
            assert found.above.span == pytest.approx(span)
    else:  # nodes are too far apart to tell near ones
        assert found.above.count == (2 if spans >= 3 else found.above.count)
        assert 1 <= found.above.count <= 2


def test_both_ends():
    found = outliers(measured(spaced(above=1, below=2), 40))
    assert (found.above.count, found.below.count) == (2, 2)
    assert (found.above.smallest, found.below.smallest) == (pytest.approx(2), pytest.approx(-2))
    assert (found.above.gap, found.below.gap) == (pytest.approx(1, abs=0.01), pytest.approx(2, abs=0.01))


@pytest.mark.parametrize("scale", [1e-6, 3.0])
def test_scale_and_sign(scale):
    measure = measured(matrix("network").matrix, 60)
    found, mirrored = outliers(measure), outliers(replace(measure, nodes=-scale * measure.nodes))
    assert (mirrored.below.count, mirrored.above.count) == (found.above.count, found.below.count) == (5, 0)
    for mine, other in ((found.above, mirrored.below), (found.below, mirrored.above)):
        assert other.edge == pytest.approx(-scale * mine.edge)
        assert other.span == pytest.approx(scale * mine.span)
        assert other.ratio == pytest.approx(mine.ratio)


def test_copies_that_were_not_deflated_count():
    """Of an eigenvalue that is there five times the first run may see one: the probes' weights tell of the others."""
    a = with_spectrum(np.concatenate([np.full(5, 10.0), np.linspace(0, 1, 95)]))
    measure = measured(a, steps=30, probes=200)
    assert (measure.nodes[0, : measure.deflated] > 9).sum() < 5
    found = outliers(measure).above
    assert found.count == 5
    assert 0 < found.count_error < 0.3


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ghosts", (3, 0)),
        ("low rank", (30, 0)),
        ("multiple top", (3, 2)),
        ("opposite", (1, 1)),
        ("network", (5, 0)),
        ("flat", (0, 0)),
        ("wilkinson", (0, 0)),
        ("strakos", (0, 0)),
        ("identity", (0, 0)),
        ("zero", (0, 0)),
        ("one by one", (0, 0)),
    ],
)
def test_known_spectra(name, counts):
    known = matrix(name)
    found = outliers(measured(known.matrix, min(60, known.n)))
    assert (found.above.count, found.below.count) == counts


def test_one_probe_resolves_what_was_deflated():
    assert outliers(measured(matrix("network").matrix, 60, probes=1)).above.count == 5


def test_more_than_half_are_no_outliers():
    """Which side is the bulk: 60 of 100 at one, 40 at zero. (Of ten probes, one count in 70 is 3 errors off.)"""
    a = with_spectrum(np.repeat([0.0, 1.0], [40, 60]))
    found = [outliers(measured(a, 20, seed=seed)) for seed in range(20)]
    assert all(one.above.count == 0 for one in found)
    counts, errors = np.array([(one.below.count, one.below.count_error) for one in found]).T
    assert (3 * errors < 15).all()
    assert np.mean(np.abs(counts - 40) <= 3 * errors) >= 0.85
    assert abs(np.mean(counts) - 40) <= 3 * np.mean(errors**2 / len(found)) ** 0.5


def test_a_majority_is_no_outlier_of_a_bulk_that_is_not_resolved():
    spectrum = np.concatenate([np.zeros(220), uniform(180, 1, 2)])
    assert outliers(measured(with_spectrum(spectrum), 15)).below.count == 0


def of_a_thousand(*rows: dict[float, float], deflated: int = 0) -> SpectralMeasure:
    """Nodes of each probe, with the eigenvalues that they stand for."""
    nodes, weights = ([list(part(row)) for row in rows] for part in (dict.keys, dict.values))
    nodes, weights = torch.tensor([nodes, weights], dtype=torch.float64)
    return SpectralMeasure(nodes, weights / 1000, 1000, deflated)


@pytest.mark.parametrize(("value", "count"), [(1.3, 0), (1.5, 1)])
def test_a_gap_is_no_narrower_than_nodes_resolve(value, count):
    """The node at 1 stands for 50 eigenvalues around it; 0.4 further in lies the next."""
    found = outliers(of_a_thousand({value: 1, 1.0: 50, 0.6: 300, 0.2: 649}, deflated=1)).above
    assert (found.count, found.edge) == (count, 1.0 if count else value)
    assert found.ratio == pytest.approx((value - 1) / 0.4)


def test_nodes_that_only_seem_to_agree():
    """Near zero they differ by less than rounding of the largest, but by more than converged ones would."""
    one = {4.0: 1, 1e-5: 20, 6e-5: 900, 0.5: 79}
    two = {4.0: 1, 1.2e-5: 20, 6.2e-5: 900, 0.5: 79}
    assert outliers(of_a_thousand(one, two, deflated=1)).below.count == 0
    assert outliers(of_a_thousand(one, one, deflated=1)).below.count == 20


def test_not_finite():
    nodes = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="not finite"):
        outliers(SpectralMeasure(nodes, torch.full((1, 2), 0.5), 2))


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "fewer than C - 1"),
        (9, "that is C - 1"),
        (10, "that is C"),
        (12, "between C and C (C - 1)"),
        (90, "that is C (C - 1)"),
        (95, "between C (C - 1) and C^2"),
        (100, "that is C^2"),
        (101, "more than C^2"),
    ],
)
def test_beside_classes(count, words):
    assert beside_classes(count, 10) == words


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", ["low rank", "flat", "decay", "strakos", "zero"])
def test_damped_numbers_are_exact_sums_where_the_spectrum_is_known(name, damping):
    known = matrix(name)
    eigenvalues = known.spectrum.clamp(min=0)
    measure = measured(known.matrix, known.n)
    value, error, quadrature_error = effective_dimension(measure, damping, semidefinite=True)
    assert value == pytest.approx((eigenvalues / (eigenvalues + damping)).sum().item(), rel=1e-6, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-7 * known.n)
    assert quadrature_error == pytest.approx(0, abs=1e-7 * known.n)
    condition = (eigenvalues.max() + damping) / (eigenvalues.min() + damping)
    assert condition_number(measure, damping, semidefinite=True) == pytest.approx(condition.item(), rel=1e-6)


@cache
def measures_of_one_matrix() -> tuple[Tensor, list[SpectralMeasure]]:
    a = wishart(120)
    return torch.linalg.eigvalsh(a), [measured(a, steps=20, seed=seed) for seed in range(80)]


@pytest.mark.parametrize("damping", [0.01, 0.1, 1.0])
def test_intervals_of_the_effective_dimension_cover(damping):
    eigenvalues, measures = measures_of_one_matrix()
    truth = (eigenvalues / (eigenvalues + damping)).sum().item()
    found = [effective_dimension(measure, damping, semidefinite=True) for measure in measures]
    covered = [abs(value - truth) <= student_quantile(9) * error + rest for value, error, rest in found]
    assert np.mean(covered) >= 0.9
    means = np.mean(found, axis=0)
    assert means[1] < 0.05 * truth
    assert abs(means[0] - truth) <= 3 * means[1] / len(found) ** 0.5 + means[2]


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("steps", [2, 5, 12])
def test_quadrature_brackets(steps, damping):
    """Gauss quadrature is too large, that with a node at zero too small; and a Jacobi matrix is its rule's own."""
    nodes, weights = uniform(100, 0.001, 1), uniform(100, seed=1) / 50
    diagonal, off_diagonal = jacobi(nodes, weights)
    np.testing.assert_allclose(eigh_tridiagonal(diagonal, off_diagonal)[0], np.sort(nodes), rtol=1e-9)
    gauss, vectors = eigh_tridiagonal(diagonal[:steps], off_diagonal[: steps - 1])
    gauss_weights = weights.sum() * vectors[0] ** 2
    zero, zero_weights = radau(gauss, gauss_weights)
    assert zero.min() == pytest.approx(0, abs=1e-12)
    for power in range(2 * steps - 2):  # all that the rule has to integrate exactly
        np.testing.assert_allclose(zero_weights @ zero**power, weights @ nodes**power, rtol=1e-9)
    low, truth, high = (
        w @ (x / (x + damping)) for x, w in ((zero, zero_weights), (nodes, weights), (gauss, gauss_weights))
    )
    assert low <= truth * (1 + 1e-12)
    assert truth <= high * (1 + 1e-12)
    assert low <= high * (1 + 1e-12)


def test_no_damped_number_of_an_indefinite_matrix():
    measure = measured(with_spectrum(np.linspace(-0.5, 1, 40)), 40)
    assert effective_dimension(measure, 0.4, semidefinite=False) is None
    assert condition_number(measure, 0.4, semidefinite=False) is None
    assert condition_number(measure, 0.6, semidefinite=False) == pytest.approx(16)
    truth = (np.linspace(-0.5, 1, 40) / (np.linspace(-0.5, 1, 40) + 0.6)).sum()
    assert effective_dimension(measure, 0.6, semidefinite=False) == (
        pytest.approx(truth),
        pytest.approx(0, abs=1e-6),
        None,
    )


def test_every_known_spectrum_has_an_answer():
    for name in TABLE:
        for probes in (1, 3):
            found = outliers(measured(matrix(name).matrix, 12, probes))
            assert 2 * max(found.above.count, found.below.count) < max(matrix(name).n, 2)


DIGITS = "density --model spectra.demo:mlp --data digits --samples 120 --steps 30 --curvature ggn --curvature hessian"


@pytest.fixture
def density(capfd, tmp_path):
    def density(options: str) -> tuple[int, str]:
        status = run([*DIGITS.split(), "--out", str(tmp_path), *options.split()])
        return status, capfd.readouterr().out

    return density


def test_density_tells_of_outliers_and_damping(density):
    status, out = density("--damping 0.01 --probes 4 --dtype float64 --json")
    assert status == 0
    ggn, hessian = json.loads(out)["results"]
    problem = load_problem(model="spectra.demo:mlp", data="digits", samples=120, dtype="float64").problem
    eigenvalues = torch.linalg.eigvalsh(Curvature(problem, "ggn").factor().gram()).flip(0).cpu().numpy()
    found = ggn["outliers"]["above"]
    assert (ggn["outliers"]["classes"], found["count"], found["count_error"]) == (10, 9, 0)  # an untrained net: C - 1
    assert (found["smallest"], found["edge"]) == (
        pytest.approx(eigenvalues[8], rel=1e-4),
        pytest.approx(eigenvalues[9], rel=1e-2),
    )
    assert (
        set(found)
        == {"count", "count_error", "edge", "edge_error", "smallest", "gap", "span", "ratio"}
        == set(ggn["outliers"]["below"])
    )
    truth = (eigenvalues / (eigenvalues + 0.01)).sum()
    answer = ggn["effective_dimension"]
    assert abs(answer["value"] - truth) < 4 * answer["standard_error"] + answer["quadrature_error"] < 0.3 * truth
    assert ggn["condition"] == pytest.approx(1 + eigenvalues[0] / 0.01, rel=1e-3)
    assert (ggn["damping"], hessian["damping"]) == (0.01, 0.01)
    assert hessian["effective_dimension"] is hessian["condition"] is None  # its negative eigenvalues are larger


def test_density_of_one_probe_has_no_standard_error(density):
    status, out = density("--damping 0.1 --probes 1 --json")
    assert status == 0
    assert json.loads(out)["results"][0]["effective_dimension"]["standard_error"] is None


def test_density_in_words(density):
    status, out = density("--damping 0.1 --probes 2")
    assert status == 0
    assert "ggn: 9 above, that is C - 1 (C = 10 classes)" in out.splitlines()
    assert "hessian: not positive definite with this damping; raise --damping" in out.splitlines()
    assert max(map(len, out.splitlines())) <= 80


def test_no_damping_no_numbers_of_it(density):
    out = density("--probes 2 --json")[1]
    assert not {"damping", "effective_dimension", "condition"} & json.loads(out)["results"][0].keys()


def test_a_damping_that_is_none_is_refused(density):
    assert density("--damping 0") == (2, "")
