"""One file that is not as it should be stops no sweep: it is left out, or made anew, and that is told."""

import json
import os
from hashlib import sha256

import pytest
from sweeps import TASKS, calls, change, make_home, states

from spectra.cli import run
from spectra.cli.plan_options import checked_plan
from spectra.sweeps.evolution import collect as collected


@pytest.fixture
def home(tmp_path, monkeypatch):
    return make_home(tmp_path, monkeypatch)


@pytest.fixture
def sweep(home, capfd):
    def sweep(action: str, *options: str):
        capfd.readouterr()
        return run(["sweep", action, "../home/plan.toml", *options]), *capfd.readouterr()

    return sweep


def test_a_name_that_is_no_text_is_left_out(home, sweep):
    strange = os.fsencode(home / "checkpoints/step-3") + b"\xff\xfe.pt"
    with open(strange, "w") as file:
        file.write("weights")
    status, out, err = sweep("run")
    assert status == 0, err
    assert r"step-3\udcff\udcfe.pt is left out, since its name is not valid UTF-8; rename it" in err
    assert "4 tasks: 4 finished" in out
    for action in ("status", "collect"):
        _, _, err = sweep(action)
        assert "is left out" in err


EDITED = {
    "problem.options is a list": lambda record: record["problem"].update(options=[1]),
    "results hold a number": lambda record: record.update(results=[3]),
    "times are texts": lambda record: record["results"][0].update(seconds="long"),
    "converged is a text": lambda record: record["results"][0].update(converged="yes"),
    "no result": lambda record: record.clear(),
}


@pytest.mark.parametrize("kind", EDITED)
def test_an_edited_result_is_told_and_made_anew(kind, home, sweep):
    assert sweep("run")[0] == 0
    calls(home)
    file = home / "plan/step-2/ggn/eig.json"
    record = json.loads(file.read_text())
    EDITED[kind](record)
    file.write_text(json.dumps(record))
    status, out, _ = sweep("status")
    assert status == 0
    assert "3 finished, 1 waiting" in out
    assert "step-2/ggn waiting: RESULT" in out
    assert sweep("run")[0] == 0
    assert calls(home) == ["eig step-2/ggn"]
    assert states(home) == ["finished"] * len(TASKS)


ROWS = {
    "a text for an eigenvalue": lambda record: record["results"][0].update(eigenvalues=["x"] * 2),
    "a number of 400 digits": lambda record: record["results"][0].update(eigenvalues=[10**400] * 2),
    "a list for the curvature": lambda record: record["results"][0].update(curvature=["hessian"]),
    "a text for the loss": lambda record: record["problem"].update(loss_value="low"),
    "a text for the seed": lambda record: record["problem"].update(seed="one"),
    "shapes that are none": lambda record: record["problem"].update(shapes={"weight": 3, "bias": ["x"]}),
    "no products": lambda record: record["results"][0].pop("products"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_collect_leaves_out_what_it_cannot_read(kind, home):
    change(home, "[trace]\nrtol = 0.1\n", "")
    plan = checked_plan(home / "plan.toml")
    for task in plan.tasks:
        entry = {"curvature": task.curvature, "eigenvalues": [2.0, 1.0], "residuals": [0.1, 0.1], "products": 9}
        problem = {"options": dict(task.recorded["eig"]), "seed": 0, "loss_value": 1.0, "accuracy": None}
        problem |= {"shapes": {"weight": [2]}, "checkpoint_sha256": sha256(task.checkpoint.read_bytes()).hexdigest()}
        record = {"schema": 1, "command": "eig", "problem": problem, "results": [entry | {"converged": True}]}
        if task.name == "step-2/ggn":
            ROWS[kind](record)
        task.directory.mkdir(parents=True)
        (task.directory / "eig.json").write_text(json.dumps(record))
    evolution = collected(plan)
    assert any(row.curvature == "hessian" and row.quantity == "eigenvalue" for row in evolution.rows)
    assert evolution.notes
    assert all(isinstance(row.seed, int | None) for row in evolution.rows)


def test_a_command_line_that_is_too_long(home, sweep):
    """TOML of at most 256 KiB makes none that is too long as a whole, but one word of it may be."""
    change(home, 'data = "digits"', f'data = "{"x" * 200_000}"')
    status, out, err = sweep("run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "PLAN ../home/plan.toml: [eig] its options make a command line of" in err
    assert "--data; shorten that" in err


def test_a_damaged_list_of_jobs_is_told(home, sweep):
    (home / "plan/.sweep").mkdir(parents=True)
    for content in ("[" * 100_000, '{"a": 3}', "\0"):
        (home / "plan/.sweep/jobs.json").write_text(content)
        status, out, err = sweep("status")
        assert (status, err.count("\n")) == (0, 1)
        assert "jobs.json" in err
        assert "4 tasks" in out
