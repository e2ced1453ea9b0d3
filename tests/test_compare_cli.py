"""spectra compare as it is called: what it prints, writes, refuses, and takes up again."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.cli import run
from spectra.comparison.pairs import ROUNDING
from spectra.curvature.operator import Curvature

NETS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
"""
LINE = "compare --model nets.py:mlp --data points.npz -k 4 --probes 6 --steps 10 --dtype float64"
FOUR = ["hessian", "ggn", "fisher", "fisher-empirical"]
CLOCKS = ("seconds", "setup_seconds")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    for name, size in (("points", 40), ("others", 25)):
        np.savez(f"{name}.npz", x=draw.normal(size=(size, 4)).astype("float32"), y=draw.integers(3, size=size))
    np.savez("regression.npz", x=draw.normal(size=(40, 4)), y=draw.normal(size=(40, 3)))
    return tmp_path


@pytest.fixture
def call(capfd):
    def call(line: str):
        capfd.readouterr()
        status = run(shlex.split(line))
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def record(call):
    def record(line: str) -> dict:
        status, out, err = call(f"{line} --json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return record


def test_the_record(record):
    found = record(LINE)
    assert [entry["curvature"] for entry in found["results"]] == FOUR
    for entry in found["results"]:
        assert len(entry["eigenvalues"]) == len(entry["residuals"]) == 4
        assert entry["converged"]
        assert entry["products"] > 100
        assert np.sum(entry["weights"], axis=1) == pytest.approx(1)
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}
    assert len(pairs) == 6
    for pair in pairs.values():
        assert set(pair["distance"]) == {"value", "standard_error"}
        assert [spaces["j"] for spaces in pair["overlaps"]] == [1, 2, 3, 4]
        assert [spaces["chance"] for spaces in pair["overlaps"]] == [j / 43 for j in (1, 2, 3, 4)]
        assert len(pair["first_by_second"]) == 4
    assert pairs["ggn", "fisher"]["distance"]["value"] < ROUNDING * np.finfo(np.float64).eps
    assert [cause["between"] for cause in found["causes"]] == [
        ["hessian", "ggn"],
        ["ggn", "fisher"],
        ["fisher", "fisher-empirical"],
        ["fisher", "fisher-batch"],
    ]
    assert found["problem"]["options"]["curvature"] == FOUR


def test_against_dense_matrices(record):
    """Distances to within four standard errors; eigenvalues of differences within residuals."""
    import spectra

    problem = spectra.load_problem(model="nets.py:mlp", data="points.npz", dtype="float64").problem
    identity = torch.eye(problem.size, dtype=torch.float64, device=problem.device)
    dense = {name: (Curvature(problem, name) @ identity).cpu() for name in FOUR}
    for pair in record(LINE)["pairs"]:
        a, b = dense[pair["first"]], dense[pair["second"]]
        value, error = pair["distance"].values()
        assert abs(value - ((a - b).norm() / a.norm()).item()) <= 4 * error + 1e-9
        value, error = pair["trace_difference"].values()
        assert abs(value - (a - b).trace().item()) <= 4 * error + 1e-9
        spectrum = torch.linalg.eigvalsh((a - b + (a - b).T) / 2)
        for end in ("largest", "smallest"):
            value, residual = pair[end].values()
            assert (spectrum - value).abs().min() <= residual + 1e-9
            assert spectrum[0] - 1e-9 <= value <= spectrum[-1] + 1e-9


def test_tables_fit_the_page(call):
    status, out, err = call(
        f"{LINE} --held-out others.npz --subsample 10,20,30 --curvature gradient-covariance --curvature ggn"
    )
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "A / B" in out
    assert "held out others.npz: 25 examples" in out
    assert "line at 40" in out
    assert list(Path().glob("*.png")) == list(Path().glob("*.json")) == []


def test_files(record):
    found = record(f"{LINE} --out here --held-out others.npz --subsample 10,20 --curvature hessian --curvature ggn")
    names = ["compare-held-out.png", "compare-subsample.png", "compare.json", "compare.npz", "compare.png"]
    assert sorted(path.name for path in Path("here").iterdir()) == names
    assert sorted(found["figures"]) == [f"here/{name}" for name in names if name.endswith("png")]
    assert json.loads(Path("here/compare.json").read_text()) == found
    with np.load("here/compare.npz") as arrays:
        assert arrays["eigenvalues_hessian, held out"].shape == (4,)
        assert arrays["nodes_ggn"].shape == arrays["weights_ggn"].shape


def test_a_result_is_repeated(record):
    once = record(f"{LINE} --out here --curvature ggn --curvature fisher-mc --mc-samples 3")
    again = record("compare --trust --config here/compare.json")
    assert plain(once) == plain(again)


def test_on_held_out_data_a_matrix_is_compared_with_itself(record):
    same = record(f"{LINE} --held-out points.npz --curvature hessian --curvature ggn")
    assert [entry["curvature"] for entry in same["results"]][2:] == ["hessian, held out", "ggn, held out"]
    for pair in same["pairs"][1:]:
        assert pair["second"] == f"{pair['first']}, held out"
        assert pair["rounding"]
    other = record(f"{LINE} --held-out others.npz --curvature hessian --curvature ggn")
    assert other["held_out"]["examples"] == 25
    assert other["pairs"][1]["distance"]["value"] > 0.01
    alone = record(f"{LINE} --data others.npz --curvature hessian --curvature ggn")
    for mine, there in zip(other["results"][2:], alone["results"], strict=True):
        assert mine["eigenvalues"] == pytest.approx(there["eigenvalues"], rel=1e-6)


def test_subsamples(record):
    found = record(f"{LINE} --subsample 10,40,20 --curvature hessian --curvature fisher-empirical")
    for entry in found["subsample"]:
        assert entry["sizes"] == [10, 20, 40]
        assert np.shape(entry["eigenvalues"]) == (4, 3, 4)
        assert entry["trends"][0]["means"][2]["value"] == pytest.approx(entry["measured"][0], rel=1e-6)
        assert entry["trends"][0]["limit"]["standard_error"] > 0


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--curvature ggn", ["--curvature ggn", "two matrices or more"]),
        ("--curvature ggn --curvature ggn", ["--curvature ggn", "two matrices or more"]),
        ("-k 44", ["-k 44: the matrix has only 43 rows", "43 rows"]),
        ("--held-out nothing.npz", ["--held-out nothing.npz"]),
        ("--held-out regression.npz", ["--held-out"]),
        ("--subsample 10,50", ["--subsample 50", "40 examples"]),
        ("--subsample 10", ["--subsample 10", "two or more"]),
        ("--subsample ten", ["--subsample", "256,512,1024"]),
        ("--weight-decay 0.1", ["--weight-decay 0.1", "fisher-empirical"]),
    ],
)
def test_what_is_refused(options, fragments, call):
    status, out, err = call(f"{LINE} --out here {options}")
    assert (status, out) == (2, "")
    assert err.startswith("spectra: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
    assert not Path("here/compare.json").exists()
    assert not Path("here/compare.state").exists()


def test_a_loss_with_one_matrix_is_told_so(call):
    Path("own.py").write_text("def loss(model, batch):\n    return model(batch[0]).square().mean()\n")
    status, out, err = call(f"{LINE} --loss own.py:loss")
    assert (status, out) == (2, "")
    assert "--loss own.py:loss: it has no matrix to compare hessian with; " in err
    assert "ggn is left out: a loss of (model, batch) hides the model's output" in err
    assert "such as hessian and fisher-batch" in err


@pytest.mark.parametrize("limit", [1, 12, 100])
def test_a_budget_ends_it_with_status_1(limit, call):
    status, out, err = call(f"{LINE} --max-products {limit} --json")
    assert status == 1
    assert "raise --max-products" in err
    for entry in json.loads(out)["results"]:
        assert entry["products"] <= limit
    assert call(f"{LINE} --max-products {limit}")[0] == 1


def test_numbers_that_are_not_finite(call):
    root = "class Root(nn.Module):\n    def forward(self, x):\n        return (0 * x).square().sqrt() + x\n"
    Path("bad.py").write_text(f"{NETS}\n{root}\ndef bad():\n    return nn.Sequential(mlp(), Root())\n")
    status, out, err = call(f"{LINE.replace('nets.py:mlp', 'bad.py:bad')} --json --out here")
    assert status == 1
    assert "a number is not finite" in err
    assert "NaN" not in out
    assert json.loads(out)["results"][0]["eigenvalues"][0] is None


ZEROS = """
import torch

def certain():
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight *= 1e9
    return model

def nothing(output, y):
    return (output * 0).sum()
"""


@pytest.mark.parametrize(
    ("loss", "told"),
    [("cross_entropy", "no share of |fisher|, which is zero"), ("zeros.py:nothing", "no share of |fisher-empirical|")],
)
def test_matrices_that_are_zero(loss, told, call, folder):
    (folder / "zeros.py").write_text(ZEROS)
    names = FOUR if loss == "cross_entropy" else ["hessian", "ggn", "fisher-empirical"]
    curvatures = " ".join(f"--curvature {name}" for name in [*names, "fisher-batch"])
    status, out, err = call(f"compare --model zeros.py:certain --data points.npz --loss {loss} --steps 5 {curvatures}")
    assert (status, err) == (0, "")
    assert told in " ".join(out.split())
    assert "nan %" not in out
    assert "None" not in out


def test_one_probe_tells_no_error(record, call):
    found = record(f"{LINE} --probes 1 --curvature ggn --curvature hessian")
    assert found["pairs"][0]["distance"]["standard_error"] is None
    status, out, _ = call(f"{LINE} --probes 1 --curvature ggn --curvature hessian")
    assert status == 0
    assert "nan" not in out


@pytest.mark.parametrize("loss", ["mse", "regression.py:loss"])
def test_other_losses(loss, call):
    Path("regression.py").write_text("def loss(output, target):\n    return (output - target).square().sum(1)\n")
    names = FOUR if loss == "mse" else ["hessian", "ggn", "fisher-empirical"]
    options = " ".join(f"--curvature {name}" for name in names)
    status, out, err = call(f"{LINE.replace('points', 'regression')} --loss {loss} {options}")
    assert (status, err) == (0, "")
    assert ("Root mean square of f - y" in " ".join(out.split())) == (loss == "mse")


def plain(record: dict) -> dict:
    """All that no clock has measured."""
    for entry in record["results"]:
        for clock in CLOCKS:
            entry.pop(clock)
    record.pop("figures")
    record["problem"].pop("options")
    return record


@pytest.mark.sampled(1)
@pytest.mark.parametrize("part", [0.1, 0.6])
def test_it_goes_on_where_it_was_cut_off(part, monkeypatch, capfd):
    settings = (
        "-k 2 --probes 2 --steps 5 --held-out others.npz --subsample 10,20 --curvature hessian --curvature fisher"
    )
    line = shlex.split(f"{LINE} {settings}")
    multiply, calls = Curvature.__matmul__, 0

    def counting(self, vectors):
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return multiply(self, vectors)

    monkeypatch.setattr(Curvature, "__matmul__", counting)
    last = math.inf
    assert run([*line, "--out", "whole"]) == 0
    last, calls = int(part * calls), 0
    assert run([*line, "--out", "cut"]) == 130
    assert "compare.state holds the work so far" in capfd.readouterr().err
    last, done, calls = math.inf, calls, 0
    assert run([*line, "--out", "cut"]) == 0
    found, whole = (plain(json.loads(Path(name, "compare.json").read_text())) for name in ("cut", "whole"))
    assert found == whole
    assert not Path("cut/compare.state").exists()
    assert calls < done / part - done + 40  # each matrix makes its first product again
