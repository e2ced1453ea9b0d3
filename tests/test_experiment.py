"""scripts/fisher_is_hessian on tiny networks: its dense matrices against products, its distances, its whole run."""

import pytest
import torch

from scripts.fisher_is_hessian import check, findings, law, page, run
from scripts.fisher_is_hessian.distances import pair
from scripts.fisher_is_hessian.matrices import dense_matrices, empirical, jacobians, output_space, sandwich
from scripts.fisher_is_hessian.tables import read, slope, spread
from scripts.fisher_is_hessian.tasks import (
    CLASSES,
    LABELS,
    LOSSES,
    Sizes,
    all_digits,
    drawn_by,
    make_network,
    make_task,
    training,
)

TINY = Sizes(width=3, examples=8, teacher_inputs=6, draws=4, batch=5, steps=(0, 10, 100, 120))


def generator():
    return torch.Generator().manual_seed(0)


def random_matrix(n=7):
    return torch.randn(n, n, dtype=torch.float64, generator=generator())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("labels", LABELS)
def test_matrices_are_those_of_spectra(loss, labels):
    task, network = make_task(loss, labels, TINY, 0), make_network(TINY.width, 0)
    next(step for step in training(network, task, 100) if step == 7)
    assert max(check.errors(network, task, TINY.batch).values()) < 1e-12


def test_jacobians_make_the_ggn_of_mse():
    task, network = make_task("mse", "clean", TINY, 0), make_network(TINY.width, 0)
    matrices = dense_matrices(network, task, TINY.batch, generator())
    found = pair(matrices["ggn"], matrices["jacobian-outer"])
    assert found["distance_at_best_scale"] < 1e-14
    assert found["best_scale"] == pytest.approx(2 / CLASSES, rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_estimates_of_spectra_hold_what_is_exact(loss):
    task, network = make_task(loss, "teacher", TINY, 0), make_network(TINY.width, 0)
    rows = check.estimates(network, task, TINY.batch, probes=200)  # of few, the errors are themselves uncertain
    assert len(rows) == 6 * 4
    assert check.within(rows, 4) == 1


def test_labels_as_the_model_says_make_the_empirical_fisher_the_fisher():
    """Exactly, for labels whose moments are those of the model: every class where p is uniform; K/2 times I for mse."""
    network, inputs = make_network(3, 0), all_digits()[0][:5]
    with torch.no_grad():
        network[-1].weight.zero_()
        network[-1].bias.zero_()
        outputs = network(inputs)
    jacobian, every = jacobians(network, inputs), torch.eye(CLASSES, dtype=torch.float64).expand(5, -1, -1)
    noise = (CLASSES / 2) ** 0.5 * CLASSES**0.5 * every
    for loss, labels in (("cross_entropy", every), ("mse", outputs[:, None] + noise)):
        space = output_space(loss, outputs, labels)
        fisher = sandwich(jacobian, space.expected)
        assert pair(fisher, sandwich(jacobian, space.curvature))["distance"] < 1e-14
        assert pair(fisher, empirical(jacobian, space.slopes))["distance"] < 1e-14


def test_teachers_draw_from_their_own_distribution():
    teacher, inputs = make_network(3, 1), all_digits()[0][:4]
    with torch.no_grad():
        outputs = teacher(inputs)
    many = 20_000
    drawn = drawn_by(teacher, "cross_entropy", inputs, many, generator()).labels
    assert drawn.unique().tolist() == [0, 1]
    assert (drawn.sum(dim=2) == 1).all()
    assert (drawn.mean(dim=1) - outputs.softmax(dim=1)).abs().max() < 5 * 0.5 / many**0.5
    noise = drawn_by(teacher, "mse", inputs, many, generator()).labels - outputs[:, None]
    assert noise.mean(dim=1).abs().max() < 5 * (CLASSES / 2 / many) ** 0.5
    assert (noise.var(dim=1) - CLASSES / 2).abs().max() < 5 * CLASSES / 2 * (2 / many) ** 0.5


def test_random_labels_are_the_share_that_was_asked_for():
    clean, random = (make_task("mse", kind, Sizes(examples=500), 0).labels for kind in ("clean", "random"))
    changed = (clean != random).any(dim=2).double().mean().item()
    assert 0.15 < changed <= 0.2  # one in ten of those drawn is what it was


def test_distances_of_known_matrices():
    a = random_matrix()
    assert pair(a, a) == pytest.approx({"distance": 0, "distance_at_best_scale": 0, "cosine": 1, "best_scale": 1})
    scaled = {"distance": 3, "distance_at_best_scale": 0, "cosine": 1, "best_scale": 0.25}
    assert pair(a, 4 * a) == pytest.approx(scaled, abs=1e-14)
    upper, lower = a.triu(1), a.tril(-1)
    found = pair(upper, lower)
    assert found["cosine"] == 0
    assert found["distance_at_best_scale"] == 1
    assert found["distance"] == pytest.approx((1 + (lower.norm() / upper.norm()).item() ** 2) ** 0.5)


def test_slopes_and_spreads():
    assert slope([1, 10, 1000], [5, 5 * 10**-0.5, 5 * 1000**-0.5]) == pytest.approx(-0.5)
    rows = [{"step": step, "y": step * seed} for step in (2, 1) for seed in (3, 1, 2)]
    assert spread(rows, "step", lambda row: row["y"]) == ([1, 2], [1, 2], [2, 4], [3, 6])


def test_differences_at_the_teacher_fall_with_the_number_of_labels():
    sizes = Sizes(width=3, teacher_inputs=10, draws=256)
    for loss in LOSSES:
        rows = [row for row in law.rows(loss, sizes, 0, repeats=1) if row["noise"] in ("", CLASSES / 2)]
        for a in ("fisher", "hessian"):
            at = [row for row in rows if row["a"] == a]
            assert -0.65 < slope([row["examples"] for row in at], [row["distance"] for row in at]) < -0.35
    narrow = list(law.rows("mse", sizes, 0, repeats=1))[-2]
    assert narrow["best_scale"] == pytest.approx(CLASSES, rel=0.05)


def test_a_run_is_the_same_twice():
    for labels in LABELS:
        assert list(run.over_training(TINY, "mse", labels, 0)) == list(run.over_training(TINY, "mse", labels, 0))


def test_tables_page_and_figures(tmp_path):
    run.measure(TINY, (0,), tmp_path)
    distances = read(tmp_path / "distances.csv")
    assert len(distances) == 2 * 3 * len(TINY.steps) * 21
    assert all(row["distance"] < 1e-9 for row in distances if (row["a"], row["b"]) == ("ggn", "fisher"))
    page.save(tmp_path, {"checks": {"whole": [], "estimated": []}})
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png", ".pdf"}
    assert "{" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (0.0314, "0.031"), (1e-3, "0.001"), (4.53e-5, "4.5·10⁻⁵"), (131_000, "1.3·10⁵"), (-12.4, "-12")],
)
def test_numbers_of_the_page(number, text):
    assert findings.short(number) == text
