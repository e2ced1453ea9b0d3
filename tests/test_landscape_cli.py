"""spectra landscape as it is called: what it prints, writes, refuses, reuses, and takes up again."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import spectra
from spectra.cli import run
from spectra.curvature import displacement
from spectra.curvature.operator import Curvature
from spectra.plots.landscape import landscape_figures
from spectra.plots.style import save_figure
from spectra.records.record import Record
from spectra.tables.landscape import landscape_text, product_cell

NETS = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def explosive(output, target):
    return (6 * (output - torch.nn.functional.one_hot(target, 3)).square().sum(1)).exp()
"""
LINE = "landscape --model nets.py:mlp --data points.npz --dtype float64 --points 7"
CLOCKS = ("seconds", "setup_seconds")
EVERYTHING = "--along 1 --along 2 --along lowest --along random --along 1,2 --along random,random"


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
        assert out.count("\n") == 1
        return json.loads(out, parse_constant=pytest.fail)

    return record


def test_the_record(record):
    found = record(f"{LINE} {EVERYTHING} --curvature hessian --curvature ggn")
    assert found["command"] == "landscape"
    assert found["figures"] == []
    assert [entry["curvature"] for entry in found["results"]] == ["hessian", "ggn"]
    for entry in found["results"]:
        names = [d["name"] for d in entry["directions"]]
        assert names == ["1", "2", "lowest", "random 1", "random 2", "random 3"]
        assert [one["along"] for one in entry["lines"]] == ["1", "2", "lowest", "random 1"]
        assert [one["along"] for one in entry["planes"]] == [["1", "2"], ["random 2", "random 3"]]
        assert [one["along"] for one in entry["spread"]] == names
        assert entry["evaluations"] == 4 * 7 + 2 * 49
        assert entry["loss"] == pytest.approx(found["problem"]["loss_value"])
        assert entry["products"] > len(names) + 3
        for line in entry["lines"]:
            assert line["t"][3] == 0.0
            assert line["loss"][3] == pytest.approx(entry["loss"], rel=1e-12)
            gap = np.subtract(line["loss"], line["prediction"])
            assert line["departure"] == pytest.approx(gap.tolist(), abs=1e-15)
        for d, one in zip(entry["directions"], entry["spread"], strict=True):
            assert one["curvature"]["mean"] == pytest.approx(d["curvature"], rel=1e-9, abs=1e-12)
            assert one["slope"]["mean"] == pytest.approx(d["slope"], rel=1e-9, abs=1e-12)
        for d in entry["directions"][:3]:
            assert d["norm"] == pytest.approx(1)
            assert abs(d["curvature"] - d["eigenvalue"]) <= d["residual"] + 1e-12


def test_random_directions_are_those_of_the_seed_whatever_the_matrix(record):
    once, again = (record(f"{LINE} --along random --curvature {name}")["results"][0] for name in ("hessian", "fisher"))
    assert once["lines"][0]["loss"] == again["lines"][0]["loss"]
    assert once["products"] == again["products"] == 4  # three checks, and d'Ad
    other = record(f"{LINE} --along random --seed 1")["results"][0]
    assert other["lines"][0]["loss"] != once["lines"][0]["loss"]


def test_against_a_dense_matrix(record):
    problem = spectra.load_problem(model="nets.py:mlp", data="points.npz", dtype="float64").problem
    dense = Curvature(problem, "hessian") @ torch.eye(problem.size, dtype=torch.float64, device=problem.device)
    values = torch.linalg.eigvalsh(dense)
    ranked = sorted(values.tolist(), key=abs, reverse=True)
    entry = record(f"{LINE} --along 3 --along 1,2 --along lowest")["results"][0]
    found = {d["name"]: d["eigenvalue"] for d in entry["directions"]}
    expected = {"3": ranked[2], "1": ranked[0], "2": ranked[1], "lowest": values[0].item()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_tables_fit_the_page(call):
    _, out, _ = call(f"{LINE} {EVERYTHING} --curvature gradient-covariance --curvature fisher-batch")
    assert max(map(len, out.splitlines())) <= 80
    assert "fisher-batch is made of batches" in out
    assert "The quadratic model of the loss at theta + t d is valid for t in the range shown" in " ".join(out.split())
    assert list(Path().glob("*.png")) == list(Path().glob("*.json")) == []


@pytest.mark.parametrize(
    ("value", "scale", "shown"),
    [
        (-5.7e-8, 1.0, "~0"),
        (0.0, 0.0, "~0"),
        (2e-6, 1.0, "2e-6"),
        (-5.7e-8, 1e-3, "-5.7e-8"),
        (math.nan, 1.0, "nan"),
        (None, 1.0, "-"),
    ],
)
def test_inner_products_within_rounding_are_shown_as_about_zero(value, scale, shown):
    assert product_cell(value, scale) == shown


def test_files(record, call):
    names = ["landscape-plane.png", "landscape-surface.png", "landscape.json", "landscape.npz", "landscape.png"]
    found = record(f"{LINE} --out here --along random --along 1,random --curvature hessian --curvature fisher-batch")
    assert sorted(path.name for path in Path("here").iterdir()) == names
    assert found["figures"] == ["here/landscape.png", "here/landscape-plane.png", "here/landscape-surface.png"]
    assert json.loads(Path("here/landscape.json").read_text()) == found
    with np.load("here/landscape.npz") as arrays:
        assert arrays["loss_hessian_random-1"].tolist() == found["results"][0]["lines"][0]["loss"]
        assert arrays["loss_hessian_1_random-2"].shape == (7, 7)
    record(f"{LINE} --out lines --curvature fisher-batch")
    assert sorted(path.name for path in Path("lines").iterdir()) == names[2:]


def test_a_result_is_repeated(record):
    once = record(f"{LINE} --out here --along 1,random --along lowest --radius 0.3 --curvature ggn --tol 1e-5")
    again = record("landscape --trust --config here/landscape.json")
    assert plain(once) == plain(again)
    assert once["results"][0]["planes"][0]["x"][-1] == 0.3


def test_an_earlier_eig_spares_its_products(record, call):
    assert call("eig --model nets.py:mlp --data points.npz --dtype float64 -k 3 --out here")[0] == 0
    alone = record(f"{LINE} --along 2 --along 1,3")
    for options in ("--out here", "--eigenvectors here", "--eigenvectors here/eig.json"):
        found = record(f"{LINE} --along 2 --along 1,3 {options}")
        entry = found["results"][0]
        assert (
            entry["products"] == 3 + 3 + 3
        )  # checks, A d of each that tell that they are its, d'Ad of three directions
        assert {d["from"] for d in entry["directions"]} == {"here/eig.json"}
        assert found["problem"]["options"]["eigenvectors"] in ("here", "here/eig.json")
        assert entry["lines"][0]["loss"] == pytest.approx(alone["results"][0]["lines"][0]["loss"], rel=1e-2)
    assert {d["from"] for d in alone["results"][0]["directions"]} == {"computed"}
    assert record("landscape --trust --config here/landscape.json")["results"][0]["products"] == 9


@pytest.mark.parametrize(
    ("eig", "options", "told"),
    [
        ("-k 3", "--along 4", "holds only 3 of 4 eigenvectors within --tol"),
        ("-k 3", "--tol 1e-12", "holds only 0 of 1 eigenvectors within --tol"),
        ("-k 3 --which LA", "", "holds eigenvectors of --which LA"),
        ("-k 3", "--along lowest", "holds eigenvectors of --which LM"),
        ("-k 3", "--curvature ggn", "has no eigenvectors of this matrix"),
        ("-k 3 --seed 1", "", "has no converged eigenpairs of this matrix"),
    ],
)
def test_where_an_earlier_eig_does_not_serve(eig, options, told, call):
    assert call(f"eig --model nets.py:mlp --data points.npz --dtype float64 --out here {eig}")[0] == 0
    status, out, err = call(f"{LINE} --out here --json {options}")
    assert (status, err.count("\n")) == (0, 1)
    assert told in err
    assert json.loads(out)["results"][0]["directions"][0]["from"] == "computed"


@pytest.mark.parametrize("content", [None, "x", '{"schema": 1, "command": "eig", "problem": {}, "results": []}'])
def test_arrays_without_a_record_are_of_an_unknown_end(content, call):
    assert call("eig --model nets.py:mlp --data points.npz --dtype float64 --out here")[0] == 0
    path = Path("here/eig.json")
    path.unlink() if content is None else path.write_text(content)
    status, _, err = call(f"{LINE} --out here")
    assert status == 0
    assert "here/eig.npz holds eigenvectors of --which unknown, so new ones are computed" in err


def test_the_lowest_of_an_earlier_eig(record, call):
    assert call("eig --model nets.py:mlp --data points.npz --dtype float64 -k 1 --which SA --out here")[0] == 0
    entry = record(f"{LINE} --along lowest --out here")["results"][0]
    assert (entry["products"], entry["directions"][0]["from"]) == (3 + 1 + 1, "here/eig.json")


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--along 0", ["--along", "'0'", "lowest, random"]),
        ("--along -1", ["--along", "'-1'"]),
        ("--along x", ["--along", "'x'", "lowest, random"]),
        ("--along 1.5", ["--along", "'1.5'"]),
        ("--along ''", ["--along", "''"]),
        ("--along 1,2,3", ["--along", "'1,2,3'", "two of them separated by a comma"]),
        ("--along 1,", ["--along", "'1,'"]),
        ("--along 2,02", ["--along", "'2,02'", "one direction twice"]),
        ("--along lowest,lowest", ["--along", "one direction twice"]),
        ("--along 44", ["--along 44", "43 rows"]),
        ("--along random --params '*.bias'", ["--along random", "--params"]),
        ("--points 8", ["--points", "8 is even"]),
        ("--points 1", ["--points", "1"]),
        ("--radius 0", ["--radius", "'0'"]),
        ("--radius 1e7", ["--radius", "'1e7'", "at most 1e+06"]),
        ("--radius nan", ["--radius", "'nan'"]),
        ("--tol -1", ["--tol", "'-1'"]),
        ("--eigenvectors nothing.json", ["--eigenvectors nothing.json"]),
        ("--weight-decay 0.1 --curvature fisher-empirical", ["--weight-decay 0.1", "fisher-empirical"]),
    ],
)
def test_what_is_refused(options, fragments, call):
    status, out, err = call(f"{LINE} --out here {options}")
    assert (status, out) == (2, "")
    assert err.startswith("spectra: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
    assert not list(Path().glob("here/landscape*"))


@pytest.mark.parametrize("limit", [1, 2, 5, 9, 12])
def test_a_budget_ends_it_with_status_1(limit, call):
    status, out, err = call(f"{LINE} --along 5 --along random --max-products {limit} --json")
    assert status == 1
    assert "raise --max-products" in err
    assert json.loads(out)["results"][0]["products"] <= limit
    assert call(f"{LINE} --along 5 --along random --max-products {limit} --out here")[0] == 1


def test_a_budget_that_is_enough(record):
    needed = record(f"{LINE} --along 1 --along random")["results"][0]["products"]
    found = record(f"{LINE} --along 1 --along random --max-products {needed + 2}")
    assert len(found["results"][0]["lines"]) == 2


def test_a_loss_that_overflows_far_away_is_an_answer(record, call):
    line = f"{LINE} --loss nets.py:explosive --radius 60 --along 1 --along 1,2 --out here"
    found = record(line)["results"][0]
    assert None in found["lines"][0]["loss"]
    assert found["lines"][0]["departure"][0] is None
    assert any(None in row for row in found["planes"][0]["loss"])
    assert found["lines"][0]["loss"][3] is not None
    with np.load("here/landscape.npz") as arrays:
        assert np.isnan(arrays["loss_hessian_1"]).any()
    status, out, _ = call(line)
    assert status == 0
    assert "nan" not in out


@pytest.mark.parametrize("radius", ["1e6", "1e-200"])
def test_any_radius(radius, record):
    found = record(f"{LINE} --radius {radius} --along 1 --along 1,random --points 3 --out here")
    assert found["results"][0]["lines"][0]["t"][2] == float(radius)


def test_numbers_that_are_not_finite(call):
    root = "class Root(nn.Module):\n    def forward(self, x):\n        return (0 * x).square().sqrt() + x\n"
    Path("bad.py").write_text(f"{NETS}\n{root}\ndef bad():\n    return nn.Sequential(mlp(), Root())\n")
    status, out, err = call(f"{LINE.replace('nets.py:mlp', 'bad.py:bad')} --json --out here")
    assert status == 1
    assert "a number is not finite" in err
    assert "NaN" not in out
    saved = json.loads(Path("here/landscape.json").read_text())
    assert saved["results"][0]["directions"][0]["eigenvalue"] is None
    assert saved["results"][0]["lines"] == []
    assert landscape_figures(Record.of(saved)) == {}
    assert "None" not in landscape_text(Record.of(saved))
    assert call(f"{LINE.replace('nets.py:mlp', 'bad.py:bad')}")[0] == 1


TWICE = """
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

class Slope(Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return 2 * x * g

    @staticmethod
    @once_differentiable
    def backward(ctx, h):
        x, g = ctx.saved_tensors
        return 2 * g * h, 2 * x * h

class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return Slope.apply(*ctx.saved_tensors, g)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(Square.apply(self.layer(x)))
"""


def test_a_layer_without_a_third_derivative_has_no_spread(record, call):
    Path("twice.py").write_text(TWICE)
    line = f"{LINE.replace('nets.py:mlp', 'twice.py:Net')}"
    entry = record(line)["results"][0]
    assert entry["spread"] is None
    assert entry["without_spread"].startswith("no curvature of single examples, which needs third derivatives: ")
    assert entry["lines"][0]["loss"][3] == pytest.approx(entry["loss"], rel=1e-12)
    assert "`model`: a layer" in entry["without_spread"]
    assert "which needs third derivatives: --model: a layer" in " ".join(call(line)[1].split())


def test_one_example_has_no_spread(record, call):
    found = record(f"{LINE} --samples 1")["results"][0]["spread"][0]["curvature"]
    assert (found["standard_deviation"], found["signal_to_noise"]) == (0.0, None)
    assert call(f"{LINE} --samples 1 --out here")[0] == 0


def test_figures_and_text_come_from_the_file_alone(call):
    _, text, _ = call(f"{LINE} --along 1 --along 1,random --out here")
    saved = json.loads(Path("here/landscape.json").read_text())
    assert landscape_text(Record.of(saved)) == text.rstrip()
    figures = landscape_figures(Record.of(saved))
    assert list(figures) == ["landscape", "landscape-plane", "landscape-surface"]
    for name, figure in figures.items():
        save_figure(figure, f"{name}.png")
        assert Path(f"{name}.png").read_bytes() == Path(f"here/{name}.png").read_bytes()


def test_the_figure_shows_the_numbers(record):
    """Loss and prediction over t, the departure below, where it holds shaded; a box and a diamond a direction."""
    found = record(f"{LINE} --along 1 --along random")
    figure, entry = landscape_figures(Record.of(found))["landscape"], found["results"][0]
    panels = figure.axes
    assert len(panels) == 5
    for i, line in enumerate(entry["lines"]):
        above, below = panels[2 * i : 2 * i + 2]
        drawn = {to_hex(curve.get_color()): curve.get_xydata().T.tolist() for curve in above.lines[:2]}
        assert list(drawn.values()) == [[line["t"], line["loss"]], [line["t"], line["prediction"]]]
        assert line["departure"] in [list(curve.get_ydata()) for curve in below.lines]
        assert above.patches[0].get_x() == line["holds"]["start"]
        assert above.patches[0].get_width() == pytest.approx(line["holds"]["stop"] - line["holds"]["start"])
    names = [text.get_text() for text in panels[-1].get_yticklabels()]
    assert names == ["hessian, 1", "hessian, random 1"]


def test_a_landscape_of_nulls_alone_is_no_figure(record):
    found = record(f"{LINE} --along 1 --along 1,2")
    entry = found["results"][0]
    entry["spread"] = None
    for part in (*entry["lines"], *entry["planes"]):
        part["loss"] = np.full(np.shape(part["loss"]), None).tolist()
    assert landscape_figures(Record.of(found)) == {}


def plain(record: dict) -> dict:
    """All that no clock has measured."""
    for entry in record["results"]:
        for clock in CLOCKS:
            entry.pop(clock)
    record.pop("figures")
    record["problem"].pop("options")
    return record


@pytest.mark.sampled(1)
@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_it_goes_on_where_it_was_cut_off(part, monkeypatch, capfd):
    """Cut off between products and between evaluations: the same numbers, and little of it is done again."""
    line = shlex.split(f"{LINE} {EVERYTHING} --curvature hessian --curvature fisher")
    calls, last = 0, math.inf

    def counting(function):
        def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return counted

    monkeypatch.setattr(Curvature, "__matmul__", counting(Curvature.__matmul__))
    monkeypatch.setattr(sys.modules["spectra.cli.landscape"], "drawn", lambda _, record, __: record.changed(figures=[]))
    monkeypatch.setattr(displacement, "total_loss", counting(displacement.total_loss))
    assert run([*line, "--out", "whole"]) == 0
    whole_calls, last = calls, int(part * calls)
    calls = 0
    assert run([*line, "--out", "cut"]) == 130
    assert "landscape.state holds the work so far" in capfd.readouterr().err
    last, done, calls = math.inf, calls, 0
    assert run([*line, "--out", "cut"]) == 0
    found, whole = (plain(json.loads(Path(name, "landscape.json").read_text())) for name in ("cut", "whole"))
    assert found == whole
    assert not Path("cut/landscape.state").exists()
    assert calls <= whole_calls - done + 10  # a row of a plane, and the first product of each matrix, are made again
