"""What a command says before it works: what is refused, in what order; its heading; and what memory it lacked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.cli import run
from spectra.curvature.operator import Curvature

OWN = """
import torch
from pathlib import Path
from torch import nn

full = None  # where memory runs out

def lacking(place):
    if full == place:
        torch.empty(2**60, dtype=torch.uint8)
    if full == f"{place}, Python":
        raise MemoryError

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        lacking("model")
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    def forward(self, x):
        lacking("forward")
        return self.layers(x)

def data():
    Path("read").touch()
    lacking("data")
    draw = torch.Generator().manual_seed(0)
    return torch.randn(40, 4, generator=draw), torch.randint(3, (40,), generator=draw)

def loss(output, target):
    lacking("loss")
    return (output - nn.functional.one_hot(target, 3)).square().sum(1)
"""
PROBLEM = "--model own.py:Net --data own.py:data"
SMALL = "-k 2 --probes 2 --steps 4"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)


@pytest.fixture
def call(capfd):
    def call(line: str):
        capfd.readouterr()
        status = run(shlex.split(line))
        return status, *capfd.readouterr()

    return call


# Refused before work


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("eig -k 44", "-k"),
        ("eig --method dense -k 44", "-k"),
        ("eig --method power --which LA", "--which LA"),
        ("eig --method gram", "--method gram"),
        ("trace --method gram", "--method gram"),
        ("trace --method dense --max-products 20", "--max-products"),
        ("trace --deflate nothing.json", "--deflate nothing.json"),
        ("density --deflate own.py", "--deflate own.py"),
        ("density --weight-decay 0.1 --curvature fisher-empirical", "--weight-decay 0.1"),
        ("landscape --eigenvectors nothing.json", "--eigenvectors nothing.json"),
        ("landscape --along 1,44", "--along 44"),
        ("step -k 44", "-k"),
        ("step --eigenvectors nothing.json", "--eigenvectors nothing.json"),
        ("layers --eigenvectors nothing.json", "--eigenvectors nothing.json"),
        ("eig --curvature fisher --loss own.py:loss", "--curvature fisher"),
        ("compare --curvature ggn --curvature ggn", "--curvature ggn"),
        ("compare --subsample 10,10", "--subsample 10"),
        ("compare -k 44", "-k"),
        ("inspect --params nothing", "--params nothing"),
    ],
)
def test_before_data_are_read_and_nothing_is_left(line, named, call):
    status, out, err = call(f"{line} {PROBLEM} --out new/deeper")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"spectra: {named}")
    assert not Path("read").exists()
    assert not Path("new").exists()


def test_a_matrix_too_large_to_be_held(call, monkeypatch):
    monkeypatch.setattr("spectra.krylov.limits.LARGEST_DENSE", 42)
    for command in ("eig", "trace"):
        status, _, err = call(f"{command} --method dense {PROBLEM}")
        assert status == 2
        assert err.startswith("spectra: --method dense: the matrix has 43 rows")
        assert not Path("read").exists()


def test_a_folder_that_was_there_stays(call):
    Path("old").mkdir()
    assert call(f"eig {PROBLEM} -k 44 --out old")[0] == 2
    assert Path("old").is_dir()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("--held-out nothing.npz", "--held-out nothing.npz"),
        ("--held-out empty.npz", "--held-out empty.npz"),
        ("--subsample 10,50", "--subsample 50"),
    ],
)
def test_compare_before_the_first_product(wrong, named, call, monkeypatch):
    np.savez("empty.npz", x=np.zeros((0, 4)), y=np.zeros(0, dtype=int))
    monkeypatch.setattr(Curvature, "__matmul__", lambda *_: pytest.fail("a product"))
    status, out, err = call(f"compare {PROBLEM} {SMALL} --out new {wrong}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"spectra: {named}")
    assert not Path("new").exists()


def test_what_is_refused_deletes_no_unfinished_run(call, monkeypatch):
    """The data held out are missing when it is to go on."""
    np.savez("others.npz", x=np.ones((9, 4), dtype="float32"), y=np.arange(9) % 3)
    line = f"compare {PROBLEM} {SMALL} --curvature hessian --curvature ggn --held-out others.npz --out new"
    multiply, calls = Curvature.__matmul__, []

    def cut_off(self, vectors):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return multiply(self, vectors)

    monkeypatch.setattr(Curvature, "__matmul__", cut_off)
    assert call(line)[0] == 130
    Path("others.npz").rename("elsewhere.npz")
    before = {path: path.read_bytes() for path in Path("new").rglob("*") if path.is_file()}
    status, _, err = call(line)
    assert status == 2
    assert "--held-out others.npz" in err
    assert {path: path.read_bytes() for path in Path("new").rglob("*") if path.is_file()} == before
    Path("elsewhere.npz").rename("others.npz")
    status, _, err = call(line)
    assert status == 0
    assert "resumes after" in err


def test_compare_takes_the_matrices_that_there_are(call):
    """A loss of one's own has no distribution; who names a matrix that needs one is told."""
    status, out, err = call(f"compare {PROBLEM} {SMALL} --loss own.py:loss --json --out new")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [entry["curvature"] for entry in found["results"]] == ["hessian", "ggn", "fisher-empirical"]
    assert found["problem"]["options"]["curvature"] == ["hessian", "ggn", "fisher-empirical"]
    (note,) = found["problem"]["notes"]
    assert note.startswith("fisher is left out: a custom loss has no known distribution")
    status, out, _ = call(f"compare {PROBLEM} {SMALL} --loss own.py:loss")
    assert status == 0
    assert "fisher is left out" in out
    assert call("compare --config new/compare.json --trust")[0] == 0


# While it works


@pytest.mark.sampled(3)
@pytest.mark.parametrize("command", ["eig -k 2", "inspect", f"compare {SMALL}", "density --probes 2 --steps 5"])
@pytest.mark.parametrize("to", ["terminal", "pipe", "json"])
def test_the_heading_comes_before_the_first_product(command, to, call, capfd, monkeypatch):
    """And on standard error what is being done; the answer as a whole is the same as without."""
    as_json = to == "json"
    line = f"{command} {PROBLEM}{' --json' if as_json else ''}"
    Path("own.py").write_text(OWN.replace('Path("read").touch()', "__import__('time').sleep(0.2)"))  # long to load
    whole, prepare, seen = call(line), Curvature.prepare, []

    def watched(self):
        if not any("setting up" in each.err for each in seen):  # of compare, some come before any work
            time.sleep(0.2)
            seen.append(capfd.readouterr())
        prepare(self)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: to == "terminal")
    for name, value in {"LATE": 0.0, "EVERY": 0.0, "FRAME": 0.01}.items():
        monkeypatch.setattr(f"spectra.cli.progress.{name}", value)
    monkeypatch.setattr(Curvature, "prepare", watched)
    status, rest, _ = call(line)
    out, err = seen[0]
    assert bool(out) == (to == "terminal")
    heading = out or err
    assert "own.py:Net" in heading
    assert "parameters" in heading
    assert "40 examples" in heading
    assert "cross_entropy 1." in heading
    assert "loading: " in err
    assert any("setting up" in each.err for each in seen)
    assert status == whole[0] == 0
    if as_json:
        assert len(json.loads(rest)["results"]) == len(json.loads(whole[1])["results"])
    else:
        assert len((out + rest).splitlines()) == len(whole[1].splitlines())
        assert whole[1].startswith(out)


@pytest.mark.sampled(1)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize(("line", "status"), [("eig -k 2 --max-products 9", 1), ("eig -k 44", 2)])
def test_standard_error_that_takes_nothing_changes_nothing(stderr, line, status):
    words = [sys.executable, "-m", "spectra", *shlex.split(f"{line} {PROBLEM} --json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        f"{shlex.join(words)} {stderr}", shell=True, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == status
    assert bool(done.stdout) == (status == 1)
    assert not done.stdout or json.loads(done.stdout)["results"][0]["products"] == 9


@pytest.mark.parametrize("method", ["xtrace", "hutch++", "hutchinson"])
@pytest.mark.parametrize("limit", [1, 2, 8])
def test_a_trace_of_too_few_products_asks_for_more(method, limit, call):
    status, out, err = call(f"trace {PROBLEM} --method {method} --max-products {limit} --json")
    assert status == 1
    assert "raise --max-products" in err
    assert json.loads(out)["results"][0]["products"] <= limit


# Memory


@pytest.mark.parametrize(
    ("place", "line", "named"),
    [
        ("model", "eig", "--model own.py:Net"),
        ("data", "eig", "--data own.py:data"),
        ("forward", "eig", "--batch-size"),
        ("loss", "trace --loss own.py:loss", "--batch-size"),
    ],
)
@pytest.mark.parametrize("by", ["", ", Python"], ids=["torch", "Python"])
def test_memory_that_runs_out_in_code_of_the_user(place, by, line, named, call):
    Path("own.py").write_text(OWN.replace("full = None", f"full = {place + by!r}"))
    status, out, err = call(f"{line} {PROBLEM} --out new")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"spectra: {named}: out of memory")
    assert not Path("new").exists()


OURS = {
    "eig": ("spectra.krylov.eigensolver.random_start", "-k"),
    "density --probes 2": ("spectra.krylov.quadrature.begin", "--steps"),
    "trace --method xtrace": ("spectra.krylov.xtrace.Sketch", "--method"),
    f"compare {SMALL}": ("spectra.comparison.comparison.common_basis", "-k"),
    "layers": ("spectra.layerwise.run.layers", "-k"),
    "landscape": ("spectra.surfaces.landscape.Grid.axis", "--along"),
    "step": ("spectra.steps.run.curvature_along", "-k"),
}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["torch", "NumPy"]
)
def test_memory_that_runs_out_in_ours(error, call, monkeypatch):
    def lacking(*_, **__):
        raise error

    for line, (place, named) in OURS.items():
        with monkeypatch.context() as patched:
            patched.setattr(place, lacking, raising=False)
            status, _, err = call(f"{line} {PROBLEM}")
        assert status == 2, line
        assert err.startswith(f"spectra: {named}: out of memory ({type(error).__name__}"), (line, err)
