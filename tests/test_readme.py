"""The README cannot go stale: its Python runs, its commands run, and what they print has the form shown."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectra.cli import run as spectra
from spectra.cli.plan_options import understood
from spectra.demo import train
from spectra.inputs.data import load_data

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
CONSOLE = [text for kind, text in BLOCKS if kind == "console"]
BATCH = [text for kind, text in BLOCKS if kind == "bash" and "SBATCH" in text]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A directory after `scripts/demo`, as far as the README's commands need it, with its nets.py."""
    place = tmp_path_factory.mktemp("clone")
    (place / "results/demo").mkdir(parents=True)
    digits = load_data("digits", None, 0)
    for name, network, _ in train(digits.inputs, digits.targets):
        torch.save(network.state_dict(), place / f"results/demo/{name}.pt")
    command = place / "bin/spectra"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m spectra "$@"\n')
    command.chmod(0o755)
    nets = next(text for text in PYTHON if text.startswith("# nets.py"))
    (place / "nets.py").write_text(nets)
    problem = "--model spectra.demo:mlp --checkpoint results/demo/final.pt --data digits --out results/demo"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        for command in ("eig", "trace"):
            assert spectra(f"{command} {problem} --curvature hessian --curvature ggn".split()) == 0
    return place


@pytest.fixture
def inside(clone, monkeypatch):
    """The present directory is the clone, and a terminal has 80 columns, whatever comes in from outside."""
    monkeypatch.chdir(clone)
    monkeypatch.setenv("COLUMNS", "80")


def form(text: str) -> str:
    """Output with its numbers masked: they differ between machines, and times between runs."""
    text = re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?", "#", text)
    return re.sub(r"[\s─]+", " ", text).strip()


@pytest.mark.parametrize("text", CONSOLE, ids=lambda text: text.splitlines()[0][2:40])
def test_commands_print_what_is_shown(text, inside, capsys):
    first, _, shown = text.partition("\n")
    arguments = shlex.split(first.removeprefix("$ spectra "))
    capsys.readouterr()
    status = spectra(arguments)
    out, err = capsys.readouterr()
    assert status == 0, err
    if "--help" in arguments:
        assert out == shown
    else:
        assert form(out) == form(shown)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("text", PYTHON, ids=lambda text: text.splitlines()[0])
def test_python_runs(text, inside):
    """Alone: each from the same random numbers, and without the names of others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})


def test_the_batch_script_runs(clone):
    """As a job of its own, and so the commands of the README once by the name of the program."""
    (clone / "job.sh").write_text(BATCH[0])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(clone / "bin")])
    environment = os.environ | {"PATH": path}  # which the program may not be on, nor installed at all
    done = subprocess.run(["bash", "job.sh"], cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (clone / "results/last").iterdir()) == ["eig.json", "eig.npz"]


def test_the_plan_is_understood(tmp_path):
    (plan,) = (text for kind, text in BLOCKS if kind == "toml" and "[problem]" in text)
    (tmp_path / "checkpoints").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoints/step-{step}.pt").touch()
    (tmp_path / "sweep.toml").write_text(plan)
    names = [task.name for task in understood(tmp_path / "sweep.toml").tasks]
    assert names == [f"step-{step}/{matrix}" for step in (9, 10) for matrix in ("hessian", "ggn")]


def test_files_named_exist():
    root = Path(__file__).parent.parent
    for name in re.findall(r"\]\((results/[^)#]+)", README):
        assert (root / name).exists(), name
