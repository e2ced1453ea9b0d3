"""The sections of `spectra step` on noise and on balls: the library's numbers, in JSON and in the table."""

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
from spectra.plots.noise import scales_of
from spectra.plots.step import step_figures
from spectra.records.record import Record
from spectra.tables.step import step_text
from spectra.wording import rounded

NETS = """
from torch import nn
from torch.nn.functional import cross_entropy

def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def batch_mean(model, batch):
    x, y = batch
    return cross_entropy(model(x), y)
"""
LINE = "step --model nets.py:mlp --data points.npz --dtype float64 -k 0 --curvature hessian"


@pytest.fixture(autouse=True)
def points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(90, 4)), draw.integers(3, size=90)
    np.savez("points.npz", x=x, y=y)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.fixture
def call(capfd):
    def call(line: str):
        capfd.readouterr()
        status = run(shlex.split(line))
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def record(call):
    def record(line: str, status: int = 0) -> Record:
        found, out, _ = call(f"{line} --json")
        assert found == status
        return Record.of(json.loads(out))

    return record


def problem(points, loss: str = "cross_entropy"):
    data = list(zip(*(part.split(90) for part in points), strict=True))
    return spectra.load_problem(model="nets.py:mlp", loss=loss, data=data, dtype="float64").problem


def test_numbers_are_the_librarys(record, points):
    found = record(f"{LINE} --curvature ggn --ascent-steps 3 --rho 0.2")
    library = spectra.noise_scale(problem(points))
    noise = found.point.noise
    assert (noise.examples, noise.unit, noise.population, noise.note) == (90, "example", False, None)
    assert noise.simple.noise == pytest.approx(library.simple.ratio.numerator, rel=1e-9)
    assert noise.simple.signal == pytest.approx(library.simple.ratio.denominator, rel=1e-9)
    full = found.results[0].full_noise
    error = library.full.ratio.errors[0]
    assert abs(full.noise - library.full.ratio.numerator) < 5 * error
    assert full.measured == pytest.approx(library.full.signal, rel=1e-9)
    for worst, ball, adaptive in zip(found.point.worst, found.results[1].balls, (False, True), strict=True):
        rho = 0.5 if adaptive else 0.2
        own = spectra.worst_case(problem(points), rho, adaptive=adaptive, steps=3, name="ggn")
        assert (worst.rho, worst.adaptive, ball.rho, ball.adaptive) == (rho, adaptive) * 2
        assert worst.rises == pytest.approx(own.rises, rel=1e-9)
        assert ball.value == pytest.approx(own.model.value, rel=1e-9)
    text = step_text(found)
    assert "Noise scale in examples, from 90 examples treated as a sample" in text
    assert "0.5 adaptive" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(scales_of(noise, found.results)) >= 1
    assert step_figures(found)["step"].axes[1].get_xlabel() == "batch size (examples)"


def test_products_of_noise_are_counted(record, points):
    """On 90 examples 32 products with the matrix over examples, each of two, and what else there is."""
    plain = record(f"{LINE} --no-noise --ascent-steps 0").results[0]
    found = record(f"{LINE} --ascent-steps 0 --population").results[0]
    assert found.products - plain.products == 2 * 32 + 1
    balls = record(f"{LINE} --no-noise").results[0]
    assert balls.products - plain.products == sum(ball.products for ball in balls.balls) > 0


def test_sections_that_are_left_out(record):
    found = record(f"{LINE} --no-noise --ascent-steps 0")
    assert (found.point.noise, found.point.without_noise, found.point.worst) == (None, None, [])
    assert (found.results[0].full_noise, found.results[0].without_full, found.results[0].balls) == (None, None, [])
    assert "oise" not in step_text(found)
    assert "ball" not in step_text(found)


def test_a_matrix_of_gradients_is_no_model_of_the_loss(record, points):
    found = record(f"{LINE} --curvature fisher-empirical --ascent-steps 1")
    hessian, of_gradients = found.results
    assert [len(entry.balls) for entry in found.results] == [2, 0]
    assert (hessian.full_noise is None, of_gradients.full_noise) == (False, None)
    with pytest.raises(spectra.SpectraError, match="`name` fisher-empirical: is not a second derivative of the loss"):
        spectra.worst_case(problem(points), name="fisher-empirical")


def test_a_loss_of_whole_batches_has_no_noise(record):
    found = record(f"{LINE} --loss nets.py:batch_mean --batch-size 90")
    assert found.point.noise is None
    assert "gradients of their own" in found.point.without_noise
    assert "noise scale left out: " in step_text(found)
    assert found.point.worst[0].rises[0] > 0


def test_a_budget_leaves_out_what_does_not_fit(record):
    found = record(f"{LINE} --max-products 12 --ascent-steps 2")
    (entry,) = found.results
    assert entry.full_noise is None
    assert "`max_products` leaves no room" in entry.without_full
    assert entry.products <= 12
    assert all(ball.products >= 1 for ball in entry.balls)
    assert found.point.noise.simple.lower > 0


def test_what_is_not_resolved_is_null(record, points, tmp_path):
    """After training to the end on few examples there is no noise scale, and the table says why."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(points[0]), points[1])
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    torch.save(model.state_dict(), tmp_path / "last.pt")
    found = record(f"{LINE} --checkpoint last.pt --ascent-steps 0")
    simple = found.point.noise.simple
    assert simple.value is None
    assert simple.standard_error is None
    assert simple.reason == "not resolved: with these examples |g|^2 cannot be distinguished from zero"
    assert (simple.lower > 100, simple.upper) == (True, None)
    assert simple.measured > 0 > simple.signal
    assert "simple: not resolved" in step_text(found)
    assert f"at least {rounded(simple.lower)}" in step_text(found)
    everything = record(f"{LINE} --checkpoint last.pt --ascent-steps 0 --population").point.noise
    assert everything.population
    assert everything.simple.value > 1e4
    assert everything.simple.standard_error == 0


def test_a_run_that_is_cut_off_goes_on(monkeypatch, capfd):
    """With the products that were made, and with the same numbers."""
    calls, last, multiply = 0, math.inf, Curvature.__matmul__

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls > last:
            raise KeyboardInterrupt
        return multiply(*arguments)

    monkeypatch.setattr(Curvature, "__matmul__", counted)
    monkeypatch.setattr(sys.modules["spectra.cli.step"], "drawn", lambda _, record, __: record.changed(figures=[]))
    line = [*shlex.split(LINE), "--save-every", "1e-9", "--out"]
    assert run([*line, "whole"]) == 0
    whole, last, calls = calls, int(0.7 * calls), 0
    assert run([*line, "cut"]) == 130
    last, done, calls = math.inf, calls, 0
    assert run([*line, "cut"]) == 0
    assert calls <= whole - done + 5
    capfd.readouterr()
    first, again = (json.loads(Path(name, "step.json").read_text()) for name in ("whole", "cut"))
    for part in ("full_noise", "balls", "products"):
        assert again["results"][0][part] == first["results"][0][part]
    assert again["point"] == first["point"]


@pytest.mark.parametrize("options", ["--rho 0", "--adaptive-rho -1", "--ascent-steps -1"])
def test_refusals(call, options):
    status, out, err = call(f"{LINE} {options}")
    assert (status, out) == (2, "")
    assert options.split()[0] in err


def test_in_python(points):
    found = spectra.step(problem(points), curvature="hessian", k=0, noise=False, rho=0.1, ascent_steps=1)
    assert found.point.noise is None
    assert [worst.rho for worst in found.point.worst] == [0.1, 0.5]
    assert len(found.point.worst[0].rises) == 1
    with pytest.raises(spectra.SpectraError, match="`noise` 3: expected True or False"):
        spectra.step(problem(points), curvature="hessian", k=0, noise=3)
