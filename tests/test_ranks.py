"""Many processes are one: all methods and matrices on 2 and 3 ranks against one process; and how a job ends."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import WHOLE
from rank_cases import CASES, PROBLEMS, answers, problem

from spectra.cli import run
from spectra.cluster import ranks
from spectra.cluster.local_ranks import LocalRanks
from spectra.curvature.engine.batches import own_batches
from spectra.problem.problem import Processes

HERE = Path(__file__).parent
LIMIT = 100  # seconds, beyond which ranks hang
NETWORK = (
    "--model",
    "spectra.demo:mlp",
    "--data",
    "digits",
    "--samples",
    "80",
    "--dtype",
    "float64",
    "--device",
    "cpu",
)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def run_ranks(count: int, *command: str, cwd: Path | None = None, **more: str) -> list[subprocess.CompletedProcess]:
    """The command on so many ranks, as torchrun would start it; all are ended where they take too long.

    `more` is set in the environment of each.
    """
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environment = os.environ | {name: str(value) for name, value in shared.items()} | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment | {"RANK": str(i), "LOCAL_RANK": str(i)} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        for i in range(count)
    ]
    end = time.monotonic() + LIMIT
    try:
        told = [process.communicate(timeout=max(0.1, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *texts)
        for process, texts in zip(processes, told, strict=True)
    ]


@cache
def alone() -> dict:
    return answers(Processes())


@pytest.fixture(scope="module", params=[2, 3] if WHOLE else [3], ids=lambda count: f"{count} ranks")
def several(request, tmp_path_factory) -> tuple[int, dict]:
    path = tmp_path_factory.mktemp("ranks") / "answers.pt"
    ended = run_ranks(request.param, str(HERE / "rank_cases.py"), str(path))
    assert [process.returncode for process in ended] == [0] * request.param, [process.stderr for process in ended]
    return request.param, torch.load(path)


def assert_alike(found, expected) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11, nan_ok=True)
    else:
        assert found == expected


@pytest.mark.parametrize("case", CASES, ids="; ".join)
def test_several_ranks_find_what_one_does(several, case):
    found, expected = several[1][case], alone()[case]
    assert found.keys() == expected.keys()
    for what, value in expected.items():
        assert_alike(found[what], value)


@pytest.mark.parametrize("of", PROBLEMS)
def test_loss_and_gradient_are_those_of_all_data(several, of):
    for what, value in alone()[of].items():
        assert_alike(several[1][of][what], value)


def test_each_rank_holds_its_part_of_a_vector(several):
    count, found = several
    n = problem(Processes()).size
    most = math.ceil(n / count)
    assert found["parts"]["held"].tolist() == [2.0 * min(most, n - most * i) for i in range(count)]
    assert found["alike"] == {"least": 1, "mesh": "(Shard(dim=1),)"}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 10, 23])
@pytest.mark.parametrize("whole", [True, False])
def test_every_example_is_dealt_once(count, size, whole):
    shares = [own_batches(problem(Processes(rank, count), size=size), whole) for rank in range(count)]
    dealt = torch.cat([batch.indices for batches in shares for batch in batches])
    assert dealt.sort().values.tolist() == list(range(23))
    if whole:
        assert {len(batch) for batches in shares for batch in batches} <= {size, 23 % size}
    elif size == 23:
        assert {sum(map(len, batches)) for batches in shares} <= {23 // count, 23 // count + 1, 23 - 4 * 5}


def run_alone(capfd, *arguments: str) -> dict:
    """The answer of the command in this process."""
    assert run([*arguments]) == 0
    return json.loads(capfd.readouterr().out)


def test_torchrun_writes_once_what_one_process_writes(tmp_path, capfd):
    command = ["eig", *NETWORK, "-k", "3", "--curvature", "hessian", "--curvature", "ggn", "--json", "--out"]
    one = run_alone(capfd, *command, str(tmp_path / "one"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spectra"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*torchrun, *command, str(tmp_path / "two")]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    two = json.loads(ended.stdout)  # one object: rank 1 prints nothing
    assert json.loads((tmp_path / "two/eig.json").read_text()) == two
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["eig.json", "eig.npz"]
    assert (one["problem"]["ranks"], two["problem"]["ranks"]) == (1, 2)
    for here, there in zip(one["results"], two["results"], strict=True):
        assert there["eigenvalues"] == pytest.approx(here["eigenvalues"], rel=1e-9)
        assert there["products"] == here["products"]
        np.testing.assert_allclose(there["localisation"]["shares"], here["localisation"]["shares"], rtol=1e-6)
    with np.load(tmp_path / "one/eig.npz") as here, np.load(tmp_path / "two/eig.npz") as there:
        assert set(here) == set(there)
        for name in ("eigenvectors_hessian", "eigenvectors_ggn"):
            np.testing.assert_allclose(np.abs(np.sum(here[name] * there[name], axis=1)), 1, rtol=1e-6)


def test_a_comparison(tmp_path, capfd):
    """Class means included, which take whole eigenvectors; and twice the same matrix, but for rounding."""
    few = ["-k", "2", "--probes", "3", "--steps", "6", "--json"]
    first, second = run_ranks(2, "-m", "spectra", "compare", *NETWORK, *few)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    found, expected = json.loads(first.stdout), run_alone(capfd, "compare", *NETWORK, *few)
    for what in ("class_structure", "pairs", "causes"):
        assert found[what].__class__ is expected[what].__class__
        assert_close(found[what], expected[what])


def test_a_matrix_block_by_block(tmp_path, capfd):
    """Its numbers and arrays; every process draws, one writes."""
    command = ["layers", *NETWORK, "-k", "2", "--rtol", "0.1", "--tol", "1e-5", "--density", "--steps", "4", "--json"]
    first, second = run_ranks(2, "-m", "spectra", *command, "--out", str(tmp_path / "two"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (second.stdout, second.stderr) == ("", "")
    expected = run_alone(capfd, *command, "--out", str(tmp_path / "one"))
    found = json.loads(first.stdout)
    for path in ("noise", "kept_bytes", "peak_bytes"):
        found["results"][0].pop(path), expected["results"][0].pop(path)
    assert_close(found["results"], expected["results"])
    with np.load(tmp_path / "one/layers.npz") as here, np.load(tmp_path / "two/layers.npz") as there:
        assert set(here) == set(there) == {"diagonal_hessian", "errors_hessian", "block_eigenvectors_hessian"}
        np.testing.assert_allclose(there["diagonal_hessian"], here["diagonal_hessian"], rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(there["errors_hessian"], here["errors_hessian"], rtol=1e-7, atol=1e-10)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        *("layers-density.png", "layers.json", "layers.npz", "layers.png")
    ]


def assert_close(found, expected) -> None:
    """All numbers in what JSON has made of them, texts and clocks aside."""
    if isinstance(expected, dict):
        for name in expected.keys() - {"seconds", "setup_seconds", "sentence", "rounding"}:
            assert_close(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for here, there in zip(found, expected, strict=True):
            assert_close(here, there)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_density_beside_known_eigenvectors(tmp_path, capfd):
    """Deflated by what one process has left; one figure, one answer."""
    run_alone(capfd, "eig", *NETWORK, "-k", "2", "--json", "--out", str(tmp_path))
    command = ["density", *NETWORK, "--steps", "8", "--probes", "2", "--json", "--out", str(tmp_path)]
    first, second = run_ranks(2, "-m", "spectra", *command)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (second.stdout, second.stderr) == ("", "")
    found = json.loads(first.stdout)["results"][0]
    assert found["projected_out"] == 2
    expected = run_alone(capfd, *command)["results"][0]
    for what in ("nodes", "weights"):
        np.testing.assert_allclose(found[what], expected[what], rtol=1e-7, atol=1e-9)
    written = {*("eig.json", "eig.npz"), *("density.json", "density.npz", "density.png")}
    assert {path.name for path in tmp_path.iterdir()} == written


FAILURES = """
import os, signal, time, torch
rank = int(os.environ["RANK"])

def alike(slow=None):
    if rank == slow:
        time.sleep(3)
    raise ValueError("no such data anywhere")

def slow_0():
    alike(0)

def slow_1():
    alike(1)

def one():
    if rank == 1:
        raise ValueError("no such data here")
    return torch.zeros(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64)

def killed():
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64)

class Late(torch.nn.Module):
    "Fails on the share of rank 1, once all have begun."
    def __init__(self):
        super().__init__()
        self.layer, self.calls = torch.nn.Linear(64, 10), 0
    def forward(self, x):
        self.calls += 1
        if rank == 1 and self.calls > 3:
            raise ValueError("lost its way")
        return self.layer(x.flatten(1))
"""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("data", "model", "line"),
    [
        ("alike", "spectra.demo:mlp", "spectra: --data fails.py:alike: "),
        ("slow_0", "spectra.demo:mlp", "spectra: --data fails.py:slow_0: "),
        ("slow_1", "spectra.demo:mlp", "spectra: --data fails.py:slow_1: "),
        ("one", "spectra.demo:mlp", "spectra: rank 1: --data fails.py:one: "),
        ("killed", "spectra.demo:mlp", "spectra: a rank died without an error message"),
        ("digits", "fails.py:Late", "spectra: rank 1: --model: fails on the data (ValueError: lost its way)"),
    ],
)
def test_a_rank_that_fails_ends_the_job_with_one_line(tmp_path, data, model, line):
    (tmp_path / "fails.py").write_text(FAILURES)
    data = data if data == "digits" else f"fails.py:{data}"
    command = ["-m", "spectra", "eig", "--model", model, "--data", data, "--json", "--out", str(tmp_path / "out")]
    first, second = run_ranks(2, *command, "--device", "cpu", cwd=tmp_path)
    assert first.returncode != 0
    assert second.returncode != 0
    assert first.stdout == second.stdout == ""
    lines = (first.stderr + second.stderr).splitlines()
    assert len([text for text in lines if text.startswith("spectra:")]) == 1, lines
    assert any(text.startswith(line) for text in lines), lines
    assert not any((tmp_path / "out").glob("*.json"))


ENDED = """
import os, signal, threading, time

def end():
    os.kill(os.getpid(), int(os.environ["BY"]))

mine, where = os.environ.get("RANK") == os.environ["WHOSE"], os.environ["WHERE"]
if mine and where == "start":
    end()
"""
ENDING = """
import time, torch
from sitecustomize import end, mine, where

def data():
    if where == "data":
        end() if mine else time.sleep(1)
    return torch.rand(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = torch.nn.Linear(64, 10), 0

    def forward(self, x):
        self.calls += 1
        if mine and where == "products" and self.calls == 25:
            end()
        return self.layer(x.flatten(1))
"""
LOST = "spectra: a rank died without an error message"
NEVER = "spectra: torchrun: no process on this machine for rank {} of 2"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("whose", "where", "by", "line"),
    [
        (0, "start", signal.SIGKILL, NEVER.format(0)),
        (1, "start", signal.SIGKILL, NEVER.format(1)),
        (0, "data", signal.SIGKILL, LOST),
        (0, "products", signal.SIGKILL, LOST),
        (0, "products", signal.SIGTERM, "spectra: terminated"),
        (1, "products", signal.SIGTERM, "spectra: rank 1: terminated"),
    ],
)
def test_a_rank_that_is_ended_from_outside_ends_the_job_with_one_line(tmp_path, whose, where, by, line):
    """Whoever it is and wherever it was, met by the others or not; and no word of C++."""
    (tmp_path / "sitecustomize.py").write_text(ENDED)
    (tmp_path / "ending.py").write_text(ENDING)
    command = ["eig", "--model", "ending.py:Net", "--data", "ending.py:data", "-k", "3", "--memory", "0", "--json"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    settings = {"WHOSE": str(whose), "WHERE": where, "BY": str(int(by)), "PYTHONPATH": path}
    begun = time.monotonic()
    ended = run_ranks(2, "-m", "spectra", *command, "--device", "cpu", cwd=tmp_path, **settings)
    assert where != "start" or time.monotonic() - begun < 20
    assert ended[whose].returncode == (143 if by is signal.SIGTERM else -by)
    assert ended[1 - whose].returncode == 2
    assert ended[0].stdout == ended[1].stdout == ""
    lines = (ended[0].stderr + ended[1].stderr).splitlines()
    (told,) = [text for text in lines if text.startswith("spectra: ")]
    assert told.startswith(line)
    assert not any(text.startswith(("frame #", "Exception raised", "terminate", "Traceback")) for text in lines)


def test_ranks_of_other_jobs_are_not_missed(monkeypatch):
    """Nor those that are not on this machine; one that ends is, although nobody has asked how it ended."""
    ours = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    sleeping = [sys.executable, "-c", "input()"]
    started = [
        subprocess.Popen(sleeping, env=os.environ | other, stdin=subprocess.PIPE)
        for other in ({"RANK": "1"}, {"RANK": "2", "MASTER_PORT": "2"})
    ]
    try:
        siblings = LocalRanks()
        siblings.look()
        assert (siblings.living(), siblings.gone(), siblings.never_seen()) == ({1}, set(), set())
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        assert siblings.never_seen() == {2}
        started[0].kill()
        while siblings.living():
            time.sleep(0.01)
        assert siblings.gone() == {1}
    finally:
        for process in started:
            process.kill()
            process.communicate()


FULL = """
import os, torch
replace = os.replace

def full(file, target):
    if str(target).endswith("eig.json"):  # which rank 0 writes as the others wait for that
        raise OSError(28, "No space left on device")
    replace(file, target)

def net():
    os.replace = full
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_a_result_that_cannot_be_written_ends_the_job(tmp_path):
    (tmp_path / "full.py").write_text(FULL)
    command = ["-m", "spectra", "eig", "--model", "full.py:net", *NETWORK[2:], "-k", "1", "--out", "out"]
    first, second = run_ranks(2, *command, cwd=tmp_path)
    assert (first.returncode, second.returncode, first.stdout, second.stdout) == (2, 0, "", "")
    (line,) = [text for text in (first.stderr + second.stderr).splitlines() if text.startswith("spectra:")]
    assert line.startswith("spectra: --out out")


KILLED = """
import os, signal, torch

class Net(torch.nn.Module):
    "Has rank 1 killed after so many calls."
    def __init__(self):
        super().__init__()
        self.layer, self.calls = torch.nn.Linear(64, 10), 0
    def forward(self, x):
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls == int(os.environ["CALLS"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x.flatten(1))
"""


def test_ranks_that_were_killed_go_on_together(tmp_path, monkeypatch):
    """Each from its own part of the products, to the numbers of a run that was not: bit for bit."""
    (tmp_path / "net.py").write_text(KILLED)
    command = ["-m", "spectra", "eig", "--model", "net.py:Net", *NETWORK[2:], "-k", "3", "--memory", "0", "--json"]
    told = []
    for calls, out in (0, "whole"), (42, "cut"), (0, "cut"):
        monkeypatch.setenv("CALLS", str(calls))
        first, second = run_ranks(2, *command, "--out", out, cwd=tmp_path)
        assert (second.returncode == 0) == (calls == 0), second.stderr
        told.append(first)
    state = sorted(path.name for path in (tmp_path / "cut").rglob("*"))
    assert state == ["eig.json", "eig.npz"]  # and nothing of what was unfinished
    assert told[1].returncode != 0
    assert "resumes after" in told[2].stderr
    whole, again = (json.loads(ended.stdout)["results"][0] for ended in (told[0], told[2]))
    for what in ("eigenvalues", "residuals", "products"):
        assert again[what] == whole[what]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (0, 1)),  # of some other program: nobody to meet
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, (1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, (0, 1)),
    ],
)
def test_ranks_are_those_of_torchrun(monkeypatch, environment, expected):
    for name in ranks.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (ranks.rank(), ranks.world()) == expected
