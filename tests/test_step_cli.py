"""spectra step as it is called: what it prints, writes, refuses and takes from earlier runs."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spectra
from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.plots.step import step_figures
from spectra.records.record import Record
from spectra.tables.step import share_cell, step_text
from spectra.wording import brief

NETS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
"""
OWN = """
from torch.nn.functional import cross_entropy

def loss(model, batch):
    x, y = batch
    return cross_entropy(model(x), y, reduction="none")
"""
LINE = (
    "step --model nets.py:mlp --checkpoint last.pt --data points.npz --dtype float64 -k 2 --no-noise --ascent-steps 0"
)
N = 43


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 4)).astype("float32"), draw.integers(3, size=40)
    np.savez("points.npz", x=x, y=y)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(6):
        if step == 4:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
            torch.save(model.state_dict(), "weights.pt")
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    torch.save(model.state_dict(), "later.pt")
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
    def record(line: str) -> Record:
        status, out, _ = call(f"{line} --json")
        assert status == 0
        return Record.of(json.loads(out))

    return record


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time of a command on a small network."""
    monkeypatch.setattr(sys.modules["spectra.cli.step"], "drawn", lambda _, record, __: record.changed(figures=[]))


def test_all_directions_with_files(call, record, folder):
    status, out, _ = call(f"{LINE} --to later.pt --out run")
    assert status == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert {path.name for path in (folder / "run").iterdir()} == {"step.json", "step.png"}
    found = spectra.load_result("run")
    assert [d.name for d in found.point.directions] == ["gradient", "update", "momentum", "checkpoint"]
    assert [entry.curvature for entry in found.results] == ["hessian", "ggn"]
    assert found.point.left_out == []
    assert step_text(found).splitlines()[0] == out.splitlines()[0]
    for d, along in zip(found.point.directions, found.results[0].along, strict=True):
        assert along.sharpness == pytest.approx(along.curvature / d.norm**2)
        assert along.within + along.between == pytest.approx(along.curvature)
        assert along.share_lower[-1] <= along.share[-1] <= along.share_upper[-1]
        assert len(d.t) == len(d.loss) >= 25
        assert d.loss[0] == pytest.approx(found.point.loss)
        if along.best_step is not None:
            assert along.best_step == pytest.approx(-d.slope / along.curvature)
    update = found.point.directions[1]
    assert update.loss_at_one == pytest.approx(evaluated("later.pt", one_step=True), rel=1e-5)


def evaluated(path: str, one_step: bool = False) -> float:
    """The loss one step of AdamW behind last.pt, or that of a file."""
    model, held = network(), np.load("points.npz")
    x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["y"])
    saved = torch.load("last.pt") if one_step else {"model": torch.load(path)}
    model.load_state_dict(saved["model"])
    if one_step:
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.load_state_dict(saved["optimizer"])
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return nn.functional.cross_entropy(model(x), y).item()


def test_the_way_leads_to_the_other_checkpoint(record):
    found = record(f"{LINE} --to later.pt -k 0 --curvature hessian")
    (way,) = [d for d in found.point.directions if d.kind == "checkpoint"]
    assert way.loss_at_one == pytest.approx(evaluated("later.pt"), rel=1e-6)
    several = record(f"{LINE} --to later.pt --to later.pt -k 0 --curvature hessian").point.directions
    assert [d.name for d in several[-2:]] == ["checkpoint 1", "checkpoint 2"]


def test_a_run_repeats_itself_bit_for_bit(record):
    first, again = record(f"{LINE} --curvature ggn --seed 3"), record(f"{LINE} --curvature ggn --seed 3")
    for one, other in zip(first.results, again.results, strict=True):
        clocks = {"seconds": 0.0, "setup_seconds": 0.0}
        assert one.changed(**clocks).to_dict() == other.changed(**clocks).to_dict()
    assert first.point.to_dict() == again.point.to_dict()


def test_without_an_optimizer_the_gradient_is_left(record, call):
    found = record(LINE.replace("last.pt", "weights.pt"))
    assert [d.name for d in found.point.directions] == ["gradient"]
    (reason,) = found.point.left_out
    assert reason.startswith("update and momentum: weights.pt holds no optimizer state")
    status, _, err = call(LINE.replace("last.pt", "weights.pt") + " --optimizer weights.pt")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("spectra: --optimizer: weights.pt holds no optimizer state")
    found = record(LINE.replace("last.pt", "weights.pt") + " --optimizer 'last.pt?name=AdamW'")
    assert [d.name for d in found.point.directions] == ["gradient", "update", "momentum"]


def test_an_optimizer_that_is_not_read(record, call):
    """One reason for all that it leaves out; an error where its file is named, which it begins with."""
    model = network()
    torch.save({"model": model.state_dict(), "optimizer": torch.optim.ASGD(model.parameters()).state_dict()}, "asgd.pt")
    (reason,) = record(LINE.replace("last.pt", "asgd.pt") + " -k 0").point.left_out
    assert reason.startswith("update and momentum: its state is that of ASGD; supported are")
    status, _, err = call(f"{LINE} --optimizer asgd.pt")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("spectra: --optimizer asgd.pt: its state is that of ASGD")


@pytest.mark.usefixtures("undrawn")
def test_eigenvectors_of_an_earlier_run(record, call):
    assert (
        call(f"eig{LINE.removeprefix('step').partition(' --no-noise')[0]} --tol 1e-6 --out run")[0] == 0
    )  # two of them
    own, taken = record(f"{LINE} --curvature hessian --tol 1e-6"), record(f"{LINE} --curvature hessian --out run")
    (own,), (taken,) = own.results, taken.results
    assert (own.source, taken.source) == ("computed", "run/eig.json")
    for one, other in zip(own.along, taken.along, strict=True):
        np.testing.assert_allclose(other.share, one.share, atol=1e-6)
        assert ((other.share_lower <= one.share_upper) & (one.share_lower <= other.share_upper)).all()
        assert (other.share_upper - other.share_lower).max() < 1e-2  # one more was looked for, so the gap is known
    assert taken.eigenvalues[2] == pytest.approx(own.eigenvalues[2], rel=1e-2)


def test_a_budget_of_products(call):
    for limit in (1, 20):
        status, out, err = call(f"{LINE} --max-products {limit} --json")
        found = Record.of(json.loads(out))
        assert status == 1
        assert "not converged" in err
        assert all(entry.products <= limit for entry in found.results)
        assert len(found.point.directions) == 3


def test_products_are_all_counted(record):
    """Each vector of the matrix counts one, a product of the diagonal blocks as many as there are layers."""
    (entry,) = record(f"{LINE} -k 0 --curvature hessian").results
    assert entry.products == 3 + 3 * (1 + 2)  # three checks, and three directions of a matrix of two layers


def test_a_loss_without_a_ggn(record):
    Path("own.py").write_text(OWN)
    found = record(f"{LINE} --loss own.py:loss -k 0")
    assert [entry.curvature for entry in found.results] == ["hessian"]
    assert any(note.startswith("ggn is left out") for note in found.problem.notes)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--to nothing.pt", "--to nothing.pt"),
        ("--to last.pt", "--to last.pt"),
        ("--optimizer nothing.pt", "--optimizer nothing.pt"),
        ("--optimizer last.pt?beta=1", "--optimizer last.pt"),
        ("--optimizer last.pt?name=SGD", "--optimizer"),
        ("-k 44", "-k"),
        ("--weight-decay 0.1 --optimizer last.pt", "--weight-decay 0.1"),
    ],
)
def test_refusals(options, named, call):
    status, out, err = call(f"{LINE} {options} --out new")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"spectra: {named}")


def test_no_number_is_broken(call, folder):
    """Whatever long names and many matrices there are: tables that are too wide are divided, and no cell is."""
    long = [f"the-network-that-was-trained-last-time-{i}.pt" for i in (1, 2)]
    for name in long:
        (folder / name).write_bytes((folder / "later.pt").read_bytes())
    matrices = ("hessian", "fisher-empirical", "gradient-covariance")
    line = LINE.replace("--ascent-steps 0", "--ascent-steps 2 --rho 1.23456e-5")
    options = " ".join([*(f"--to {name}" for name in long), *(f"--curvature {name}" for name in matrices)])
    status, out, _ = call(f"{line} {options} --out run")
    assert status == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    found, words = spectra.load_result("run"), " ".join(out.split())
    for d in found.point.directions:
        assert brief(d.slope, d.slope_error) in words
    for entry in found.results:
        for one in entry.along:
            assert brief(one.sharpness, one.sharpness_error) in words
            assert share_cell(one) in words
            assert share_cell(one.changed(share_lower=np.zeros(2), share_upper=np.ones(2))) == "-"
        for ball in entry.balls:
            assert brief(ball.value, ball.error) in out
    assert all(f" {name} " in f"{words} " for name in matrices)


def test_legends_cover_no_panel(record):
    """Not their own, whose curves may be anywhere, and no other one."""
    found = record(f"{LINE} --noise --to later.pt --to later.pt")
    figure = step_figures(found)["step"]
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.axison]
    legends = [axes.get_legend().get_window_extent() for axes in panels if axes.get_legend()]
    assert len(legends) == 2
    for legend in legends:
        assert not any(legend.overlaps(axes.get_window_extent()) for axes in panels)
        assert not any(legend.overlaps(axes.xaxis.get_tightbbox()) for axes in panels)
        assert all(figure.bbox.contains(*corner) for corner in ((legend.x0, legend.y0), (legend.x1, legend.y1)))


def test_figures_of_what_was_found(record):
    found = record(f"{LINE} --noise --to later.pt")
    figure = step_figures(found)["step"]
    assert sum(axes.axison for axes in figure.axes) == 6
    shares = figure.axes[4]
    assert [line.get_label() for line in shares.lines][-1] == "random direction: j/n"
    np.testing.assert_allclose(shares.lines[-1].get_ydata(), np.array([1, 2]) / N)
    assert step_figures(record(f"{LINE} -k 0 --curvature hessian"))["step"].axes
    assert step_figures(found.changed(point=None)) == {}


def test_in_python():
    """A live optimizer of a model that is copied, since its dtype changes; both are left as they were."""
    model, held = network(), np.load("points.npz")
    data = torch.from_numpy(held["x"]), torch.from_numpy(held["y"])
    saved = torch.load("last.pt")
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(saved["optimizer"])
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.train()
    loss, alone = nn.CrossEntropyLoss(), {"noise": False, "ascent_steps": 0}
    found = spectra.step(
        model, loss, data, optimizer=optimizer, to=["later.pt"], k=2, dtype="float64", out="py", **alone
    )
    assert model.training
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert str(optimizer.state_dict()["state"]) == str(saved["optimizer"]["state"])
    assert [d.name for d in found.point.directions] == ["gradient", "update", "momentum", "checkpoint"]
    assert len(found.to_dataframe()) == 8
    assert spectra.load_result("py").figures == ["py/step.png"]
    by_name = spectra.step(
        "nets.py:mlp", "cross_entropy", "points.npz", checkpoint="last.pt", to="later.pt", k=2, dtype="float64", **alone
    )
    for one, other in zip(found.point.directions, by_name.point.directions, strict=True):
        assert one.slope == pytest.approx(other.slope, rel=1e-6)
        assert one.critical.step == pytest.approx(other.critical.step, rel=1e-4)
    assert spectra.step(model, loss, data, k=0, **alone).point.left_out == [
        "update and momentum: no optimizer state is given"
    ]
    for wrong, text in (({"k": -1}, "`k`"), ({"wrt": "inputs"}, "`wrt` inputs"), ({"curvature": "ntk"}, "`curvature`")):
        with pytest.raises(spectra.SpectraError, match=text):
            spectra.step(model, loss, data, **wrong)
    with pytest.raises(spectra.SpectraError, match="takes a network, not a matrix"):
        spectra.step(torch.eye(3))
    with pytest.raises(TypeError, match="unexpected keyword argument 'gird'"):
        spectra.step(model, loss, data, gird=1)


def test_a_matrix_that_is_no_curvature_of_the_loss_gives_no_step(record):
    found = record(f"{LINE} -k 0 --curvature gradient-covariance --curvature fisher")
    other, fisher = found.results
    assert (other.of_the_loss, fisher.of_the_loss) == (False, True)
    assert all(one.best_step is None and one.sharpness >= 0 for one in other.along)
    assert all(one.best_step > 0 for one in fisher.along[:1])
    assert len(step_figures(found)["step"].axes[0].lines) > len(
        step_figures(found.changed(results=[other]))["step"].axes[0].lines
    )


@pytest.mark.sampled(1)
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_a_run_that_is_cut_off_goes_on(part, monkeypatch, capfd):
    calls, last, multiply = 0, math.inf, Curvature.__matmul__

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls > last:
            raise KeyboardInterrupt
        return multiply(*arguments)

    monkeypatch.setattr(Curvature, "__matmul__", counted)
    line = [*shlex.split(LINE), "--save-every", "1e-9", "--out"]
    assert run([*line, "whole"]) == 0
    whole, last, calls = calls, int(part * calls), 0
    assert run([*line, "cut"]) == 130
    assert "step.state holds the work so far" in capfd.readouterr().err
    last, done, calls = math.inf, calls, 0
    assert run([*line, "cut"]) == 0
    assert calls <= whole - done + 10
    first, again = (json.loads(Path(name, "step.json").read_text()) for name in ("whole", "cut"))
    for entry in (*first["results"], *again["results"]):
        del entry["seconds"], entry["setup_seconds"]
    assert again["results"] == first["results"]
    assert again["point"] == first["point"]
    assert not Path("cut/step.state").exists()
