"""spectra layers as it is called: what it prints, writes, refuses, reuses, and takes up again."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.plots.axes import asinh_ticks
from spectra.plots.layers import MOST_PANELS, MOST_ROWS, layers_figures
from spectra.records.record import Record
from spectra.tables.layers import MOST, SORTED, layers_text

NETS = """
from collections import OrderedDict
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

def long():
    inner = OrderedDict(downsample_of_the_residual_branch=nn.Linear(4, 30), act=nn.Tanh(),
                        projection_to_output_space=nn.Linear(30, 3))
    return nn.Sequential(OrderedDict(layer4_of_the_backbone=nn.Sequential(inner)))

class Root(nn.Module):
    def forward(self, x):
        return (0 * x).square().sqrt() + x

def bad():
    return nn.Sequential(mlp(), Root())
"""
LINE = "layers --model nets.py:mlp --data points.npz --dtype float64"
CLOCKS = ("seconds", "setup_seconds")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(40, 4)).astype("float32"), y=draw.integers(3, size=40))
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


def plain(found: dict) -> dict:
    """All that no clock has measured, and no path of."""
    for entry in found["results"]:
        for clock in CLOCKS:
            entry.pop(clock)
    found.pop("figures")
    found["problem"].pop("options")
    return found


# The record

ENTRY = {
    *("name", "parameters", "trace", "standard_error", "share", "share_error", "mean", "mean_error"),
    *("sensitivity", "sensitivity_error", "eigenvalues", "residuals", "complete", "mass", "overlap", "low_rank"),
}
DENSITY = {"nodes", "weights", "dimension", "deflated"}


def test_the_record(record):
    found = record(f"{LINE} -k 2 --density --probes 3 --steps 5 --curvature hessian --curvature ggn")
    assert found["command"] == "layers"
    assert found["figures"] == []
    assert [entry["curvature"] for entry in found["results"]] == ["hessian", "ggn"]
    for entry in found["results"]:
        assert {key: entry[key] for key in ("method", "by", "sort")} == {
            "method": "xdiag",
            "by": "layer",
            "sort": "order",
        }
        assert entry["converged"]
        blocks = entry["blocks"]
        assert [(block["name"], block["parameters"]) for block in blocks] == [("0", 40), ("2", 27)]
        assert sum(block["share"] for block in blocks) == pytest.approx(1)
        assert sum(block["trace"] for block in blocks) == pytest.approx(entry["trace"])
        assert sum(block["mass"] for block in blocks) == pytest.approx(1)
        for block in blocks:
            assert block.keys() == ENTRY | DENSITY
            assert block["mean"] == pytest.approx(block["trace"] / block["parameters"])
            assert block["mean_error"] == pytest.approx(block["standard_error"] / block["parameters"])
            assert len(block["eigenvalues"]) == len(block["residuals"]) == 2
            assert 0 <= block["overlap"] <= 1 + 1e-9
            (low,) = block["low_rank"]
            assert low.keys() == {"weight", "stable_rank", "of_whole"}
            assert low["weight"] == f"{block['name']}.weight"
            assert np.shape(block["nodes"]) == np.shape(block["weights"]) == (3, 2 + 5)
            assert np.sum(block["weights"], axis=1) == pytest.approx(1)


def test_against_dense_matrices(record):
    """Errors and residuals bound what they are errors of."""
    import spectra

    problem = spectra.load_problem(model="nets.py:mlp", data="points.npz", dtype="float64").problem
    theta = torch.cat([p.detach().flatten() for p in problem.leaves]).cpu()
    identity = torch.eye(67, dtype=torch.float64, device=problem.device)
    for entry in record(f"{LINE} --curvature hessian --curvature fisher-empirical --rtol 0.05")["results"]:
        dense = (Curvature(problem, entry["curvature"]) @ identity).cpu()
        for block, part in zip(entry["blocks"], (slice(40), slice(40, 67)), strict=True):
            own, spectrum = dense[part, part], torch.linalg.eigvalsh(dense[part, part])
            assert abs(block["trace"] - own.trace().item()) <= 4 * block["standard_error"] + 1e-12
            rise = (own.diagonal() * theta[part] ** 2 / 2).sum().item()
            assert abs(block["sensitivity"] - rise) <= 4 * block["sensitivity_error"] + 1e-12
            share = (own.trace() / dense.trace()).item()
            assert abs(block["share"] - share) <= 4 * block["share_error"] + 1e-12
            assert (spectrum - block["eigenvalues"][0]).abs().min() <= block["residuals"][0] + 1e-9
            assert abs(abs(block["eigenvalues"][0]) - spectrum.abs().max()) <= block["residuals"][0] + 1e-9
            assert block["standard_error"] <= 0.05 * abs(entry["trace"])


@pytest.mark.parametrize(
    ("options", "by", "sort"), [("", "channel", "sensitivity"), ("--sort trace", "channel", "trace")]
)
def test_of_channels_no_eigenvectors_are_sought(options, by, sort, record):
    (entry,) = record(f"{LINE} --by channel {options}")["results"]
    assert (entry["by"], entry["sort"]) == (by, sort)
    assert entry["eigenvalues"] is None
    assert len(entry["blocks"]) == 11
    for block in entry["blocks"]:
        assert (
            block["eigenvalues"] is block["residuals"] is block["mass"] is block["overlap"] is block["low_rank"] is None
        )
    (asked,) = record(f"{LINE} --by channel -k 1")["results"]
    assert all(len(block["eigenvalues"]) == 1 for block in asked["blocks"])
    assert asked["products"] > entry["products"]


def test_without_eigenvalues(record, call):
    (entry,) = record(f"{LINE} -k 0")["results"]
    assert entry["blocks"][0]["eigenvalues"] is None
    assert "leading" not in call(f"{LINE} -k 0")[1]


def test_both_methods_tell_of_the_same_matrix(record):
    exact, signs = (record(f"{LINE} -k 0 --method {m} --rtol 0.03")["results"][0] for m in ("xdiag", "hutchinson"))
    assert signs["method"] == "hutchinson"
    for one, other in zip(exact["blocks"], signs["blocks"], strict=True):
        assert other["standard_error"] > 0
        assert abs(one["trace"] - other["trace"]) <= 4 * np.hypot(one["standard_error"], other["standard_error"])


# The tables


@pytest.mark.parametrize(
    "options",
    ["", "--by channel", "--by channel -k 2", "--by module --sort sensitivity", "--density --probes 2 --steps 4"],
)
def test_tables_fit_the_page(options, call):
    status, out, err = call(
        f"{LINE.replace('mlp', 'long')} --rtol 0.1 --curvature hessian --curvature gradient-covariance {options}"
    )
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "to_output_space" in out  # the end of a name tells most
    assert "None" not in out
    assert "nan" not in out
    assert "± " in out
    assert all(len(line.split()) > 1 for line in out.splitlines() if "_output" in line)  # none is broken in two
    assert list(Path().glob("*.png")) == list(Path().glob("*.json")) == []


def rows(out: str, names: list[str]) -> list[str]:
    """The names that begin lines of the first table."""
    found = [line.split()[0] for line in out.splitlines() if line.split()]
    return [name for name in found if name in names][: len(names)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("sort", ["order", *SORTED])
def test_the_table_is_sorted(sort, record, call):
    """Falling, by magnitude where it is of eigenvalues; the record keeps the model's order."""
    line = f"{LINE} --by channel -k 1 --sort {sort}"
    (entry,) = record(line)["results"]
    names = [block["name"] for block in entry["blocks"]]
    assert names == [*(f"0[{i}]" for i in range(8)), *(f"2[{i}]" for i in range(3))]
    keys = {"order": lambda i, b: i, "eigenvalue": lambda i, b: -abs(b["eigenvalues"][0])}
    key = keys.get(sort, lambda i, b: -b[sort])
    expected = [block["name"] for i, block in sorted(enumerate(entry["blocks"]), key=lambda pair: key(*pair))]
    out = call(line)[1]
    assert rows(out, names) == expected
    assert ("largest first" in " ".join(out.split())) == (sort != "order")


def test_sorting_by_what_was_not_asked_for_keeps_the_order(record, call):
    line = f"{LINE} --by channel --sort mass"
    names = [block["name"] for block in record(line)["results"][0]["blocks"]]
    assert rows(call(line)[1], names) == names


def test_a_table_ends_after_so_many_rows(record):
    found = many(record(f"{LINE} --by channel"), 100)
    text = layers_text(Record.of(found))
    assert f"and {100 - MOST} more blocks, which --json shows and --out saves" in text
    assert len([line for line in text.splitlines() if line.strip().startswith("layer")]) == MOST


def test_what_was_not_proven_is_named(record):
    found = record(LINE)
    assert "not proven" not in layers_text(Record.of(found))
    found["results"][0]["blocks"][1]["complete"] = False
    assert "a missed eigenvalue cannot be excluded with 99 % confidence in these blocks: 2" in layers_text(
        Record.of(found)
    )


# Files


def test_files(record):
    found = record(f"{LINE} --out here -k 2 --density --probes 2 --steps 4 --curvature hessian --curvature ggn")
    names = ["layers-density.png", "layers.json", "layers.npz", "layers.png"]
    assert sorted(path.name for path in Path("here").iterdir()) == names
    assert sorted(found["figures"]) == [f"here/{name}" for name in names if name.endswith("png")]
    assert json.loads(Path("here/layers.json").read_text()) == found
    for name in names:
        if name.endswith("png"):
            assert np.asarray(Image.open(f"here/{name}").convert("L")).std() > 5
    with np.load("here/layers.npz") as arrays:
        kinds = ("diagonal", "errors", "block_eigenvectors")
        assert set(arrays) == {f"{kind}_{name}" for kind in kinds for name in ("hessian", "ggn")}
        for entry in found["results"]:
            diagonal, errors, vectors = (arrays[f"{kind}_{entry['curvature']}"] for kind in kinds)
            assert diagonal.shape == errors.shape == (67,)
            assert vectors.shape == (2, 67)
            for block, part in zip(entry["blocks"], (slice(40), slice(40, 67)), strict=True):
                assert diagonal[part].sum() == pytest.approx(block["trace"])
                assert np.linalg.norm(vectors[:, part], axis=1) == pytest.approx(1)


def test_short_blocks_have_no_more_eigenvectors_than_rows(record):
    record(f"{LINE} --out here --params *bias --by channel -k 2")
    with np.load("here/layers.npz") as arrays:
        vectors = arrays["block_eigenvectors_hessian"]
    assert vectors.shape == (1, 11)  # every channel is one row here
    assert np.abs(vectors) == pytest.approx(1)


def test_a_result_is_repeated(record):
    settings = "--by module -k 2 --sort mass --rtol 0.1 --density --steps 5 --probes 2 --seed 3"
    once = record(f"{LINE} --out here {settings} --curvature ggn --curvature fisher-mc --mc-samples 3")
    assert plain(record("layers --trust --config here/layers.json")) == plain(once)


# Eigenvectors of an earlier run


def test_eigenvectors_of_an_earlier_run_are_taken(record, call):
    alone = record(LINE)["results"][0]
    record("eig --model nets.py:mlp --data points.npz --dtype float64 -k 3 --tol 1e-6 --out here")
    for options in ("--out here", "--eigenvectors here/eig.json"):
        (entry,) = record(f"{LINE} {options}")["results"]
        assert entry["products"] < alone["products"]
        assert entry["eigenvalues"] == pytest.approx(alone["eigenvalues"], rel=1e-4)
        for one, other in zip(entry["blocks"], alone["blocks"], strict=True):
            assert one["mass"] == pytest.approx(other["mass"], abs=1e-2)


def test_the_lowest_eigenvectors_serve_nothing(record):
    alone = record(LINE)["results"][0]
    record("eig --model nets.py:mlp --data points.npz --dtype float64 -k 3 --which SA --out here")
    (entry,) = record(f"{LINE} --out here")["results"]
    assert (entry["products"], entry["eigenvalues"]) == (alone["products"], alone["eigenvalues"])


def test_eigenvectors_of_another_matrix_are_not_taken(call):
    call("eig --model nets.py:mlp --data points.npz --dtype float64 -k 1 --curvature ggn --out here")
    status, _, err = call(f"{LINE} --out here")
    assert status == 0
    assert "none are taken" in err


# Where it ends early


@pytest.mark.sampled(4)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 12, 40, 100])
@pytest.mark.parametrize("options", ["", "--density"])
def test_a_budget_ends_it_with_status_1(limit, options, call):
    line = f"{LINE} --max-products {limit} {options}"
    status, out, err = call(f"{line} --json")
    assert status == 1
    assert err.count("\n") == 1
    if limit > 4:  # one sample of the diagonal tells no error
        assert "raise --max-products" in err
    for entry in json.loads(out)["results"]:
        assert entry["products"] <= limit
        assert not entry["converged"]
    status, out, err = call(f"{line} --out here")
    assert status == 1
    assert err.startswith("spectra: hessian")
    assert Path("here/layers.png").exists()


def test_numbers_that_are_not_finite(call):
    status, out, err = call(f"{LINE.replace('mlp', 'bad')} --density --json --out here")
    assert status == 1
    assert "a number is not finite" in err
    assert "NaN" not in out
    (entry,) = json.loads(out)["results"]
    assert entry["trace"] is None
    assert call(f"{LINE.replace('mlp', 'bad')} --by channel")[0] == 1


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ("--by row", "--by"),
        ("-k -1", "-k"),
        ("--sort name", "--sort"),
        ("--method xtrace", "--method"),
        ("--rtol 0", "--rtol"),
        ("--tol -1", "--tol"),
        ("--steps 1", "--steps"),
        ("--probes 0", "--probes"),
        ("--eigenvectors nothing.json", "--eigenvectors nothing.json"),
        ("--params nothing", "--params nothing"),
        ("--weight-decay 0.1 --curvature fisher-empirical", "--weight-decay 0.1"),
    ],
)
def test_what_is_refused(options, fragment, call):
    status, out, err = call(f"{LINE} --out here {options}")
    assert (status, out) == (2, "")
    assert fragment in err
    assert "Traceback" not in err
    assert not Path("here/layers.json").exists()
    assert not Path("here/layers.state").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("by", "part"), [("layer", 0.15), ("layer", 0.5), ("layer", 0.85), ("channel", 0.4)])
def test_it_goes_on_where_it_was_cut_off(by, part, monkeypatch, capfd):
    """Anywhere: in the diagonal, the leading pair, the blocks or their spectra; to the same numbers."""
    settings = "-k 1 --density --probes 2 --steps 4 --curvature hessian --curvature ggn"
    line = shlex.split(f"{LINE} --by {by} {settings}")
    calls, last = 0, math.inf

    def cutting(name):
        multiply = getattr(Curvature, name)

        def counting(self, *given):
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return multiply(self, *given)

        monkeypatch.setattr(Curvature, name, counting)

    cutting("__matmul__")
    cutting("times_blocks")
    assert run([*line, "--out", "whole"]) == 0
    every = calls
    last, calls = int(part * every), 0
    assert run([*line, "--out", "cut"]) == 130
    assert "layers.state holds the work so far" in capfd.readouterr().err
    assert [path.name for path in Path("cut").iterdir()] == ["layers.state"]
    last, calls = math.inf, 0
    assert run([*line, "--out", "cut"]) == 0
    assert "resumes after" in capfd.readouterr().err
    found, whole = (plain(json.loads(Path(name, "layers.json").read_text())) for name in ("cut", "whole"))
    assert found == whole
    assert not Path("cut/layers.state").exists()
    assert calls <= every * (1 - part) + 10  # what was done is not done again, but for a check of each matrix


# Figures, from the record alone


def many(found: dict, count: int) -> dict:
    """The record with so many blocks, by repeating those that there are."""
    for entry in found["results"]:
        blocks = entry["blocks"]
        entry["blocks"] = [blocks[i % len(blocks)] | {"name": f"layer{i}[{i % 3}]"} for i in range(count)]
    return found


def texts(figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


BOTH = "--curvature hessian --curvature ggn"


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("options", "count", "names"),
    [
        ("", 0, ["layers"]),
        ("-k 0", 0, ["layers"]),
        (BOTH, 0, ["layers"]),
        (BOTH, MOST_ROWS + 20, ["layers"]),
        (f"--density --probes 2 --steps 4 {BOTH}", 0, ["layers", "layers-density"]),
        ("--density --probes 2 --steps 4", MOST_PANELS + 5, ["layers", "layers-density"]),
        ("--by channel", 0, ["layers"]),
        (f"--by channel {BOTH}", 4 * MOST_PANELS, ["layers"]),
    ],
)
def test_figures(options, count, names, record):
    found = json.loads(json.dumps(record(f"{LINE} --rtol 0.2 {options}")))
    if count:
        found = many(found, count)
    figures = layers_figures(Record.of(found))
    assert list(figures) == names
    for figure in figures.values():
        told = texts(figure)
        for entry in found["results"]:
            assert entry["curvature"] in told
    if count > MOST_ROWS and "channel" not in options:
        assert f"the {MOST_ROWS} of {count} blocks" in texts(figures["layers"])
    if "channel" in options and count:
        assert f"{count - MOST_PANELS} smaller layers left out" in texts(figures["layers"])


def test_bars_are_what_the_record_says(record):
    found = record(LINE)
    blocks = found["results"][0]["blocks"]
    share, mean, _, mass = layers_figures(Record.of(found))["layers"].axes[:4]
    assert [bar.get_width() for bar in share.patches] == pytest.approx([100 * block["share"] for block in blocks])
    assert [bar.get_width() for bar in mass.patches] == pytest.approx([block["mass"] for block in blocks])
    assert [label.get_text() for label in share.get_yticklabels()] == ["0", "2"]
    points = mean.containers[0].lines[0]
    assert list(points.get_xdata()) == pytest.approx([block["mean"] for block in blocks])


def test_numbers_that_json_has_lost_are_left_out_of_figures(record):
    """Null, where an error is not known."""
    found = record(LINE)
    for block in found["results"][0]["blocks"]:
        block |= {"share_error": None, "mean_error": None, "sensitivity_error": None, "standard_error": None}
    texts(layers_figures(Record.of(found))["layers"])


@pytest.mark.parametrize(("low", "high", "scale"), [(-0.6, 6, 0.006), (-0.3, 5, 7.7e-4), (-1e-3, 50, 1e-4)])
@pytest.mark.parametrize("labels", [2.5, 3.3, 4.7])
def test_a_narrow_panel_is_labelled_beside_zero(low, high, scale, labels):
    assert len(asinh_ticks(low, high, scale, labels)[0]) >= 2
