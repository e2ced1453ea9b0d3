"""An evolution: every number of the table has a case with a known answer; unfinished results are left out."""

import csv
import hashlib
import io
import json
import shutil
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from helpers import make_record, save, with_spectrum
from matplotlib.image import imread
from safetensors.torch import save_file
from test_plots import assert_readable

from spectra.cli import run
from spectra.errors import SpectraError
from spectra.inputs.checkpoint_file import digest_of, sha256
from spectra.krylov.results import select
from spectra.plots.evolution import evolution_figure
from spectra.plots.evolution_files import evolution_files
from spectra.records.record import load
from spectra.records.sweep import Evolution, Row
from spectra.spectrum.subspaces import (
    cosine,
    davis_kahan_bound,
    gap_behind,
    overlap,
    overlap_error,
    principal_angles,
    relative_gap,
    share_inside,
    widest_gap,
)
from spectra.sweeps.checkpoints import training_steps
from spectra.sweeps.digests import computed, digest
from spectra.sweeps.eigenspaces import leading, ranks
from spectra.sweeps.evolution import collect, evolution_of
from spectra.sweeps.plan import read_plan
from spectra.sweeps.rows import ResultEntry
from spectra.tables.evolution import evolution_text


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


@pytest.mark.parametrize("angles", [[0.3, 1.2], [0.0, 0.0, 0.0], [1e-9, 0.5], [np.pi / 2, np.pi / 2], [0.7]])
def test_rotated_bases_have_the_angles_they_were_rotated_by(angles):
    k, angles = len(angles), np.array(angles)
    around = orthogonal(7)
    first = around[:k]
    second = np.cos(angles)[:, None] * around[:k] + np.sin(angles)[:, None] * around[k : 2 * k]
    inside = orthogonal(k, seed=1)  # another basis of the same space
    np.testing.assert_allclose(principal_angles(first, inside @ second), np.sort(angles), atol=1e-14)
    assert overlap(first, inside @ second) == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-14)


def test_the_share_of_a_vector_in_a_space_and_its_cosine():
    around = orthogonal(9)
    vector = 3 * around[0] + 4 * around[5]
    assert share_inside(around[:2], vector) == pytest.approx(9 / 25, abs=1e-14)
    assert cosine(vector, around[5]) == pytest.approx(0.8, abs=1e-14)
    assert np.isnan(share_inside(around[:2], 0 * vector))
    assert np.isnan(cosine(vector, 0 * vector))


@pytest.mark.parametrize(
    ("spectra", "k"),
    [
        ([[9, 8, 1, 0.9]], 2),
        ([[9, 8, 1, 0.9], [9, 1, 0.9, 0.8], [9, 8, 7, 1]], 2),  # medians 0.11, 0.125, 0.11; by means it would be 1
        ([[9, 1, -5]], 2),  # a change of sign is a gap of 1
        ([[-9, -8, -2]], 2),
        ([[5, 4, 3, 0], [5, 1]], 1),  # no further than all of them reach
        ([[5], [4]], None),
        ([], None),
    ],
)
def test_the_leading_space_ends_at_the_widest_gap(spectra, k):
    assert widest_gap([np.array(values, dtype=float) for values in spectra]) == k


def test_relative_gaps():
    assert relative_gap(np.array([8.0, 2.0]), 1) == 0.75
    assert relative_gap(np.array([8.0, -2.0]), 1) == 1.0
    assert relative_gap(np.zeros(2), 1) == 0.0


@pytest.mark.parametrize("size", [1e-8, 1e-3, 0.1, 1.0])
def test_a_computed_eigenspace_is_as_near_to_the_true_one_as_its_residuals_say(size):
    for seed in range(20):
        generator, k = np.random.default_rng(seed), 3
        values = np.sort(generator.uniform(0, 10, 8))[::-1]
        around = orthogonal(8, seed)
        matrix = (around * values) @ around.T
        # Ritz pairs of a space near the leading one
        basis = np.linalg.qr(around[:, : k + 1] + size * generator.standard_normal((8, k + 1)))[0]
        ritz, turned = np.linalg.eigh(basis.T @ matrix @ basis)
        found, vectors = ritz[::-1], (basis @ turned[:, ::-1]).T
        residuals = np.linalg.norm(matrix @ vectors.T - vectors.T * found, axis=0)
        bound = davis_kahan_bound(found, residuals, k)
        truth = around[:, :k].T
        if values[k] <= found[k] + residuals[k]:  # nothing was missed, as the bound presumes
            assert np.linalg.norm(np.sin(principal_angles(vectors[:k], truth))) <= bound + 1e-12
        other = orthogonal(8, seed + 100)[:k]
        off = abs(overlap(vectors[:k], other) - overlap(truth, other))
        assert off <= overlap_error(bound, 0.0, k) + 1e-12


def test_no_gap_beyond_the_residuals_is_no_knowledge():
    assert davis_kahan_bound(np.array([2.0, 1.0, 0.9]), np.array([0.01, 0.01, 0.1]), 2) == np.sqrt(2)
    assert davis_kahan_bound(np.array([2.0, 1.0]), np.zeros(2), 1) == 0.0


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_ranks_are_those_in_the_whole_spectrum(which, k):
    for seed in range(20):
        spectrum = torch.from_numpy(np.random.default_rng(seed).standard_normal(12))
        chosen = spectrum[select(spectrum, k, which)]
        falling = spectrum.sort(descending=True).values
        for rank, value in zip(ranks(chosen.numpy(), which), chosen, strict=True):
            assert falling[rank - 1 if rank > 0 else rank] == value


@pytest.mark.parametrize(
    ("which", "values", "rows"),
    [
        ("LM", [-5.0, 4, 3, -2, 1], [1, 2, 4]),  # the negative ones are the matrix's smallest
        ("LM", [3.0, 4, 1], [1, 0, 2]),  # as a method may leave them that stopped early
        ("SA", [-3.0, -2, 1], [0, 1, 2]),
        ("BE", [3.0, 2, -4, -1], [0, 1]),
    ],
)
def test_leading_eigenvectors_are_read_in_the_order_of_their_eigenvalues(tmp_path, which, values, rows):
    entry = {"curvature": "hessian", "eigenvalues": values, "residuals": [0.1] * len(values)}
    problem = {"options": {"which": which}}
    basis = orthogonal(6)[: len(values)]
    save(tmp_path, make_record("eig", problem, [entry]), {"eigenvectors_hessian": basis})
    _, record = load(tmp_path / "eig.json")
    found = leading(ResultEntry("a", 0, None, tmp_path / "eig.json", "eig", record.problem, *record.results))
    np.testing.assert_array_equal(found.values, np.array(values)[rows])
    np.testing.assert_array_equal(found.vectors(2), basis[rows[:2]])


# Checkpoints of a model with six weights, along a known path, and results with eigenvectors that turn by known angles.

ALPHA, BETA = 0.2, 0.1  # of the first and the second eigenvector, from one checkpoint to the next
VALUES, RESIDUALS = [5.0, 4.0, 1.0], [0.01, 0.02, 0.03]
INSIDE, OUTSIDE = 0.6, 0.8  # of a step
AXES = np.eye(6)
PLAN = """
[problem]
model = "nets.py:build"
data = "digits"
checkpoint = "points/*.pt"
curvature = ["hessian", "ggn"]
[eig]
[trace]
[density]
[collect]
learning_rate = 0.5
"""


def vectors(t, alpha=ALPHA, beta=BETA):
    first = np.cos(t * alpha) * AXES[0] + np.sin(t * alpha) * AXES[2]
    second = np.cos(t * beta) * AXES[1] + np.sin(t * beta) * AXES[3]
    return np.stack([first, second, AXES[4]])


def cost(curvature, products, converged=True):
    return {
        "curvature": curvature,
        "converged": converged,
        "products": products,
        "seconds": 0.0,
        "setup_seconds": 0.0,
    }


def write_results(directory, curvature, t, checkpoint=None, values=VALUES, options=None, precondition=None):
    """What eig, trace and density would leave of one matrix at place t."""
    directory.mkdir(parents=True, exist_ok=True)
    problem = {"precondition": precondition} if precondition else {}
    problem |= {"seed": 0, "loss_value": 0.5**t, "accuracy": None if t else 0.9}
    if checkpoint:
        problem["checkpoint_sha256"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        known = {"model": "nets.py:build", "params": [], "checkpoint_key": None, "seed": 0, "which": "LM"}
        problem["options"] = known | (options or {})
        problem["shapes"] = {"weight": [1, 6]}
    eig = cost(curvature, 20) | {"eigenvalues": [v * (1 + t) for v in values], "residuals": RESIDUALS}
    arrays = {f"eigenvectors_{curvature}": vectors(t)}
    save(directory, make_record("eig", problem, [eig]), arrays)
    trace = cost(curvature, 30) | {"trace": 10.0 + t, "standard_error": 0.1}
    save(directory, make_record("trace", problem, [trace]), {})
    share = {"value": 0.2, "lower": 0.1, "upper": 0.4}
    save(directory, make_record("density", problem, [cost(curvature, 40) | {"negative": share}]), {})


@pytest.fixture
def plan(tmp_path):
    """Four checkpoints whose steps are 5, 50, 500 and 5000 by an entry, not by their names; two matrices."""
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(6, 1, bias=False).double()\n"
    )
    (tmp_path / "points").mkdir()
    weights = AXES.sum(axis=0)
    for t in range(4):
        file = tmp_path / "points" / f"p{t}.pt"
        torch.save({"model": {"weight": torch.from_numpy(weights[None].copy())}, "step": 5 * 10**t}, file)
        weights = weights + (t + 1) * (INSIDE * vectors(t)[0] + OUTSIDE * AXES[5])
        for curvature in ("hessian", "ggn"):
            write_results(tmp_path / "plan" / f"p{t}" / curvature, curvature, t, file)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


def values(rows):
    return [row.value for row in rows]


def test_every_number_of_the_table(plan):
    evolution = collect(read_plan(plan))
    assert (evolution.notes, evolution.unfinished, evolution.learning_rate) == ((), (), 0.5)
    assert evolution.series() == [("hessian", 0), ("ggn", 0)]
    assert [row.step for row in evolution.select("loss")] == [5, 50, 500, 5000]
    assert values(evolution.select("loss")) == [1, 0.5, 0.25, 0.125]
    assert values(evolution.select("accuracy")) == [0.9]
    for name in ("hessian", "ggn"):
        for i in range(3):
            rows = evolution.select("eigenvalue", curvature=name, index=i + 1)
            assert values(rows) == [VALUES[i] * (1 + t) for t in range(4)]
            assert {(row.error, row.products, row.converged, row.command) for row in rows} == {
                (RESIDUALS[i], 20, True, "eig")
            }
        rows = evolution.select("trace", curvature=name)
        assert values(rows) == [10, 11, 12, 13]
        assert {(row.error, row.products) for row in rows} == {(0.1, 30)}
        (limits,) = {(r.value, r.lower, r.upper) for r in evolution.select("negative_share", curvature=name)}
        assert limits == (0.2, 0.1, 0.4)
        assert values(evolution.select("gap", curvature=name, index=2)) == [0.75] * 4
        next_angles = {1: BETA, 2: ALPHA}
        for i, angle in next_angles.items():
            last = [angle * (3 - t) for t in range(3)]
            assert values(evolution.select("angle_next", curvature=name, index=i)) == pytest.approx([angle] * 3)
            assert values(evolution.select("angle_last", curvature=name, index=i)) == pytest.approx(last)
        squares = [(np.cos(ALPHA * d) ** 2 + np.cos(BETA * d) ** 2) / 2 for d in (3, 2, 1)]
        assert values(evolution.select("overlap_last", curvature=name, index=2)) == pytest.approx(squares)
        assert values(evolution.select("overlap_next", curvature=name, index=2)) == pytest.approx(squares[-1:] * 3)
        assert values(evolution.select("alignment_next", curvature=name, index=1)) == pytest.approx([np.cos(ALPHA)] * 3)
        shares = values(evolution.select("update_share", curvature=name, index=2))
        assert shares == pytest.approx([INSIDE**2] * 3, rel=1e-12)
    rows = evolution.select("update_cosine")
    assert [row.step for row in rows] == [50, 500]
    assert values(rows) == pytest.approx([INSIDE**2 * np.cos(ALPHA) + OUTSIDE**2] * 2, rel=1e-12)


def test_errors_of_overlaps_come_from_residuals(plan):
    evolution = collect(read_plan(plan))
    bounds = [davis_kahan_bound(np.array(VALUES) * (1 + t), np.array(RESIDUALS), 2) for t in range(4)]
    rows = evolution.select("overlap_next", curvature="ggn")
    assert [row.error for row in rows] == pytest.approx([overlap_error(*bounds[t : t + 2], 2) for t in range(3)])
    assert all(row.converged and row.products is None for row in rows)
    assert [row.error for row in evolution.select("update_share", curvature="ggn")] == pytest.approx(bounds[:3])


def test_where_there_is_no_gap_overlaps_say_so(plan):
    point = plan.parent / "points" / "p2.pt"
    write_results(plan.parent / "plan" / "p2" / "ggn", "ggn", 2, point, values=[5.0, 4.0, 3.99])
    evolution = collect(read_plan(plan))
    assert [row.converged for row in evolution.select("gap", curvature="ggn")] == [True, True, False, True]
    assert [row.converged for row in evolution.select("overlap_next", curvature="ggn")] == [True, False, False]
    assert [row.converged for row in evolution.select("overlap_last", curvature="ggn")] == [True, True, False]
    assert [row.converged for row in evolution.select("overlap_next", curvature="hessian")] == [True] * 3
    assert "no gap" in evolution_text(evolution)
    entries = [text.get_text() for text in evolution_figure(evolution).legends[0].get_texts()]
    assert "hollow: not converged, or no gap" in entries


def test_a_gap_is_judged_as_compare_judges_it(plan):
    """Residuals resolve 5 and 4.9, but a change of the matrix by 2 % would turn their eigenvectors at will."""
    point = plan.parent / "points" / "p2.pt"
    write_results(plan.parent / "plan" / "p2" / "ggn", "ggn", 2, point, values=[5.0, 4.9, 1.0])
    evolution = collect(read_plan(plan))
    assert [row.converged for row in evolution.select("alignment_next", curvature="ggn")] == [True, False, False]
    assert [row.converged for row in evolution.select("overlap_next", curvature="ggn")] == [True] * 3  # of 2-spaces
    gap = gap_behind(np.array([5.0, 4.9, 1.0]), np.array(RESIDUALS), 1)
    assert gap.bound < 1
    assert not gap.reliable


def test_what_is_not_finished_is_left_out(plan):
    (plan.parent / "plan" / "p1" / "ggn" / "eig.json").unlink()
    (plan.parent / "plan" / "p3" / "hessian" / "trace.json").unlink()
    evolution = collect(read_plan(plan))
    assert evolution.unfinished == ("p1/ggn", "p3/hessian")
    assert [row.step for row in evolution.select("eigenvalue", curvature="ggn", index=1)] == [5, 500, 5000]
    assert values(evolution.select("alignment_next", curvature="ggn")) == pytest.approx(np.cos([2 * ALPHA, ALPHA]))
    steps = INSIDE * vectors(0)[0] + OUTSIDE * AXES[5] + 2 * (INSIDE * vectors(1)[0] + OUTSIDE * AXES[5])
    assert evolution.select("update_share", curvature="ggn")[0].value == pytest.approx(
        share_inside(vectors(0)[:2], steps)
    )
    assert [row.step for row in evolution.select("trace", curvature="hessian")] == [5, 50, 500]


def test_results_of_a_checkpoint_that_has_changed_are_left_out(plan):
    point = plan.parent / "points" / "p1.pt"
    torch.save(torch.load(point, weights_only=True) | {"more": 1}, point)
    evolution = collect(read_plan(plan))
    assert evolution.unfinished == ("p1/hessian", "p1/ggn")
    assert {row.checkpoint for row in evolution.rows} == {"p0", "p2", "p3"}


def test_what_cannot_be_read_is_told_and_the_rest_is_there(plan):
    (plan.parent / "nets.py").unlink()  # which nobody needs: results list the shapes of their parameters
    (plan.parent / "plan" / "p0" / "hessian" / "eig.npz").write_bytes(b"no arrays")
    damaged = plan.parent / "plan" / "p2" / "ggn" / "trace.json"
    record = json.loads(damaged.read_text())
    del record["results"][0]["standard_error"]
    damaged.write_text(json.dumps(record))
    evolution = collect(read_plan(plan))
    assert len(evolution.notes) == 2
    assert "trace.json" in evolution.notes[0]
    assert "hessian" in evolution.notes[1]
    assert "--save-vectors" in evolution.notes[1]
    assert [row.step for row in evolution.select("overlap_next", curvature="hessian")] == [50, 500]
    assert [row.step for row in evolution.select("trace", curvature="ggn")] == [5, 50, 5000]


def test_numbers_that_are_not_finite_are_empty(plan):
    file = plan.parent / "plan" / "p1" / "ggn" / "eig.json"
    record = json.loads(file.read_text())
    record["results"][0]["eigenvalues"][1] = None
    file.write_text(json.dumps(record))
    evolution = collect(read_plan(plan))
    assert values(evolution.select("eigenvalue", curvature="ggn", step=50)) == [10.0, None, 2.0]
    assert [row.step for row in evolution.select("overlap_next", curvature="ggn")] == [5, 500]
    assert "NaN" not in evolution.to_json()


def test_a_plan_without_results_is_told(plan):
    text = plan.read_text().replace("[problem]", 'out = "elsewhere"\n[problem]')
    plan.write_text(text)
    with pytest.raises(SpectraError, match="no task has a result yet"):
        collect(read_plan(plan))


def test_the_table_is_the_same_as_csv_and_as_json_and_every_time(plan, tmp_path):
    evolution = collect(read_plan(plan))
    files = evolution_files(evolution, tmp_path / "once")
    assert [file.name for file in files] == ["table.csv", "table.json", "evolution.png", "evolution.pdf"]
    again = evolution_files(collect(read_plan(plan)), tmp_path / "again")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    lines = list(csv.DictReader(io.StringIO(files[0].read_text())))
    rows = json.loads(files[1].read_text())["rows"]
    assert len(lines) == len(rows) == len(evolution.rows)
    for line, row in zip(lines, rows, strict=True):
        assert list(line) == list(row)
        for name, value in row.items():
            if value is None or isinstance(value, str | bool):
                assert line[name] == {None: "", True: "true", False: "false"}.get(value, value)
            else:
                assert float(line[name]) == value
    places = [(row["step"], row["curvature"] or "") for row in rows]
    assert [step for step, _ in places] == sorted(step for step, _ in places)


@pytest.mark.parametrize(("options", "pixels"), [("", 1300), ("--width 3.25", 650)])
def test_the_command_draws_at_the_width_that_is_asked_for(options, pixels, plan, monkeypatch, capsys):
    monkeypatch.chdir(plan.parent)
    assert run(["sweep", "collect", plan.name, *options.split()]) == 0
    (png,) = (line for line in capsys.readouterr().out.splitlines() if line.endswith("evolution.png"))
    assert imread(png).shape[1] == pixels


def test_results_of_a_loop_that_was_watched(tmp_path):
    for t, step in enumerate((20, 100, 3000)):
        write_results(tmp_path / f"step-{step:06d}", "hessian", t)
    evolution = evolution_of(tmp_path, learning_rate=0.1)
    assert (evolution.axis, evolution.learning_rate, evolution.unfinished) == ("training step", 0.1, ())
    assert [row.step for row in evolution.select("trace")] == [20, 100, 3000]
    assert values(evolution.select("alignment_next")) == pytest.approx([np.cos(ALPHA)] * 2)
    with pytest.raises(SpectraError, match="holds a result"):
        evolution_of(tmp_path / "step-000020" / "nothing")


@pytest.mark.parametrize(
    ("entries", "names", "meaning", "steps"),
    [
        ({"step": [3, 1]}, ["a1", "a2"], "training step", [3, 1]),
        ({"epoch": [3, 1], "global_step": [30, 10]}, ["a1", "a2"], "training step", [30, 10]),
        ({"epoch": [torch.tensor(7), torch.tensor(8)]}, ["a1", "a2"], "epoch", [7, 8]),
        ({"step": [3, None], "epoch": [1, 2]}, ["a1", "a2"], "epoch", [1, 2]),  # an entry that all have
        ({"step": [3, 3]}, ["a1", "a2"], "training step", [1, 2]),  # and that tells them apart
        ({"step": ["3", True]}, ["run1/step-0010", "run1/step-0200"], "training step", [10, 200]),
        ({}, ["epoch=3", "epoch=12"], "epoch", [3, 12]),
        ({}, ["run2/final", "run2/initial"], "checkpoint", [0, 1]),
        ({}, ["initial", "final"], "checkpoint", [0, 1]),
    ],
)
def test_the_step_of_a_checkpoint(tmp_path, entries, names, meaning, steps):
    paths = {}
    for i, name in enumerate(names):
        held = {key: some[i] for key, some in entries.items() if some[i] is not None}
        paths[name] = tmp_path / f"{i}.pt"
        torch.save({"model": {"weight": torch.zeros(1)}} | held, paths[name])
    assert training_steps(paths) == (meaning, dict(zip(names, steps, strict=True)))


@pytest.mark.parametrize("steps", [(5, 50, 5, 50), (5, 50, 500, 5000)])
def test_several_trainings_in_one_plan_are_told(plan, steps):
    """Their steps are the same, and tell no order; where they are not, one training may have gone on in a folder."""
    home, points = plan.parent, plan.parent / "points"
    for t, (step, folder) in enumerate(zip(steps, "aabb", strict=True)):
        (points / folder).mkdir(exist_ok=True)
        (points / f"p{t}.pt").unlink()
        file = points / folder / f"p{t % 2}.pt"
        torch.save({"model": {"weight": torch.zeros(1, 6)}, "step": step}, file)
        write_results(home / "plan" / folder / f"p{t % 2}" / "hessian", "hessian", t, file)
    plan.write_text(plan.read_text().replace("points/*.pt", "points/*/*.pt"))
    evolution = collect(read_plan(plan))
    assert [row.step for row in evolution.select("loss")] == ([0, 1, 2, 3] if steps[2] == 5 else list(steps))
    told = any("of 2 folders are drawn as one training" in note for note in evolution.notes)
    assert told == (steps[2] == 5)


def test_weights_are_not_read_to_find_a_step(tmp_path, monkeypatch):
    """Neither is a file hashed: mapped, it is as good as free."""
    paths = {}
    for i in range(2):
        paths[f"a{i}"] = tmp_path / f"{i}.pt"
        torch.save({"weight": torch.zeros(1000), "step": torch.tensor(i + 7)}, paths[f"a{i}"])
    monkeypatch.setattr("hashlib.file_digest", None)
    monkeypatch.setattr("spectra.inputs.checkpoint_file.read_checkpoint", None)
    assert training_steps(paths) == ("training step", {"a0": 7, "a1": 8})


def test_the_step_in_a_file_of_the_old_format(tmp_path):
    paths = {}
    for i in range(2):
        paths[f"a{i}"] = tmp_path / f"{i}.pt"
        torch.save({"step": i + 7}, paths[f"a{i}"], _use_new_zipfile_serialization=False)
    assert training_steps(paths) == ("training step", {"a0": 7, "a1": 8})


def index_of_shards(folder):
    tensors = {"a": torch.zeros(3), "b": torch.ones(3)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in tensors}}))
    return index, folder / "b.safetensors"


def one_file(folder):
    (folder / "one.pt").write_bytes(b"some bytes")
    return folder / "one.pt", folder / "one.pt"


@pytest.mark.parametrize("make", [one_file, index_of_shards])
def test_a_checkpoint_is_hashed_once_while_it_is_the_same(make, tmp_path, monkeypatch):
    checkpoint, part = make(tmp_path)
    home = tmp_path / "task"
    home.mkdir()
    before = digest(checkpoint, home)
    assert before == (digest_of(checkpoint) if make is index_of_shards else sha256(checkpoint))
    computed.cache_clear()  # as another process would begin
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert digest(checkpoint, home) == before
    part.write_bytes(part.read_bytes()[:-1] + b"\1")  # of the same size
    assert digest(checkpoint, home) != before
    (home / ".checkpoint.json").write_text("rubbish")
    assert digest(checkpoint, home) == digest(checkpoint, tmp_path / "no such directory") != before


def test_files_that_cannot_be_read_have_the_step_of_their_name(tmp_path):
    (tmp_path / "a.pt").write_text("no checkpoint")
    paths = {"step-4": tmp_path / "a.pt", "step-5": tmp_path / "b.safetensors", "step-6": None}
    assert training_steps(paths) == ("training step", {"step-4": 4, "step-5": 5, "step-6": 6})


SOME = {
    "all": lambda row: True,
    "trace alone": lambda row: row.quantity == "trace",
    "eigenvalues and loss": lambda row: row.quantity in ("eigenvalue", "loss"),
    "eigenvalues alone": lambda row: row.quantity == "eigenvalue",
    "one matrix": lambda row: row.curvature in (None, "ggn"),
    "no updates": lambda row: not row.quantity.startswith("update"),
    "one checkpoint": lambda row: row.step == 5,
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("some", "rate"), [("all", None), ("all", 1e-4), *((name, 0.5) for name in SOME)])
def test_the_figure_has_a_panel_for_what_there_is_and_can_be_read(plan, some, rate):
    evolution = collect(read_plan(plan))
    rows = tuple(row for row in evolution.rows if SOME[some](row))
    evolution = replace(evolution, rows=rows, learning_rate=rate)
    not_drawn = ("accuracy", "gap", "angle_next", "angle_last")
    for width in (3.25, 6.5):
        figure = evolution_figure(evolution, width)
        assert len(figure.axes) == len({row.quantity for row in rows if row.quantity not in not_drawn})
        assert figure.get_figwidth() == width
        assert_readable(figure)
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any(text.startswith("2 / learning rate") for text in entries) == bool(
        rate and evolution.select("eigenvalue")
    )


def test_the_limit_of_stability_is_drawn_where_it_is_in_reach(plan):
    evolution = collect(read_plan(plan))
    heights = [line.get_ydata() for line in evolution_figure(evolution).axes[0].lines]
    assert any(list(height) == [4.0, 4.0] for height in heights)
    far = replace(evolution, learning_rate=1e-4)
    figure = evolution_figure(far)
    assert figure.axes[0].get_ylim()[1] < 30
    assert "2 / learning rate = 20000 (beyond)" in [text.get_text() for text in figure.legends[0].get_texts()]


RATES, LIMITS, UPPER = (0.1, 0.2, 0.4), (30.0, 14.0, 6.0), (31.0, 14.5, 6.25)


def preconditioned(directory, change=lambda t: {}):
    """Three checkpoints of an optimizer with a schedule, whose eigenvalues are VALUES times 1, 2 and 3."""
    for t in range(3):
        known = {"spec": "optimizer", "optimizer": "AdamW", "rate": RATES[t], "threshold": LIMITS[t]}
        precondition = known | {"threshold_upper": UPPER[t]} | change(t)
        write_results(directory / f"step-{t}", "hessian", t, precondition=precondition)
    return evolution_of(directory)


def test_preconditioned_eigenvalues_stand_beside_the_threshold(tmp_path):
    evolution = preconditioned(tmp_path)
    assert evolution.precondition == ("AdamW",)
    assert values(evolution.select("learning_rate")) == list(RATES)
    assert [(row.value, row.upper) for row in evolution.select("threshold")] == list(zip(LIMITS, UPPER, strict=True))
    for i, value in enumerate(VALUES):
        rows = evolution.select("over_threshold", index=i + 1)
        assert values(rows) == pytest.approx([(1 + t) * value / LIMITS[t] for t in range(3)])
        assert [row.error for row in rows] == pytest.approx([RESIDUALS[i] / limit for limit in LIMITS])
    text = evolution_text(evolution)
    assert "hessian, preconditioned by AdamW; threshold of stability: 6 to 30" in text
    assert "2.5000 ±" in text  # 15 of 6


def test_the_figure_draws_them_times_the_learning_rate(tmp_path):
    figure = evolution_figure(preconditioned(tmp_path))
    axes = figure.axes[0]
    drawn = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 3]
    for expected in ([0.5, 2.0, 6.0], [rate * limit for rate, limit in zip(RATES, LIMITS, strict=True)]):
        assert any(np.allclose(heights, expected) for heights in drawn), expected
    (band,) = [shape for shape in axes.collections if shape.get_paths()[0].vertices.shape[0] > 6]
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.1 * 31)
    assert "learning rate × eigenvalues of" in axes.get_title("left")
    assert "threshold of AdamW, 2.4 to 3" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert_readable(figure)
    assert_readable(evolution_figure(preconditioned(tmp_path), 3.25))


def test_rates_that_differ_between_parameters_are_in_the_eigenvalues(tmp_path):
    """P / rate stands for P then, and nothing is multiplied by a rate; so it is in a checkpoint, and not in others."""
    figure = evolution_figure(preconditioned(tmp_path, lambda t: {"rate": None} if t == 1 else {}))
    drawn = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == 3]
    assert any(np.allclose(heights, [0.5, 10.0, 6.0]) for heights in drawn)


@pytest.mark.parametrize("plain", ["trace", "eig"])
def test_a_matrix_and_its_preconditioned_one_do_not_mix(plain, tmp_path):
    """Where only one of two commands was given a preconditioner, one of them is left out with a note."""
    preconditioned(tmp_path / "both")
    for t in range(3):
        write_results(tmp_path / f"plain/step-{t}", "hessian", t)
        for file in (tmp_path / f"plain/step-{t}").glob(f"{plain}.*"):
            shutil.copy(file, tmp_path / f"both/step-{t}/{file.name}")
    evolution = evolution_of(tmp_path / "both")
    assert evolution.precondition == (("AdamW",) if plain == "trace" else ())
    assert len(evolution.select("eigenvalue", index=1)) == 3
    assert evolution.select("trace") == []
    assert len(evolution.select("negative_share")) == 3
    (note,) = [text for text in evolution.notes if "preconditioner" in text]
    assert note.startswith(f"hessian: trace {'without' if plain == 'trace' else 'with'} a preconditioner is left out")


@pytest.mark.parametrize("reason", ["momentum differs between parameters", None])
def test_preconditioned_eigenvalues_without_a_threshold(tmp_path, reason):
    """There is none where momenta differ, which is told; nor for a diagonal that is given itself."""
    given = {"threshold": None, "threshold_upper": None, "rate": None, "threshold_reason": reason}
    evolution = preconditioned(tmp_path, lambda t: given | ({} if reason else {"optimizer": None, "spec": "p.npz"}))
    assert not evolution.select("threshold")
    assert not evolution.select("over_threshold")
    assert evolution.precondition == (("AdamW" if reason else "p.npz"),)
    told = [note for note in evolution.notes if note.startswith("threshold: no threshold of stability")]
    assert told == ([f"threshold: no threshold of stability, because {reason}"] if reason else [])
    assert evolution_figure(evolution).axes[0].get_title("left").startswith("eigenvalues of")
    assert "threshold of stability: none" in evolution_text(evolution)


def test_the_rate_of_gradient_descent_is_no_limit_of_preconditioned_eigenvalues(tmp_path):
    preconditioned(tmp_path)
    evolution = evolution_of(tmp_path, learning_rate=0.1)
    assert evolution.learning_rate is None
    assert any("2 / learning rate is not a limit" in note for note in evolution.notes)


@pytest.mark.parametrize(("name", "shares"), [("AdamW", 0), ("SGD", 3)])
def test_the_share_of_an_update_in_eigenspaces_of_other_coordinates_is_left_out(plan, name, shares):
    for t in range(4):
        home, point = plan.parent / "plan" / f"p{t}" / "hessian", plan.parent / "points" / f"p{t}.pt"
        write_results(home, "hessian", t, point, precondition={"spec": "optimizer", "optimizer": name})
    evolution = collect(read_plan(plan))
    assert len(evolution.select("update_share", curvature="hessian")) == shares
    assert len(evolution.select("update_share", curvature="ggn")) == 3
    assert any("share of updates" in note for note in evolution.notes) == (not shares)


def test_a_threshold_out_of_reach_is_told_in_the_legend_alone(tmp_path):
    figure = evolution_figure(preconditioned(tmp_path, lambda t: {"threshold": 1e6, "threshold_upper": 1e6}))
    assert figure.axes[0].get_ylim()[1] < 10
    assert any("(beyond)" in text.get_text() for text in figure.legends[0].get_texts())


def test_eigenpairs_of_a_matrix_in_place_of_results(tmp_path):
    """Two real matrices of which one is the other turned: what is found in files is what the matrices say."""
    turn = orthogonal(8, seed=3)
    first = with_spectrum([6, 5, 1, 0.5, 0.2, 0, 0, 0])
    for t, matrix in enumerate((first.numpy(), turn @ first.numpy() @ turn.T)):
        values, columns = np.linalg.eigh(matrix)
        entry = cost("ggn", 8) | {"eigenvalues": values[::-1][:4].tolist(), "residuals": [1e-14] * 4}
        home = tmp_path / f"step-{t}"
        home.mkdir()
        record = make_record("eig", {"seed": 0}, [entry])
        save(home, record, {"eigenvectors_ggn": columns.T[::-1][:4].astype(np.float32)})
    one = np.linalg.eigh(first.numpy())[1][:, ::-1][:, :2]
    evolution = evolution_of(tmp_path)
    (row,) = evolution.select("overlap_next")
    assert row.index == 2
    assert row.value == pytest.approx(np.square(one.T @ (turn @ one)).sum() / 2, rel=1e-6)


@pytest.mark.parametrize("losses", [(3.0, 2.9, 2.8, 2.7), (-1.0, -2.0, -3.0, 0.5), (0.0, 0.0, 0.0, 0.0)])
def test_the_loss_is_drawn_whole(plan, losses):
    """Losses that are negative, as those of densities are, and the marker of the largest, are on the axes."""
    evolution = collect(read_plan(plan))
    others = [row for row in evolution.rows if row.quantity != "loss"]
    drawn = [replace(row, value=value) for row, value in zip(evolution.select("loss"), losses, strict=True)]
    figure = evolution_figure(replace(evolution, rows=(*others, *drawn)))
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "loss")
    (bottom, top), room = axes.get_ylim(), 0.03
    assert top - max(losses) > room * (top - bottom)
    assert min(losses) > bottom + room * (top - bottom) or min(losses) == 0


def early_adam(first=MappingProxyType({1: 9000.0, -1: -8000.0, 2: 500.0})):
    """Eigenvalues of a preconditioned matrix: far beyond the threshold at step 0, rank 2 missing at step 20."""
    places = {
        0: first,
        10: {1: 30.0, 2: 20.0, -1: -9.0},
        20: {1: 36.0},
        30: {1: 35.0, 2: 8.0},
    }
    rows = []
    for step, found in places.items():
        rows += [
            Row(str(step), step, "hessian", 0, "eigenvalue", rank, x, 0.1, converged=True) for rank, x in found.items()
        ]
        rows.append(Row(str(step), step, "hessian", 0, "threshold", None, 38.0))
    return Evolution(axis="training step", precondition=("Adam",), rows=tuple(rows))


def test_eigenvalues_far_beyond_the_threshold_do_not_compress_the_figure():
    figure = evolution_figure(early_adam())
    (axes,) = figure.axes
    assert 38 < axes.get_ylim()[1] < 100
    assert -50 < axes.get_ylim()[0] < -9
    assert axes.get_title(loc="left").endswith("± residual, at most 3 of each matrix")
    edges = {line.get_marker(): line.get_xdata() for line in axes.lines if line.get_marker() in ("^", "v")}
    assert {marker: list(steps) for marker, steps in edges.items()} == {"^": [0], "v": [0]}
    assert "beyond the axis" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_line_has_a_gap_where_its_eigenvalue_was_not_recorded():
    (axes,) = evolution_figure(early_adam()).axes
    curves = [list(line.get_ydata()) for line in axes.lines]
    second = next(ys for ys in curves if ys[:2] == [500, 20])
    assert np.isnan(second[2])
    assert second[3] == 8
    assert [8] in curves  # a point, since a line would not show it


def test_what_lies_outside_of_the_axes_takes_no_room():
    figure = evolution_figure(early_adam({-1: -255.0, -2: -200.0}))
    figure.draw_without_rendering()
    left, right = figure.axes[0].get_position().intervalx
    assert left < 0.1
    assert right > 0.95
