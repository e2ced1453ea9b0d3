"""LightningModules: by their file, by `load_from_checkpoint`, in Python; hyper_parameters are offered, never used."""

import os
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense, eigenvalues, largest
from torch import nn

import spectra
from spectra.cli import run
from spectra.inputs.hyper_parameters import as_text
from spectra.inputs.spec import parse_spec, resolve
from spectra.inputs.weights_only import FORCED

with warnings.catch_warnings(action="ignore"):
    lightning = pytest.importorskip("lightning")

FILE = """
import warnings
with warnings.catch_warnings(action="ignore"):
    import lightning
import torch.nn.functional as F
from torch import nn

class Net(lightning.LightningModule):
    def __init__(self, width, depth=1, act="tanh", callback=None):
        super().__init__()
        self.save_hyperparameters()
        layers = [nn.Linear(3, width), nn.Tanh()] + [nn.Linear(width, width), nn.Tanh()] * (depth - 1)
        self.net = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])
"""
HYPER = {"width": 5, "depth": 2, "act": "gelu; rm -rf", "callback": [1, 2]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("lit.py").write_text(FILE)
    draw = np.random.default_rng(0)
    np.savez("points.npz", x=draw.normal(size=(9, 3)), y=draw.integers(0, 2, 9))
    write(HYPER)


def layers() -> nn.Module:
    """The network alone, of the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))


def write(hyper: dict, **more) -> None:
    state = {f"net.{name}": value for name, value in layers().state_dict().items()}
    about = {"pytorch-lightning_version": "2.5.0", "hparams_name": "kwargs", "epoch": 3, "global_step": 9}
    torch.save({"state_dict": state, "hyper_parameters": hyper, **about, **more}, "a.ckpt")


def expected(k: int) -> list[float]:
    x, y = (torch.from_numpy(np.load("points.npz")[name]) for name in "xy")
    return largest(Dense(layers().double(), lambda call: call(x), lambda z: F.cross_entropy(z, y)).hessian(), k)


def refused(capfd, line: str, *fragments: str) -> str:
    capfd.readouterr()
    status = run(shlex.split(line))
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for fragment in fragments:
        assert fragment in err, err
    return err


def test_hyper_parameters_are_offered_as_the_name_to_type(capfd):
    rest = "--checkpoint a.ckpt --data points.npz -k 3"
    err = refused(capfd, f"eig --model lit.py:Net {rest}", "missing a required argument: 'width'", "hyper_parameters")
    offered = err.rpartition("--model ")[2].strip()
    assert offered == "'lit.py:Net?width=5&depth=2&callback=[1,2]'"  # what a shell might run is left out
    (spec,) = shlex.split(offered)
    line = ["--model", spec, "--checkpoint", "a.ckpt", "--data", "points.npz", "-k", "3"]
    assert eigenvalues(capfd, *line)["results"][0]["eigenvalues"] == pytest.approx(expected(3), rel=1e-8)


def test_options_that_are_given_stay(capfd):
    err = refused(capfd, "eig --model lit.py:Net?depth=7 --checkpoint a.ckpt --data points.npz")
    assert "'lit.py:Net?depth=7&width=5&callback=[1,2]'" in err


@pytest.mark.parametrize("hyper", [{}, {"depth": 2}, {"width": {"of": 1}}, {"width": "5&depth=2"}, [1], {1: 2}])
def test_what_does_not_fit_is_not_offered(hyper, capfd):
    write(hyper)
    err = refused(capfd, "eig --model lit.py:Net --checkpoint a.ckpt --data points.npz", "missing a required argument")
    assert "hyper_parameters" not in err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (-0.5, "-0.5"),
        (True, "True"),
        (None, "None"),
        ((1, 2.5), "(1,2.5)"),
        ("gelu", "gelu"),
        ("a/b-c_1.x", "a/b-c_1.x"),
        ("12", None),
        ("a&b", None),
        ("$(ls)", None),
        ("a b", None),
        ("'", None),
        (["a"], None),
        ({"a": 1}, None),
        (object(), None),
    ],
)
def test_only_what_reads_back_alike_is_written(value, text):
    assert as_text(value) == text
    if text is not None:
        assert parse_spec(f"net?key={text}", "`model`")[1] == {"key": value}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_load_from_checkpoint_reads_weights_alone(capfd):
    write({"width": 5, "depth": 2})
    name = "lit.py:Net.load_from_checkpoint?checkpoint_path=a.ckpt"
    found = eigenvalues(capfd, "--model", name, "--data", "points.npz", "-k", "3")
    assert found["results"][0]["eigenvalues"] == pytest.approx(expected(3), rel=1e-8)
    write({"width": 5, "depth": 2}, more=Evil())
    for more in ("", "&weights_only=false"):
        refused(capfd, f"eig --model '{name}{more}' --data points.npz", "could run code", "--checkpoint")
        assert not Path("ran").exists()
    assert FORCED not in os.environ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_in_python(dtype):
    net = resolve("lit.py:Net", "`model`")(5, depth=2)
    net.net = layers()
    x, y = (torch.from_numpy(np.load("points.npz")[name]) for name in "xy")
    exact = Dense(layers().to(dtype).double(), lambda call: call(x), lambda z: F.cross_entropy(z, y))
    found = spectra.eig(net.to(dtype), nn.CrossEntropyLoss(), (x.float(), y), k=3, method="dense", dtype="float64")
    assert found.values == pytest.approx(largest(exact.hessian(), 3), rel=1e-6)
