"""spectra landscape between checkpoints and along training, as it is called: what it prints, writes and refuses."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_landscape_cli import NETS, plain
from torch import nn

import spectra
from spectra.cli import run
from spectra.cli.repeat import command_line
from spectra.curvature import displacement
from spectra.curvature.operator import Curvature
from spectra.plots.landscape import landscape_figures
from spectra.records.record import Record, load_result
from spectra.tables.landscape import landscape_text

LINE = "landscape --model nets.py:mlp --data points.npz --dtype float64 --points 7"
CHECKPOINTS = ("a-2.pt", "a-10.pt", "b,c.pt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(40, 4)).astype("float32"), y=draw.integers(3, size=40))
    for seed, name in enumerate(CHECKPOINTS):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model(torch.ones(1, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, name)


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
        return json.loads(out, parse_constant=pytest.fail)

    return record


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time of a command on a small network."""
    monkeypatch.setattr(sys.modules["spectra.cli.landscape"], "drawn", lambda _, record, __: record.changed(figures=[]))


def test_the_way_to_another_checkpoint(record, call):
    """Its losses at 0 and 1 are those of both checkpoints; figures and tables come from the file alone."""
    line = f"{LINE} --checkpoint a-2.pt --along checkpoint:a-10.pt"
    found = record(f"{line} --out here")
    (entry,) = found["results"]
    (way,) = entry["lines"]
    assert way["along"] == "checkpoint:a-10.pt"
    assert entry["directions"][0]["from"] == "a-10.pt"
    other = record(f"{LINE} --checkpoint a-10.pt --along random")["problem"]["loss_value"]
    assert way["loss"][way["t"].index(1.0)] == pytest.approx(other, rel=1e-12)
    assert way["loss"][way["t"].index(0.0)] == pytest.approx(entry["loss"], rel=1e-12)
    barrier = way["barrier"]
    assert barrier["end"] == pytest.approx(other)
    assert barrier["height"] >= max(
        loss - (1 - t) * barrier["start"] - t * barrier["end"]
        for t, loss in zip(way["t"], way["loss"], strict=True)
        if 0 <= t <= 1
    )
    text = landscape_text(load_result("here"))
    assert "barrier ± s.e." in text
    assert text.splitlines()[:8] == call(line)[1].splitlines()[:8]
    words = command_line(load_result("here"))
    assert words[words.index("--checkpoint") + 1] == "a-2.pt"
    assert words.count("--checkpoint") == 1
    assert call("plot here --out drawn.png")[0] == 0


def test_files_with_commas(record):
    found = record(f"{LINE} --checkpoint a-2.pt --along checkpoint:b,c.pt,1 --along gradient,checkpoint:b,c.pt")
    planes = [plane["along"] for plane in found["results"][0]["planes"]]
    assert planes == [["checkpoint:b,c.pt", "1"], ["gradient", "checkpoint:b,c.pt"]]
    assert [plane["orthogonal"] for plane in found["results"][0]["planes"]] == [True, True]


@pytest.mark.usefixtures("undrawn")
def test_several_checkpoints(record):
    """Each has the numbers that it has alone; one record, one figure, one table."""
    options = "--along 1 --along checkpoint:b,c.pt --along update"
    line = f"{LINE} --checkpoint a-2.pt --checkpoint a-10.pt {options} --curvature hessian --curvature ggn"
    found = record(f"{line} --out both")
    assert [(e["checkpoint"], e["curvature"]) for e in found["results"]] == [
        ("a-2.pt", "hessian"),
        ("a-2.pt", "ggn"),
        ("a-10.pt", "hessian"),
        ("a-10.pt", "ggn"),
    ]
    alone = record(f"{LINE} --checkpoint a-10.pt {options} --curvature hessian --curvature ggn")
    for one, other in zip(found["results"][2:], alone["results"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
        for first, second in zip(one["lines"], other["lines"], strict=True):
            assert first["t"] == pytest.approx(second["t"], rel=1e-5)
            assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
        assert "checkpoint" not in other
    assert found["problem"]["options"]["checkpoint"] == ["a-2.pt", "a-10.pt"]
    assert found["problem"]["checkpoint"] == "a-2.pt"
    with np.load("both/landscape.npz") as arrays:
        assert arrays["loss_ggn_a-10.pt_1"].tolist() == found["results"][3]["lines"][0]["loss"]
    rows = list(load_result("both/landscape.json").rows())
    assert {row["checkpoint"] for row in rows} == {"a-2.pt", "a-10.pt"}
    assert marks_told_apart(landscape_figures(Record.of(found))["landscape"])
    text = landscape_text(Record.of(found))
    assert max(map(len, text.splitlines())) <= 80
    assert "a-10: loss" in text
    assert text.startswith("a-2.pt (and 1 other below) on points.npz")
    assert command_line(load_result("both")).count("--checkpoint") == 2
    figure = landscape_figures(Record.of(found))["landscape"]
    labels = [text.get_text() for legend in figure.subfigs[0].legends for text in legend.get_texts()]
    assert labels[:2] == ["a-2", "a-10"]
    assert plain(record("landscape --trust --config both/landscape.json")) == plain(found)
    other = record("inspect --trust --config both/landscape.json")  # another command takes the first
    assert other["problem"]["checkpoint"] == "a-2.pt"


@pytest.mark.usefixtures("undrawn")
def test_a_trajectory(record):
    """Names are in natural order, and each point's loss is that of its own checkpoint."""
    line = f"{LINE} --checkpoint 'b,c.pt' --along 'path:a-*.pt' --out here"
    (plane,) = record(line)["results"][0]["planes"]
    assert [mark["name"] for mark in plane["marks"]] == ["a-2", "a-10"]
    assert [mark["step"] for mark in plane["marks"]] == [2, 10]
    assert plane["trajectory"]["counts"] == "training step"
    assert sum(plane["trajectory"]["shares"]) == pytest.approx(1)
    for mark, name in zip(plane["marks"], ("a-2.pt", "a-10.pt"), strict=True):
        own = record(f"{LINE} --checkpoint {name} --along random")["problem"]["loss_value"]
        assert mark["loss"] == pytest.approx(own, rel=1e-12)
        assert mark["loss_in_plane"] == pytest.approx(own, rel=1e-6)  # two points and this one span the plane
        assert mark["distance"] < 1e-6
    assert "100 % of the squared distances" in landscape_text(load_result("here"))
    axes = landscape_figures(load_result("here"))["landscape-plane"].axes[0]
    through = [[mark["x"], mark["y"]] for mark in plane["marks"]]
    assert through in [line.get_xydata().tolist() for line in axes.lines]
    assert [text.get_text() for text in axes.texts] == ["a-2", "a-10"]
    assert axes.get_xlabel().startswith("PC 1 (")


def test_the_figure_of_a_barrier(record):
    """The chord above, and the loss above it below, with a diamond at the barrier; other checkpoints open."""
    found = record(f"{LINE} --checkpoint a-2.pt --along checkpoint:b,c.pt")
    (way,), barrier = found["results"][0]["lines"], found["results"][0]["lines"][0]["barrier"]
    barrier |= {"t": 0.4, "height": 0.25, "present": True}  # between such networks there is none
    above, below = landscape_figures(Record.of(found))["landscape"].axes[:2]
    drawn = [line.get_xydata().tolist() for line in above.lines]
    assert [[0, barrier["start"]], [1, barrier["end"]]] in drawn
    assert [[1, barrier["end"]]] in [[[x, pytest.approx(y)]] for line in drawn for x, y in line[:1] if len(line) == 1]
    rise = [
        [t, loss - (1 - t) * barrier["start"] - t * barrier["end"]]
        for t, loss in zip(way["t"], way["loss"], strict=True)
    ]
    rise = [[t, pytest.approx(value, abs=1e-12)] for t, value in rise if 0 <= t <= 1]
    assert rise == below.lines[1].get_xydata().tolist()
    assert [[barrier["t"], barrier["height"]]] in [line.get_xydata().tolist() for line in below.lines]


def test_tables_fit_the_page(call):
    along = "--along checkpoint:a-10.pt --along 'path:a-*.pt' --along update --along gradient,1 --along momentum"
    _, out, _ = call(f"{LINE} --checkpoint b,c.pt {along}")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--along checkpoint:", ["--along", "'checkpoint:'"]),
        ("--along checkpoint:none.pt", ["--along checkpoint:none.pt: no such file"]),
        ("--along checkpoint:a-2.pt", ["--along checkpoint:a-2.pt: has the same parameters as this"]),
        ("--along checkpoint:points.npz", ["--along checkpoint:points.npz: "]),
        ("--along checkpoint:a-10.pt,checkpoint:a-10.pt", ["--along", "one direction twice"]),
        ("--along 'path:none/*.pt'", ["--along path:none/*.pt: matches no checkpoint"]),
        ("--along 'path:b*.pt'", ["--along path:b*.pt: matches only b,c.pt, but a plane needs two"]),
        ("--along 'path:a-*.pt'", ["--along path:a-*.pt: its 2 checkpoints and this one lie on one line"]),
        ("--along 1,path:a-*.pt", ["--along 1,path:a-*.pt: a trajectory is a plane of its own"]),
        ("--along update --optimizer none.pt", ["none.pt", "no such file"]),
        ("--along update --optimizer points.npz", ["points.npz"]),
        ("--along update --optimizer 'a-2.pt?nam=Adam'", ["--optimizer a-2.pt?nam=Adam: it has no option nam"]),
        ("--checkpoint none.pt", ["--checkpoint none.pt", "no such file"]),
    ],
)
def test_what_is_refused(options, fragments, call):
    status, out, err = call(f"{LINE} --checkpoint a-2.pt --out here {options}")
    assert (status, out) == (2, "")
    assert err.startswith("spectra: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
    assert not list(Path().glob("here/landscape*"))


def test_an_update_needs_a_state(call):
    status, _, err = call(f"{LINE} --along update")
    assert (status, err.count("\n")) == (2, 1)
    assert "--optimizer: update needs the optimizer's state; name its file, or a --checkpoint" in err


@pytest.mark.sampled(1)
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_it_goes_on_where_it_was_cut_off(part, monkeypatch, capfd):
    """Cut off on the way to a checkpoint, in a trajectory, or at the second checkpoint: the same numbers."""
    along = "--along checkpoint:b,c.pt --along 'path:*.pt' --along update,1"
    line = shlex.split(f"{LINE} --checkpoint a-2.pt --checkpoint a-10.pt {along}")
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
    monkeypatch.setattr(displacement, "total_loss", counting(displacement.total_loss))
    assert run([*line, "--out", "whole"]) == 0
    whole_calls, last = calls, int(part * calls)
    calls = 0
    assert run([*line, "--out", "cut"]) == 130
    last, done, calls = math.inf, calls, 0
    held = Path("b,c.pt").read_bytes()
    Path("b,c.pt").write_bytes(Path("a-10.pt").read_bytes())
    capfd.readouterr()
    assert run([*line, "--out", "cut"]) == 2
    assert "sha256 of b,c.pt was" in capfd.readouterr().err
    Path("b,c.pt").write_bytes(held)
    assert run([*line, "--out", "cut"]) == 0
    found, whole = (plain(json.loads(Path(name, "landscape.json").read_text())) for name in ("cut", "whole"))
    assert found == whole
    assert calls <= whole_calls - done + 20


def test_the_call_has_the_numbers_of_the_command(record):
    """spectra.landscape gives what the command prints, from a name and from a module with its optimizer."""
    along = ["1", "gradient,1", "checkpoint:b,c.pt", "update"]
    line = f"{LINE} --checkpoint a-2.pt --checkpoint a-10.pt {' '.join(f'--along {names}' for names in along)}"
    found = record(line)
    problem = {"data": "points.npz", "loss": "cross_entropy", "dtype": "float64"}
    made = spectra.landscape("nets.py:mlp", checkpoint="a-2.pt", others="a-10.pt", along=along, points=7, **problem)
    made = json.loads(made.to_json())
    assert made["figures"] == []
    assert plain(made)["results"] == plain(found)["results"]
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters())
    held = torch.load("a-2.pt")
    model.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = (model, "cross_entropy", "points.npz")
    own = spectra.landscape(*given, along="update", points=7, optimizer=optimizer, out="own")
    assert own.results[0].lines[0].loss.tolist() == pytest.approx(found["results"][0]["lines"][2]["loss"], rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert own.figures == ["own/landscape.png"]
    assert Path("own/landscape.png").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"along": "x"}, "^`along` 'x' is neither one direction nor two"),
        ({"along": ["1", "1,1"]}, "^`along` '1,1' names one direction twice"),
        ({"points": 4}, "^`points` 4: is even"),
        ({"radius": 0}, "^`radius` 0"),
        ({"others": "none.pt"}, "^`checkpoint` none.pt: no such file"),
        ({"along": "update"}, "^`optimizer`: update needs the optimizer's state"),
        (
            {"along": "update", "model": nn.Sequential(nn.Linear(4, 3))},
            "^`optimizer`: update needs the optimizer's state",
        ),
        ({"along": 1}, "^`along` 1: expected the name of a direction"),
        ({"along": [1]}, r"^`along` \[1\]: expected the name of a direction"),
    ],
)
def test_what_the_call_refuses(options, told):
    with pytest.raises(spectra.SpectraError, match=told):
        spectra.landscape(
            **{"model": "nets.py:mlp", "loss": "cross_entropy", "data": "points.npz", "points": 3, **options}
        )


def marks_told_apart(figure) -> bool:
    """Whether every panel marks the lines of each checkpoint by a shape of its own, the one in the legend."""
    legend = figure.subfigs[0].legends[0]
    shown = {text.get_text(): handle for text, handle in zip(legend.texts, legend.legend_handles, strict=True)}
    shapes = [shown[name].get_marker() for name in ("a-2", "a-10")]
    panels = [{line.get_marker() for line in axes.lines} for axes in figure.subfigs[0].axes]
    return len(set(shapes)) == 2 and all({*shapes} <= panel for panel in panels[::2])
