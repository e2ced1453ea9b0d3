"""Files from strangers run nothing of theirs: results, TOML files and plans that name code."""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_record

from spectra.cli import run
from spectra.inputs.code_origin import comes_with_packages, is_inside_folder

NETS = """
from pathlib import Path
from os import system
from torch import nn

Path("ran").touch()

def build(width=5):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

def data():
    import torch
    return torch.ones(7, 4), torch.zeros(7).long()
"""
STANDARD = [
    "os:system?command=touch%20ran",
    "os:mkdir?path=ran",
    "subprocess:getoutput?cmd=touch ran",
    "builtins:exec?source=open('ran','w')",
    "nets.py:system?command=touch ran",
    f"{os.__file__}:mkdir?path=ran",
    "pathlib:Path",
    "pip:main",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/nets.py").write_text(NETS)
    (tmp_path / "plain.py").write_text(NETS.replace('Path("ran").touch()', ""))
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(11, 4)).astype("f4"), y=draw.integers(0, 3, 11))
    return tmp_path


@pytest.fixture
def refused(capfd):
    def refused(line: list[str] | str, *fragments: str) -> str:
        capfd.readouterr()
        status = run(shlex.split(line) if isinstance(line, str) else line)
        out, err = capfd.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err[:-1].isprintable()
        for fragment in fragments:
            assert fragment in err, err
        assert not Path("ran").exists()
        return err

    return refused


def result(**options) -> None:
    """A result of eig made by hand."""
    known = {"model": "plain.py:build", "data": "points.npz", "loss": "cross_entropy"} | options
    entry = {"curvature": "hessian", "eigenvalues": [1.0], "residuals": [0.1]}
    problem = {"options": known, **known}
    Path("eig.json").write_text(json.dumps(make_record("eig", problem, [entry])))


@pytest.mark.parametrize(
    ("option", "spec"),
    [
        ("model", "os:system?command=touch ran"),
        ("model", "nets.py:build"),
        ("model", "nets:build"),
        ("model", "spectra.inputs.spec:resolve?name=nets.py:build&option=x"),
        ("model", "spectra.inputs.model:build_model?spec=nets.py:build"),
        ("model", "torchvision.models:list_models"),
        ("model", "torchvision.datasets.utils:download_url?url=file:x&root=ran"),
        ("model", "torch:load?f=evil.pt&weights_only=false"),
        ("data", "nets.py:data"),
        ("data", "torchvision.datasets.utils:extract_archive?from_path=a.zip"),
        ("transform", "nets.py:build"),
        ("loss", "nets.py:build"),
        ("loss", "subprocess:run"),
    ],
)
def test_a_result_runs_no_code_of_its_own(option, spec, refused):
    models = {} if option == "model" else {"model": "spectra.demo:mlp"}
    result(**models | {option: spec})
    for command in ("eig", "inspect", "trace"):
        refused(f"{command} --config eig.json", "--config eig.json", f"--{option} {spec[:30]}", "--trust")


def test_a_held_out_data_set_is_code_too(refused):
    options = {"model": "spectra.demo:mlp", "data": "digits", "held_out": "nets.py:data"}
    record = make_record("compare", {"options": options, **options}, [])
    Path("compare.json").write_text(json.dumps(record))
    refused("compare --config compare.json", "--held-out nets.py:data", "--trust")


@pytest.mark.parametrize("line", ["--model plain.py:build", "--trust"])
def test_what_is_typed_or_trusted_runs(line, capfd):
    result()
    assert run(shlex.split(f"eig --config eig.json -k 1 {line}")) == 0, capfd.readouterr().err


def test_a_result_that_says_where_to_write_is_not_heard(capfd):
    result(model="spectra.demo:mlp", data="digits", out="written", save_vectors=True, samples=20)
    assert run(["eig", "--config", "eig.json", "-k", "1"]) == 0, capfd.readouterr().err
    assert not Path("written").exists()


@pytest.mark.parametrize(
    ("option", "spec", "may"),
    [
        ("model", "spectra.demo:mlp", True),
        ("model", "torchvision:resnet18?num_classes=10", True),
        ("model", "torchvision.models:resnet18", True),
        ("model", "torchvision.models.resnet:ResNet", True),
        ("model", "torchvision.models:get_model?name=resnet18", False),
        ("model", "transformers:pipeline?trust_remote_code=True", False),
        ("data", "digits", True),
        ("data", "points.npz", True),
        ("data", "images/folder", True),
        ("data", "torchvision:CIFAR10?root=data", True),
        ("data", "spectra.demo:mlp2", False),
        ("transform", "torchvision.transforms.functional:to_tensor", True),
        ("loss", "mse", True),
        ("loss", "torch.nn:MSELoss", False),
    ],
)
def test_names_that_come_with_packages(option, spec, may):
    assert comes_with_packages(option, spec) is may


@pytest.mark.parametrize("spec", STANDARD)
@pytest.mark.parametrize("how", ["typed", "toml"])
def test_builders_of_the_standard_library_are_never_called(spec, how, refused):
    Path("nets.py").write_text(NETS.replace('Path("ran").touch()', ""))
    Path("run.toml").write_text(f"model = {json.dumps(spec)}\n")
    line = ["--model", spec] if how == "typed" else ["--trust", "--config", "run.toml"]
    refused(["eig", *line, "--data", "points.npz"], "--model", "belongs to Python's standard library")


def test_a_toml_file_names_its_neighbours(refused, capfd):
    Path("elsewhere/run.toml").write_text('model = "nets.py:build"\n')  # beside the current directory, not beside it
    line = "eig --config elsewhere/run.toml --data points.npz -k 1"
    refused(line, "--config elsewhere/run.toml", "--model nets.py:build", "beside that file", "--trust")
    Path("elsewhere/run.toml").write_text('model = "elsewhere/../nets.py:build"\n')
    refused(line, "--trust")
    Path("elsewhere/link.py").symlink_to("../nets.py")
    Path("elsewhere/run.toml").write_text('model = "elsewhere/link.py:build"\n')
    refused(line, "--trust")
    Path("nets.py").rename("nets_of_here.py")  # other tests import a module named nets
    Path("elsewhere/run.toml").write_text('model = "nets_of_here:build"\n')  # a module of the current directory
    refused(line, "--trust")
    Path("elsewhere/run.toml").write_text("trust = true\n")
    refused(line, "no option trust")
    Path("elsewhere/run.toml").write_text('model = "elsewhere/nets.py:build"\n')
    assert run(shlex.split(line)) == 0, capfd.readouterr().err


def test_modules_that_are_installed_lie_beside(tmp_path):
    for spec in ("spectra.demo:mlp", "torchvision:resnet18", "scipy.optimize:x", "nowhere:x", "digits"):
        assert is_inside_folder(spec, tmp_path / "elsewhere", tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").touch()
    assert is_inside_folder("own:x", tmp_path, tmp_path)
    assert not is_inside_folder("own:x", tmp_path / "elsewhere", tmp_path)


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        ("../nets.py:build", "--trust"),
        ("os:system?command=touch ran", "comes with Python"),
        (str(Path(os.__file__)) + ":mkdir", "comes with Python"),
    ],
)
def test_a_plan_names_its_neighbours(spec, fragment, refused):
    Path("elsewhere/plan.toml").write_text(f"[problem]\nmodel = {json.dumps(spec)}\ndata = 'digits'\n[eig]\n")
    for extra in ("", "--dry-run"):
        refused(f"sweep run elsewhere/plan.toml {extra}", "PLAN elsewhere/plan.toml", "model", fragment)


def test_readers_of_results_run_nothing(capfd):
    """report, plot and collect: a model in a result is a name, and no more."""
    Path("checkpoints").mkdir()
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    for step in (1, 2):
        torch.save({"step": step, "model": model.state_dict()}, f"checkpoints/{step}.pt")
        model[0].weight.data.mul_(0.9)
    named = "model = 'nets.py:build'\ndata = 'points.npz'\ncheckpoint = 'checkpoints/*.pt'"
    Path("plan.toml").write_text(f"[problem]\n{named}\n[eig]\nk = 2\n[trace]\n")
    problem = "--model nets.py:build --data points.npz --curvature hessian --seed 0"
    for step in (1, 2):
        for command in ("eig -k 2", "trace"):
            line = f"{command} {problem} --checkpoint checkpoints/{step}.pt --out plan/{step}/hessian"
            assert run(shlex.split(line)) == 0, capfd.readouterr().err
    Path("ran").unlink()
    for name in [name for name in sys.modules if name.startswith("spectra_user_nets")]:
        del sys.modules[name]
    for line in (
        "sweep collect plan.toml --json",
        "sweep status plan.toml",
        "plot plan/1/hessian/eig.json --out a.png",
        "report plan/1/hessian --out a.html",
    ):
        capfd.readouterr()
        assert run(line.split()) == 0, capfd.readouterr().err
        assert not Path("ran").exists(), line
        if "collect" in line:
            rows = json.loads(capfd.readouterr().out)["rows"]
            assert {"update_share"} <= {row["quantity"] for row in rows}
    page = Path("a.html").read_text()
    assert "--model nets.py:build" in page.rpartition("--config")[2]
