"""Eigenpairs in a file that somebody has written: the numbers beside them are right, or they are not taken."""

import json
import shlex

import numpy as np
import pytest

from spectra.cli import run

BASE = "--model nets.py:net --data data.npz --dtype float64 --curvature hessian"
NET = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=draw.normal(size=(24, 6)), y=draw.integers(3, size=24))
    (tmp_path / "nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(line):
    return run(shlex.split(line))


def forged(how):
    """What is in the arrays of a result, changed."""
    with np.load("from/eig.npz") as arrays:
        found = {name.removesuffix("_hessian"): array.copy() for name, array in arrays.items()}
    values, vectors = found["eigenvalues"], found["eigenvectors"]
    match how:
        case "values within their residuals":
            found["residuals"] = 0.999e-3 * np.abs(values)
            found["eigenvalues"] = values * (1 - 0.9e-3)
        case "other vectors":
            found["eigenvectors"] = np.roll(vectors, 1, axis=1)
        case "another length":
            found["eigenvalues"] = values[1:]
        case "text":
            found["eigenvalues"] = values.astype(str)
        case "one dimension too many":
            found["eigenvectors"] = vectors[None]
        case "complex":
            found["eigenvectors"] = vectors + 0j
    np.savez("from/eig.npz", **{f"{name}_hessian": array for name, array in found.items()})


FORGERIES = [
    "values within their residuals",
    "other vectors",
    "another length",
    "text",
    "one dimension too many",
    "complex",
]


@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_file_changes_no_number(how, folder, capfd):
    assert call(f"eig {BASE} -k 5 --tol 1e-8 --out from") == 0
    assert call(f"trace {BASE} --method dense --out true") == 0
    forged(how)
    capfd.readouterr()
    assert call(f"trace {BASE} --method dense --deflate from --out beside") == 0
    told = capfd.readouterr().err
    found, true = (json.loads((folder / out / "trace.json").read_text())["results"][0] for out in ("beside", "true"))
    assert found["trace"] == pytest.approx(true["trace"], rel=1e-9)
    taken = how == "values within their residuals"
    assert found.get("projected_out", 0) == (5 if taken else 0)
    assert taken or "of this matrix" in told
