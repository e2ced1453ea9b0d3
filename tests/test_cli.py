"""The command line as outside checks call it: exit status, standard output, standard error, files.

Whole runs go through a process of their own where that is the point; all else calls `spectra.cli.run` in this one,
which is the same code without the seconds that importing torch takes. `expect` and `refuse` hold what every run owes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectra
from spectra.cli import run
from spectra.curvature.matrices import MATRICES
from spectra.spectrum.curves import wasserstein

ROOT = Path(spectra.__file__).parents[1]
FOUR = ("hessian", "ggn", "fisher", "fisher-empirical")
PROBLEM = "--model nets.py:linear --data points.npz"

NETS = '''
import ctypes, os, subprocess, sys
import torch, torch.nn.functional as F
from torch import nn
from neighbour import WIDTH


def linear(inputs=4, outputs=3):
    return nn.Linear(inputs, outputs)


def mlp():
    return nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def digits():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))


def convolution():
    """Convolutions with BatchNorm whose statistics are not the trivial ones."""
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4),
        nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.2, 0.2), layer.running_var.uniform_(0.1, 0.5)
    return layers


class Attention(nn.Module):
    """Causal self-attention over tokens; the head is the embedding's own matrix."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], x.device, x.dtype)
        return self.head(self.norm(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


class Through(nn.Module):
    """A linear layer, and something done to what comes out of it."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Kink(nn.Module):
    """A norm at zero: its second derivative is not finite, its loss is."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.gap = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.linear(x) + self.gap.norm()


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        return x[:, :3] * self.weight


def fails(x):
    raise ValueError("first line\\nsecond line")


def raising(): return Through(fails)
def leaving(): return Through(lambda x: sys.exit(0))
def dropping(): return Through(lambda x: F.dropout(x, training=True))
def once(): return Through(Once.apply)
def pair(): return Through(lambda x: (x, x))
def broken_weights():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    return model


def chatty():
    print("printed")
    os.write(1, b"written\\n")
    ctypes.CDLL(None).printf(b"from C\\n")
    subprocess.run(["echo", "from a child"], check=True)
    import atexit
    atexit.register(print, "at exit")
    return nn.Linear(4, 3)


class Shaky:
    """Each item is drawn anew whenever it is read."""

    def __len__(self): return 9
    def __getitem__(self, index): return torch.randn(4), index % 3


def squares(output, target): return (output - target) ** 2
def short(output, target): return output[:2, 0]
'''


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def points(count=11, seed=0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, 4)).astype("float32"), draw.integers(0, 3, count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, data and checkpoints, as a user has them in a folder."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "nets.py").write_text(NETS)
    (folder / "neighbour.py").write_text("WIDTH = 5\n")
    (folder / "zoo").mkdir()
    (folder / "zoo" / "__init__.py").write_text("")
    (folder / "zoo" / "small.py").write_text(
        "from torch import nn\nimport neighbour\n\ndef build():\n    return nn.Linear(4, 3)\n"
    )

    draw = np.random.default_rng(3)
    x, y = points()
    np.savez(folder / "points.npz", x=x, y=y)
    np.savez(folder / "regression.npz", x=x, y=draw.normal(size=(11, 3)).astype("float32"))
    np.savez(folder / "narrow.npz", x=x, y=draw.normal(size=(11, 2)).astype("float32"))
    np.savez(folder / "wide.npz", x=np.concatenate([x, x], 1), y=y)
    np.savez(folder / "empty.npz", x=x[:0], y=y[:0])
    np.savez(folder / "range.npz", x=x, y=y + 5)
    np.savez(folder / "named.npz", features=x, labels=y)
    np.savez(folder / "some_ignored.npz", x=x, y=np.where(np.arange(11) % 4, y, 2))
    np.savez(folder / "all_ignored.npz", x=x, y=np.full(11, -100))
    np.savez(folder / "nan.npz", x=np.where(np.arange(44).reshape(11, 4) == 13, np.nan, x), y=y)
    np.savez(folder / "images.npz", x=draw.normal(size=(10, 2, 6, 6)), y=draw.integers(0, 3, 10))
    np.savez(folder / "tokens.npz", x=draw.integers(0, 6, (7, 5)), y=draw.integers(0, 6, (7, 5)))
    np.savez(folder / "series.npz", x=draw.normal(size=(9, 5, 2)), y=draw.normal(size=(9, 2)))
    with np.load(ROOT / "spectra" / "inputs" / "digits.npz") as digits:
        np.savez(folder / "digits.npz", x=digits["images"][:150] / 16.0, y=digits["labels"][:150])

    sys.path.insert(0, str(folder))
    import nets

    sys.path.remove(str(folder))
    with torch.random.fork_rng(devices=[]):
        for name, build in (*((c.name, getattr(nets, c.model)) for c in CASES), ("linear", nets.linear)):
            torch.manual_seed(5)
            torch.save(build().state_dict(), folder / f"{name}.pt")
    weights = nn.Linear(4, 3).state_dict()
    torch.save({"wieght": weights["weight"], "bias": weights["bias"]}, folder / "keys.pt")
    torch.save(nn.Linear(5, 3).state_dict(), folder / "shapes.pt")
    torch.save({**weights, "bias": torch.full((3,), torch.nan)}, folder / "nan.pt")
    torch.save({"state_dict": weights, "hook": Evil()}, folder / "evil.pt")
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str

    @property
    def record(self) -> dict:
        """Standard output, which has to be one JSON object on a line and nothing else."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    @property
    def results(self) -> list[dict]:
        return self.record["results"]

    @property
    def result(self) -> dict:
        return self.results[0]


def environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONUNBUFFERED", "SPECTRA_TRACEBACK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def process(line: str, flags=("-m", "spectra"), **changes: str) -> Run:
    """`python -m spectra` from the source tree, in the current directory."""
    done = subprocess.run(
        [sys.executable, *flags, *shlex.split(line)],
        capture_output=True, text=True, encoding="utf-8", env=environment(**changes), timeout=300, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(capfd) -> Callable[[str], Run]:
    """The same within this process."""

    def call(line: str) -> Run:
        capfd.readouterr()
        status = run(shlex.split(line))
        return Run(status, *capfd.readouterr())

    return call


@pytest.fixture
def good(call) -> Callable[[str], dict]:
    """The record of a run that has to end well, and quietly."""

    def good(line: str) -> dict:
        done = call(f"{line} --json")
        assert (done.status, done.err) == (0, "")
        return done.record

    return good


def refused(done: Run, *fragments: str) -> None:
    """Status 2, nothing on standard output, one line on standard error that holds the fragments."""
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("spectra: "), done.err
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for fragment in fragments:
        assert fragment in done.err


# Against dense references in float64, made here from PyTorch's own losses.


@dataclass(frozen=True)
class Case:
    name: str
    model: str  # in nets.py
    data: str
    loss: str = "cross_entropy"
    batch_size: int = 4  # leaves an uneven last batch

    @property
    def problem(self) -> str:
        return (
            f"--model nets.py:{self.model} --checkpoint {self.name}.pt --data {self.data} --loss {self.loss} "
            f"--dtype float64 --batch-size {self.batch_size}"
        )

    @property
    def line(self) -> str:
        return f"{self.problem} {curvatures(*FOUR)}"


def curvatures(*names: str) -> str:
    return " ".join(f"--curvature {name}" for name in names)


CASES = [
    Case("convolution", "convolution", "images.npz"),
    Case("attention", "Attention", "tokens.npz"),
    Case("recurrent", "Recurrent", "series.npz", "mse"),
    Case("digits", "digits", "digits.npz", batch_size=128),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cache
def references(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """The four matrices (n, n), by their definitions."""
    sys.path.insert(0, str(folder))
    import nets

    sys.path.remove(str(folder))
    model = getattr(nets, case.model)()
    model.load_state_dict(torch.load(folder / f"{case.name}.pt"))
    model = model.double().eval()
    with np.load(folder / case.data) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    y = y if y.is_floating_point() else y.long()
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]
    theta = torch.cat([p.detach().flatten() for p in parameters.values()])

    def rows(theta: Tensor) -> Tensor:
        parts = [t.view(p.shape) for t, p in zip(theta.split(sizes), parameters.values(), strict=True)]
        output = torch.func.functional_call(model, dict(zip(parameters, parts, strict=True)), (x,))
        return output.flatten(0, -2)

    def loss(theta: Tensor) -> Tensor:
        return F.mse_loss(rows(theta), y) if case.loss == "mse" else F.cross_entropy(rows(theta), y.flatten())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, theta)
        jacobian = torch.autograd.functional.jacobian(rows, theta)  # (E, K, n)
    f = rows(theta).detach()
    count, outputs = f.shape
    identity = torch.eye(outputs).double()
    if case.loss == "mse":
        curvature = fisher = (2 * identity / outputs).expand(count, -1, -1)  # Var y = 1/2, r = 2 (f - y)
        slope = 2 * (f - y) / outputs
    else:
        p = f.softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        r = p[:, None, :] - identity  # (E, label, K)
        fisher = torch.einsum("ec,eci,ecj->eij", p, r, r)
        slope = p - identity[y.flatten()]
    middle = {"ggn": curvature, "fisher": fisher, "fisher-empirical": slope[:, :, None] * slope[:, None, :]}
    products = {name: torch.einsum("eia,eij,ejb->ab", jacobian, m, jacobian) / count for name, m in middle.items()}
    return {name: matrix.numpy() for name, matrix in ({"hessian": hessian} | products).items()}


def spectrum(case: Case, folder: Path, name: str) -> np.ndarray:
    matrix = references(case, folder)[name]
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)


def ordered(values: np.ndarray, k: int, which: str) -> np.ndarray:
    rising = np.sort(values)
    if which == "LM":
        return values[np.argsort(-np.abs(values))][:k]
    if which == "BE":
        return np.concatenate([rising[::-1][: (k + 1) // 2], rising[: k // 2]])
    return (rising if which == "SA" else rising[::-1])[:k]


def assert_ordered(found, true: np.ndarray, which: str, to: float) -> None:
    """The eigenvalues that `which` names, in its order, to `to` relative to the largest of all."""
    assert np.array(found) == pytest.approx(ordered(true, len(found), which), abs=to * np.abs(true).max())


@pytest.mark.sampled(1)
@each_case
def test_eig_equals_the_dense_reference(case, folder):
    done = process(f"eig {case.line} -k 8 --tol 1e-8 --json")
    assert (done.status, done.err) == (0, "")
    assert [result["curvature"] for result in done.results] == list(FOUR)
    for result in done.results:
        true = spectrum(case, folder, result["curvature"])
        assert_ordered(result["eigenvalues"], true, "LM", to=1e-6)
        eps, size = np.finfo(float).eps, np.abs(true).max()
        allowed = 1e-8 * np.maximum(np.abs(result["eigenvalues"]), eps ** (2 / 3) * size)
        assert np.all(result["residuals"] <= np.maximum(allowed, 10 * eps * size))
        assert result["converged"] is True


@pytest.mark.parametrize(("case", "which"), list(zip(CASES, ["LM", "LA", "SA", "BE"], strict=True)))
def test_orders_and_the_dense_method(case, which, folder, good):
    found = good(f"eig {case.line} -k 7 --which {which} --method dense")["results"]
    for result in found:
        true = spectrum(case, folder, result["curvature"])
        assert_ordered(result["eigenvalues"], true, which, to=1e-10)
        assert result["residuals"] == pytest.approx(np.zeros(7), abs=1e-12 * np.abs(true).max())


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_orders_by_lanczos(which, folder, good):
    case = CASES[0]
    result = good(f"eig {case.problem} -k 5 --which {which} --tol 1e-8")["results"][0]
    assert_ordered(result["eigenvalues"], spectrum(case, folder, "hessian"), which, to=1e-8)


@each_case
def test_trace_is_within_its_error(case, folder, good):
    for result in good(f"trace {case.line} --rtol 0.01")["results"]:
        true = spectrum(case, folder, result["curvature"]).sum()
        assert abs(result["trace"] - true) <= 4 * result["standard_error"] + 1e-9 * abs(true)
        assert result["standard_error"] <= 0.01 * abs(result["trace"])


@pytest.mark.parametrize("method", ["hutch++", "hutchinson", "dense"])
def test_methods_of_trace(method, folder, good):
    case = CASES[0]
    for result in good(f"trace {case.line} --rtol 0.1 --method {method}")["results"]:
        true = spectrum(case, folder, result["curvature"]).sum()
        assert abs(result["trace"] - true) <= 4 * result["standard_error"] + 1e-9 * abs(true)
        assert (result["standard_error"] == 0.0) == (method == "dense")
        assert result["method"] == method


@pytest.mark.sampled(2)
@each_case
def test_density_is_the_distribution(case, folder, good, tmp_path):
    """With as few steps as serve: most of the spectrum is left to the probes."""
    for result in good(f"density {case.line} --batch-size 200 --out {tmp_path} --steps 30")["results"]:
        true = spectrum(case, folder, result["curvature"])
        nodes, weights = np.array(result["nodes"]), np.array(result["weights"])
        assert nodes.shape == weights.shape
        assert len(nodes) == 10
        assert result["dimension"] == len(true)
        assert weights.sum(1) == pytest.approx(np.ones(10))
        assert np.all(weights >= 0)
        deflated = result["deflated"]
        assert weights[:, :deflated] == pytest.approx(np.full((10, deflated), 1 / len(true)))
        assert np.all(nodes[:, :deflated] == nodes[0, :deflated])
        assert wasserstein(nodes, weights, true, np.ones(len(true))) <= 0.01 * np.ptp(true)


# The record


COST = {"curvature": str, "method": str, "converged": bool, "products": int, "seconds": float, "setup_seconds": float}
FIELDS = {
    "eig": {"eigenvalues": list, "residuals": list},
    "trace": {"trace": float, "standard_error": float},
    "density": {"nodes": list, "weights": list, "dimension": int, "figure": str},
}
TEXTS = {
    "eig": "eigenvalue ± residual",
    "trace": "trace ± standard error",
    "density": "density.png: mean ± standard error over 10 probes",
}
COMMANDS = list(FIELDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_schema(command, good, tmp_path):
    every = curvatures(*MATRICES)
    record = good(f"{command} {PROBLEM} {every} --dtype float64 --seed 3 --out {tmp_path}")
    assert (record["schema"], record["command"]) == (1, command)
    problem = {"parameters": 15, "examples": 11, "model": "nets.py:linear", "data": "points.npz", "seed": 3}
    assert problem.items() <= record["problem"].items()
    assert [result["curvature"] for result in record["results"]] == list(MATRICES)
    for result in record["results"]:
        for field, kind in (COST | FIELDS[command]).items():
            assert type(result[field]) is kind
        assert result["products"] > 3


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_fit_a_terminal(command, call, tmp_path):
    done = call(f"{command} {PROBLEM} {curvatures(*MATRICES)} --dtype float64 --out {tmp_path}")
    assert (done.status, done.err) == (0, "")
    assert TEXTS[command].replace(" ", "") in "".join(done.out.split())  # a long path may be folded
    assert max(map(len, done.out.splitlines())) <= 80
    assert all(name in done.out for name in MATRICES)
    assert "…" not in done.out


def test_nothing_but_json_whatever_the_users_code_prints(folder):
    done = process("eig --model nets.py:chatty --data points.npz -k 1 --json")
    assert done.status == 0
    assert done.result["curvature"] == "hessian"
    assert sorted(done.err.splitlines()) == ["at exit", "from C", "from a child", "printed", "written"]


@pytest.mark.parametrize("command", COMMANDS)
def test_two_runs_are_the_same(command, good, tmp_path):
    line = f"{command} {PROBLEM} --curvature fisher-mc --curvature hessian --seed 4 --out {tmp_path}"
    one, two = (without_seconds(good(line)) for _ in range(2))
    assert one == two


def without_seconds(record: dict) -> dict:
    kept = [{k: v for k, v in result.items() if "seconds" not in k} for result in record["results"]]
    return record | {"results": kept}


@pytest.mark.parametrize("command", COMMANDS)
def test_batches_change_nothing(command, good, tmp_path):
    line = f"{command} {PROBLEM} --dtype float64 {curvatures('fisher-mc', 'hessian')} --mc-samples 2 --out {tmp_path}"
    whole, *cut = (good(f"{line} {size}") for size in ("", "--batch-size 4", "--batch-size 1", "--memory 0"))
    assert [record["problem"]["batch_size"] for record in (whole, *cut)] == [11, 4, 1, 11]
    for record in cut:
        for one, two in zip(whole["results"], record["results"], strict=True):
            if command == "density":
                assert wasserstein(one["nodes"], one["weights"], two["nodes"], two["weights"]) <= 1e-9
            else:
                field = {"eig": "eigenvalues", "trace": "trace"}[command]
                assert two[field] == pytest.approx(one[field], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("size", "limit"), [("1.5kB", 1500), ("2 KiB", 2048), ("3000", 3000), ("1gib", 2**30)])
def test_memory(size, limit, good):
    line = f"eig {PROBLEM} -k 3 --dtype float64"
    (usual,), (found,) = (good(f"{line} {more}")["results"] for more in ("", f"--memory '{size}'"))
    assert 0 < found["peak_bytes"] <= limit
    assert 0 < usual["kept_bytes"] < usual["peak_bytes"] < 2**30
    assert found["eigenvalues"] == pytest.approx(usual["eigenvalues"], rel=1e-12)


def test_samples(good):
    everything, all_chosen, some, others = (
        good(f"eig {PROBLEM} -k 3 {options}")
        for options in ("", "--samples 11", "--samples 5", "--samples 5 --seed 1 --checkpoint linear.pt")
    )
    assert everything["results"][0]["eigenvalues"] == all_chosen["results"][0]["eigenvalues"]
    assert [record["problem"]["examples"] for record in (everything, some, others)] == [11, 5, 5]
    assert some["problem"]["loss_value"] != everything["problem"]["loss_value"]


def test_params(folder, good):
    case = CASES[0]
    found = good(f"eig {case.line} --params 8.* -k 15 --method dense")
    assert found["problem"]["parameters"] == 15  # the linear layer comes last
    for result in found["results"]:
        block = references(case, folder)[result["curvature"]][-15:, -15:]
        assert_ordered(result["eigenvalues"], np.linalg.eigvalsh(block), "LM", to=1e-10)
    two = good(f"eig {case.line} --params 8.weight --params 8.bias -k 15 --method dense")
    assert [r["eigenvalues"] for r in two["results"]] == [r["eigenvalues"] for r in found["results"]]


def test_weight_decay_shifts(good):
    line = f"eig {PROBLEM} --dtype float64 -k 15 --which LA --method dense"
    for name in ("hessian", "ggn", "fisher", "fisher-mc"):
        plain, shifted = (
            np.array(good(f"{line} --curvature {name} --weight-decay {decay}")["results"][0]["eigenvalues"])
            for decay in ("0", "0.25")
        )
        assert shifted == pytest.approx(plain + 0.25, abs=1e-12)


LOSSES = {
    "cross_entropy": {},
    "cross_entropy?label_smoothing=0.2": {"label_smoothing": 0.2},
    "cross_entropy?ignore_index=2": {"ignore_index": 2},
    "cross_entropy?weight=1,0.5,2&label_smoothing=0.1": {"weight": [1, 0.5, 2], "label_smoothing": 0.1},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_options_of_cross_entropy(loss, good, folder):
    options = {k: torch.tensor(v) if k == "weight" else v for k, v in LOSSES[loss].items()}
    with np.load("some_ignored.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    model = nn.Linear(4, 3)
    model.load_state_dict(torch.load("linear.pt"))
    true = F.cross_entropy(model(x), y, **options).item()
    record = good(f"eig --model nets.py:linear --checkpoint linear.pt --data some_ignored.npz --loss '{loss}' -k 1")
    assert record["problem"]["loss_value"] == pytest.approx(true, rel=1e-6)
    assert record["problem"]["loss"] == loss
    assert record["problem"]["examples"] == (y != 2).sum() if "ignore" in loss else 11


def test_a_loss_of_ones_own(good):
    line = "eig --model nets.py:linear --data regression.npz --curvature hessian --curvature fisher-empirical -k 4"
    own, named = (good(f"{line} --dtype float64 --loss {loss}") for loss in ("nets.py:squares", "mse"))
    for one, two in zip(own["results"], named["results"], strict=True):
        assert one["eigenvalues"] == pytest.approx(two["eigenvalues"], rel=1e-9)


def test_dtype(good):
    one, two = (good(f"eig {PROBLEM} -k 4 --dtype {kind}") for kind in ("float32", "float64"))
    assert (one["problem"]["dtype"], two["problem"]["dtype"]) == ("float32", "float64")
    assert one["results"][0]["eigenvalues"] == pytest.approx(two["results"][0]["eigenvalues"], rel=1e-5)


# Status 1: what was found is printed


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("eig --max-products 8 -k 3", "--max-products"),
        ("eig --max-products 8 -k 3 --method power", "--max-products"),
        ("trace --max-products 5", "--max-products"),
        ("trace --max-products 12 --rtol 1e-4", "--max-products"),
        ("trace --max-products 12 --method hutch++ --rtol 1e-4", "--max-products"),
        ("trace --max-products 12 --method hutchinson", "--max-products"),
        ("density --max-products 5 --steps 4", "--max-products"),
        ("density --max-products 12 --steps 4", "--max-products"),
    ],
)
def test_a_tolerance_that_is_not_met(line, cause, call, tmp_path):
    for json_ in ("", " --json"):
        done = call(f"{line} {PROBLEM} --out {tmp_path}{json_}")
        assert done.status == 1
        assert done.err.count("\n") == 1
        assert cause in done.err
    assert done.result["converged"] is False
    assert done.record == json.loads((tmp_path / f"{line.split()[0]}.json").read_text())
    if limit := done.record["problem"]["options"]["max_products"]:
        assert done.result["products"] <= limit


@pytest.mark.parametrize("command", COMMANDS)
def test_numbers_that_are_not_finite(command, call, tmp_path):
    for json_ in ("", " --json"):
        done = call(f"{command} --model nets.py:Kink --data points.npz --out {tmp_path}{json_}")
        assert done.status == 1
        assert done.err.count("\n") == 1
        assert "hessian: a number is not finite" in done.err
    result = done.result
    assert result["converged"] is False
    if command == "density":
        assert all(node is None for probe in result["nodes"] for node in probe)
        assert result["figure"] is None
        assert not (tmp_path / "density.png").exists()
    else:
        assert result[{"eig": "eigenvalues", "trace": "trace"}[command]] in ([None] * 10, None)


def test_one_matrix_that_is_not_finite_leaves_the_others(call, tmp_path):
    line = f"density --model nets.py:Kink --data points.npz --params linear.* --params gap --out {tmp_path} --json"
    done = call(f"{line} --curvature fisher --curvature hessian")
    assert done.status == 1
    assert (tmp_path / "density.png").exists()
    assert np.isfinite(done.result["nodes"]).all()


# Files


def test_eig_and_trace_write_nothing_unless_asked(folder, good, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in ("eig", "trace"):
        good(f"{command} --model {folder}/nets.py:linear --data {folder}/points.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("log", ["", "--log"])
def test_density_writes_its_figure_here(log, folder, good, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    record = good(f"density --model {folder}/nets.py:linear --data {folder}/points.npz {log}")
    assert [p.name for p in tmp_path.iterdir()] == ["density.png"]
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    assert record["results"][0]["figure"] == "density.png"


@pytest.mark.parametrize(
    ("command", "files", "field"),
    [
        ("eig", {"eig.json", "eig.npz"}, "eigenvalues"),
        ("trace", {"trace.json"}, "trace"),
        ("density", {"density.json", "density.npz", "density.png"}, "nodes"),
    ],
)
def test_files(command, files, field, good, tmp_path):
    home = tmp_path / "new" / "folder"
    record = good(f"{command} {PROBLEM} --curvature hessian --curvature fisher --out {home}")
    assert {p.name for p in home.iterdir()} == files
    assert json.loads((home / f"{command}.json").read_text()) == record
    if f"{command}.npz" in files:
        with np.load(home / f"{command}.npz", allow_pickle=False) as arrays:
            for result in record["results"]:
                assert arrays[f"{field}_{result['curvature']}"].tolist() == result[field]
            if command == "eig":
                vectors = arrays["eigenvectors_hessian"]
                assert vectors @ vectors.T == pytest.approx(np.eye(10), abs=1e-5)
    before = {p: (p.stat().st_ino, p.stat().st_mode & 0o777) for p in home.iterdir()}
    good(f"{command} {PROBLEM} --out {home} --seed 1")
    after = {p: (p.stat().st_ino, p.stat().st_mode & 0o777) for p in home.iterdir()}
    assert after.keys() == before.keys()  # and nothing temporary beside them
    for path, (inode, mode) in after.items():
        assert inode != before[path][0], "replaced whole, not written into"
        assert mode == before[path][1] == 0o666 & ~umask()
    assert json.loads((home / f"{command}.json").read_text())["problem"]["seed"] == 1


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_fills_leaves_what_was_there(command, call, monkeypatch, tmp_path):
    assert call(f"{command} {PROBLEM} --out {tmp_path}").status == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(call(f"{command} {PROBLEM} --seed 1 --out {tmp_path}"), f"--out {tmp_path}", "the disk is full")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system needs root on Linux")
@pytest.mark.parametrize("command", [*COMMANDS, "demo"])
def test_a_disk_that_is_full(command, call, tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with contextlib.suppress(OSError), (tmp_path / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"0" * 4096)
        done = call(f"{command} --out {tmp_path} {PROBLEM if command != 'demo' else ''}")
        refused(done, "--out", "the disk is full")
        assert [p.name for p in tmp_path.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_is_full():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "spectra", "eig", *shlex.split(PROBLEM), "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False,
        )  # fmt: skip
    refused(Run(done.returncode, "", done.stderr), "standard output", "No space left")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["points.npz", "points.npz/below", "/proc/nowhere"])
def test_an_output_folder_that_cannot_be(command, place, call):
    refused(call(f"{command} {PROBLEM} --out {place}"), "--out", place)
    assert zip_is_whole("points.npz")


def zip_is_whole(path: str) -> bool:
    with np.load(path) as data:
        return len(data["x"]) == 11


# Errors of the user, each in one line


LINEAR, POINTS = "--model nets.py:linear", "--data points.npz"
ERRORS = {
    # the command line itself
    "unknown command": ("nonsense", ["'nonsense'", "spectra --help"]),
    "unknown option": (f"eig {PROBLEM} --nonsense", ["--nonsense", "spectra eig --help"]),
    "unknown option of the group": ("--nonsense", ["--nonsense", "spectra --help"]),
    "surplus argument": (f"eig {PROBLEM} surplus", ["surplus"]),
    "checkpoint given twice": (
        f"eig {PROBLEM} --checkpoint a.pt --checkpoint b.pt", ["--checkpoint is given 2 times", "spectra sweep"]
    ),
    "operator given twice": ("eig --operator a.npy --operator b.npy", ["--operator is given 2 times", "eig --help"]),
    "no model": (f"eig {POINTS}", ["--model"]),
    "no data": (f"trace {LINEAR}", ["--data"]),
    "option without its value": (f"eig {PROBLEM} -k", ["-k"]),
    "curvatures in one": (
        f"eig {PROBLEM} --curvature hessian,ggn", ["several names", "--curvature hessian --curvature ggn"]
    ),
    "curvature": (f"eig {PROBLEM} --curvature nonsense", ["--curvature", "nonsense", *MATRICES]),
    "which": (f"eig {PROBLEM} --which XX", ["--which", "XX", "LM", "BE"]),
    "method": (f"eig {PROBLEM} --method nonsense", ["--method", "nonsense", "lanczos"]),
    "device": (f"eig {PROBLEM} --device tpu", ["--device", "tpu", "cuda"]),
    "dtype": (f"eig {PROBLEM} --dtype float16", ["--dtype", "float16", "float64"]),
    **{
        f"{option} {value}": (f"{command} {PROBLEM} {option} {value}", [option, value])
        for command, option, values in [
            ("eig", "--tol", ["0", "-1", "nan", "inf", "x"]),
            ("trace", "--rtol", ["0", "inf"]),
            ("eig", "-k", ["0", "-3", "x", "1.5"]),
            ("density", "--probes", ["0"]),
            ("trace", "--probes", ["0"]),
            ("density", "--steps", ["0"]),
            ("eig", "--seed", ["-1", "99999999999999999999", "x"]),
            ("eig", "--batch-size", ["0", "-1"]),
            ("eig", "--memory", ["x", "-1", "1e9", "GiB", "'1 PB'", "''", "10"]),
            ("eig", "--samples", ["0"]),
            ("eig", "--mc-samples", ["0"]),
            ("eig", "--max-products", ["0"]),
            ("eig", "--weight-decay", ["-1", "nan"]),
        ]
        for value in values
    },
    # what does not fit together
    "k beyond n": (f"eig {PROBLEM} -k 16", ["-k", "16", "at most 15"]),
    "k beyond n, dense": (f"eig {PROBLEM} -k 16 --method dense", ["-k", "16", "at most 15"]),
    "k beyond n, power": (f"eig {PROBLEM} -k 16 --method power", ["-k", "16", "at most 15"]),
    "power finds magnitudes": (f"eig {PROBLEM} -k 1 --method power --which SA", ["--which SA", "--method lanczos"]),
    "dense beyond the budget": (f"eig {PROBLEM} -k 1 --method dense --max-products 9", ["--max-products", "15"]),
    "more samples than data": (f"eig {PROBLEM} --samples 12", ["--samples 12", "11 examples"]),
    "params": (f"eig {PROBLEM} --params nothing.*", ["--params nothing.*", "weight, bias"]),
    "fisher of a loss of one's own": (
        f"eig {LINEAR} --data regression.npz --loss nets.py:squares --curvature fisher",
        ["--curvature fisher", "ggn"],
    ),
    "fisher-mc of a loss of one's own": (
        f"trace {LINEAR} --data regression.npz --loss nets.py:squares --curvature ggn --curvature fisher-mc",
        ["--curvature fisher-mc"],
    ),
    "decay of squares": (
        f"eig {PROBLEM} --weight-decay 0.1 --curvature hessian --curvature fisher-empirical",
        ["--weight-decay 0.1", "fisher-empirical"],
    ),
    "a key without a checkpoint": (f"eig {PROBLEM} --checkpoint-key model", ["--checkpoint-key model", "--checkpoint"]),
    # models
    "no such file": (f"eig --model nowhere.py:net {POINTS}", ["--model nowhere.py:net", "no such file"]),
    "no such name": (f"eig --model nets.py:liner {POINTS}", ["--model nets.py:liner", "linear"]),
    "no name": (f"eig --model nets.py {POINTS}", ["--model nets.py", "nets.py:name"]),
    "no such module": (f"eig --model no.such:net {POINTS}", ["--model no.such:net"]),
    "no such torchvision model": (f"eig --model torchvision:resnet1 {POINTS}", ["torchvision:resnet1", "resnet18"]),
    "option of a model": (f"eig --model nets.py:linear?wdth=3 {POINTS}", ["wdth", "inputs, outputs"]),
    "model of torchvision": (f"eig --model resnet18 {POINTS}", ["did you mean torchvision:resnet18?"]),
    "no model at all": (f"eig --model nets.py:WIDTH {POINTS}", ["--model nets.py:WIDTH", "int"]),
    "integer model": (f"eig --model nets.py:Integers {POINTS}", ["--model"]),
    "raising": (f"eig --model nets.py:raising {POINTS}", ["--model", "on the data", "ValueError: first line"]),
    "leaving": (f"eig --model nets.py:leaving {POINTS}", ["--model", "your code called sys.exit(0); remove the call"]),
    "output no tensor": (f"eig --model nets.py:pair {POINTS}", ["--model", "tuple", "tensor"]),
    "inputs that do not fit": (f"eig {LINEAR} --data wide.npz", ["--model", "on the data", "shapes"]),
    "dropout in forward": (f"eig --model nets.py:dropping {POINTS}", ["changes from", "dropout"]),
    "dropout in forward, ggn": (f"eig --model nets.py:dropping {POINTS} --curvature ggn", ["changes from", "dropout"]),
    "no second derivative": (f"eig --model nets.py:once {POINTS}", ["--model", "second derivative"]),
    "no second derivative, ggn": (f"trace --model nets.py:once {POINTS} --curvature ggn", ["second derivative"]),
    "weights not finite": (f"eig --model nets.py:broken_weights {POINTS}", ["not finite"]),
    # checkpoints
    "no checkpoint": (f"eig {PROBLEM} --checkpoint nowhere.pt", ["--checkpoint nowhere.pt", "no such file"]),
    "a text": (f"eig {PROBLEM} --checkpoint nets.py", ["--checkpoint nets.py", "text file"]),
    "keys": (f"eig {PROBLEM} --checkpoint keys.pt", ["--checkpoint keys.pt", "missing weight", "wieght"]),
    "shapes": (f"eig {PROBLEM} --checkpoint shapes.pt", ["--checkpoint shapes.pt", "(3, 4)", "(3, 5)"]),
    "head of another number of classes": (
        f"eig --model nets.py:linear?outputs=5 {POINTS} --checkpoint linear.pt", ["(num_classes=3?); check --model"]
    ),
    "own loss of a model without": (f"eig {PROBLEM} --loss model", ["with the whole batch", "name another --loss"]),
    "names of arrays": (f"eig {LINEAR} --data named.npz", ["no argument features", "the input x and the targets y"]),
    "weights diverged": (f"eig {PROBLEM} --checkpoint nan.pt", ["--checkpoint nan.pt", "bias", "not finite"]),
    # data and losses
    "no such data": (f"eig {LINEAR} --data nowhere.npz", ["--data nowhere.npz", "no such file"]),
    "nameless data": (f"eig {LINEAR} --data nonsense", ["--data nonsense", "digits"]),
    "empty data": (f"eig {LINEAR} --data empty.npz", ["--data empty.npz", "empty"]),
    "data not finite": (f"eig {LINEAR} --data nan.npz", ["--data nan.npz", "example 3"]),
    "labels out of range": (f"eig {LINEAR} --data range.npz", ["--data", "out of range", "3 classes"]),
    "augmentation": (f"eig {LINEAR} --data nets.py:Shaky", ["--data nets.py:Shaky", "is read again", "augmentation"]),
    "all ignored": (f"eig {LINEAR} --data all_ignored.npz", ["ignored"]),
    "mse of labels": (f"eig {PROBLEM} --loss mse", ["--loss mse", "(11, 3)", "(11,)"]),
    "mse of other shapes": (f"eig {LINEAR} --data narrow.npz --loss mse", ["--loss mse", "(11, 3)", "(11, 2)"]),
    "bce of labels": (f"eig {PROBLEM} --loss bce_with_logits", ["--loss bce_with_logits", "(11, 3)"]),
    "cross entropy of other shapes": (f"eig {LINEAR} --data narrow.npz", ["--loss cross_entropy", "(11, 2)"]),
    "no such loss": (f"eig {PROBLEM} --loss crossentropy", ["--loss crossentropy", "cross_entropy"]),
    "no such option": (f"eig {PROBLEM} --loss cross_entropy?smoothing=1", ["smoothing", "label_smoothing"]),
    "smoothing": (f"eig {PROBLEM} --loss cross_entropy?label_smoothing=2", ["label_smoothing is 2"]),
    "weights of classes": (f"eig {PROBLEM} --loss cross_entropy?weight=1,x,2", ["--loss", "weight"]),
    "loss of too few": (f"eig {PROBLEM} --loss nets.py:short", ["--loss nets.py:short", "(2,)", "11 examples"]),
    "no such function": (f"eig {PROBLEM} --loss nets.py:nowhere", ["--loss nets.py:nowhere"]),
}  # fmt: skip


@pytest.mark.parametrize(("line", "fragments"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(line, fragments, call, folder):
    before = sorted(folder.iterdir())
    refused(call(line), *fragments)
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_where_there_is_none(call):
    refused(call(f"eig {PROBLEM} --device cuda"), "--device cuda", "--device cpu")


def test_errors_leave_no_result(call, tmp_path):
    out = tmp_path / "out"
    for command in COMMANDS:
        refused(call(f"{command} --model nets.py:once {POINTS} --out {out}"))
        assert not out.exists()


def test_code_in_a_checkpoint_does_not_run():
    done = process(f"eig {PROBLEM} --checkpoint evil.pt")
    refused(done, "--checkpoint evil.pt", "not run", "torch.save(model.state_dict()")
    assert "weights_only=False" not in done.err
    assert not Path("pwned").exists()


def test_usage_errors_of_a_process():
    refused(process(f"eig {PROBLEM} --nonsense"), "--nonsense")


def test_the_rest_of_an_error_on_request(call, monkeypatch):
    line = "eig --model nets.py:raising --data points.npz"
    monkeypatch.setenv("SPECTRA_TRACEBACK", "1")
    done = call(line)
    assert done.status == 2
    assert "Traceback" in done.err
    assert "second line" in done.err
    assert "in fails" in done.err
    monkeypatch.delenv("SPECTRA_TRACEBACK")
    refused(call(line), "first line")


# Ctrl-C


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "command", ["trace --method hutchinson --rtol 1e-9 --max-products 99999999", "density --probes 99999"]
)
def test_interrupt(command, tmp_path, folder):
    out = tmp_path / "out"
    arguments = shlex.split(f"{command} --model nets.py:mlp --data points.npz --json --out {out}")
    running = subprocess.Popen(
        [sys.executable, "-m", "spectra", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size for p in out.glob("*.state/*.products")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out_text, err_text = running.communicate(timeout=60)
    finally:
        running.kill()
    state = out / f"{command.split()[0]}.state"
    kept = f"{state} holds the work so far; run the same command again to resume"
    assert (running.returncode, out_text, err_text) == (130, "", f"spectra: interrupted; {kept}\n")
    assert list(out.iterdir()) == [state]


# Help, and what is loaded


@pytest.mark.parametrize("line", ["--help", "--version", *(f"{name} --help" for name in (*COMMANDS, "demo"))])
def test_help_loads_nothing_heavy_and_fits(line):
    done = process(line, flags=("-X", "importtime", "-m", "spectra"))
    assert done.status == 0
    loaded = {name.split(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", done.err, re.MULTILINE)}
    assert "click" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "scipy", "matplotlib", "rich"}
    assert max(map(len, done.out.splitlines())) <= 80
    if line == "--version":
        assert spectra.__version__ in done.out


def test_help_is_the_answer_to_nothing(call):
    done = call("")
    assert (done.status, done.err) == (0, "")
    assert all(f"  {command} " in done.out for command in (*COMMANDS, "demo"))


def test_import_is_light():
    script = "import spectra, sys; print({'torch', 'torchvision', 'matplotlib'} & set(sys.modules))"
    assert process("", flags=("-c", script)).out.strip() == "set()"


# Names of models and data


def test_a_module_in_the_current_folder(good, monkeypatch):
    one, two = (good(f"eig --model {name} {POINTS} -k 2") for name in ("zoo.small:build", "zoo/small.py:build"))
    assert one["results"][0]["eigenvalues"] == two["results"][0]["eigenvalues"]


def test_torchvision(good):
    record = good(
        "eig --model torchvision:resnet18?num_classes=10 --params fc.* -k 1 --tol 0.1 "
        "--data 'torchvision:FakeData?size=3&image_size=(3,32,32)&num_classes=10'"
    )
    assert record["problem"]["parameters"] == 5130
    assert record["problem"]["examples"] == 3


def test_digits_come_with_the_package(good):
    record = good("trace --model spectra.demo:mlp --data digits --samples 50 --curvature fisher-empirical")
    assert record["problem"]["parameters"] == 3466
    assert record["problem"]["examples"] == 50
