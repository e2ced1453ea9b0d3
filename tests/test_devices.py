"""Devices: cards by number, a Mac's GPU, cards that are idle, and commands on a device that is not the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import spectra
from spectra import devices
from spectra.cli import run
from spectra.cluster import ranks
from spectra.errors import SpectraError
from spectra.inputs.devices import choose_device, choose_device_and_dtype, recorded_device
from spectra.krylov.placement import placement
from spectra.memory import memory_share
from spectra.records.problem import ProblemRecord
from spectra.run.basis import ShardedSpace, name_of
from spectra.run.loading import device_of, idle_cards
from spectra.run.session import Session
from spectra.sweeps.local import environments

PROBLEM = "--model spectra.demo:mlp --data digits --samples 60"
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
MPS = torch.device("mps", 0)
STAND_IN = Path(__file__).parent / "stand_in.py"
stands_in = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices made in Python",
)


@pytest.fixture
def cards(monkeypatch):
    """Pretend that there are so many CUDA devices."""

    def pretend(count: int, current: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)

    return pretend


@pytest.fixture
def mac(monkeypatch):
    """Pretend that there is a Mac's GPU of 8 GiB, 6 of them free, with numbers kept on the CPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * 2**30)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.zeros(4, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda _: None)
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *_, device: SimpleNamespace(device=MPS if device.type == "mps" else device)
    )
    yield
    monkeypatch.setattr(torch, "empty", empty)


def refused(capsys, line: str) -> str:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_cards_have_numbers(cards):
    cards(3, current=1)
    assert choose_device("cuda:2") == torch.device("cuda", 2)
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 1)
    assert choose_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "there"), [(1, "use --device cuda:0, or cpu"), (3, "use --device cuda:0 to cuda:2, or cpu")]
)
def test_a_card_that_is_not_there(cards, capsys, count, there):
    cards(count)
    assert there in refused(capsys, f"eig {PROBLEM} --device cuda:{count}")
    cards(0)
    assert "torch finds no CUDA device here" in refused(capsys, f"trace {PROBLEM} --device cuda:{count}")


@pytest.mark.parametrize("name", ["cuda:", "cuda:-1", "cuda:01", "cuda:x", "cpu:0", "tpu", "mps:0", ""])
def test_names_that_are_none(capsys, name):
    error = refused(capsys, f"eig {PROBLEM} --device={name}")
    assert "--device" in error
    assert "auto, cpu, cuda, cuda:N, mps" in error


@pytest.mark.parametrize(("device", "asked", "expected"), [
    ("cuda:0", None, "cuda"), ("cuda:0", "cuda", "cuda"), ("cuda:0", "cuda:0", "cuda:0"), ("cuda:1", None, "cuda:1"),
    ("cuda:1", "cuda:1", "cuda:1"), ("cpu", "auto", "cpu"), ("mps:0", "mps", "mps"),
])  # fmt: skip
def test_the_device_in_a_record(device, asked, expected):
    assert recorded_device(torch.device(device), asked) == expected


def request(device: str, ranks: bool = True) -> SimpleNamespace:
    settings = SimpleNamespace(command="eig")
    return SimpleNamespace(problem={"model": "a.py:b", "device": device}, ranks=ranks, settings=settings)


def test_ranks_take_cards_of_their_own(cards, mac, monkeypatch):
    cards(4, current=3)
    monkeypatch.setattr(ranks, "world", lambda: 4)
    assert device_of(request("cuda")) == device_of(request("auto")) == torch.device("cuda", 3)
    for name, way_out in (("cuda:1", "give `device` cuda,"), ("mps", "give `device` cpu")):
        with pytest.raises(SpectraError, match=rf"`device` {name}: .* torchrun's ranks; {way_out}"):
            device_of(request(name))
        assert (
            device_of(request(name, ranks=False)).type == name.partition(":")[0]
        )  # Python's, where ranks are not ours


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_run_resumes_on_another_card(device):
    """What a resumed run compares names the kind of device alone."""
    session = object.__new__(Session)
    session.request = SimpleNamespace(
        settings=SimpleNamespace(command="eig"),
        options={"curvature": [], "device": device},
        problem={"model": "a.py:b"},
    )
    session.matrix_source = SimpleNamespace(names=(), fingerprint=dict)
    session.problem_record = ProblemRecord.known(
        parameters=1, examples=1, batch_size=1, seed=0, loss_value=1.0, device=device, versions={"spectra": "0"}
    )
    assert session.fingerprint()["device"] == "cuda"


def test_idle_cards_are_told_of(cards):
    cards(4)
    card = torch.device("cuda", 0)
    for name in ("auto", "cuda", None):
        assert "cuda:0 is used, but not the other 3 GPUs" in idle_cards(request(name), card)
        assert "`torchrun --nproc-per-node 4 -m spectra eig ...`" in idle_cards(request(name), card)
    assert idle_cards(request("cuda:1"), torch.device("cuda", 1)) is None
    assert idle_cards(request("auto", ranks=False), card) is None
    assert idle_cards(request("auto"), torch.device("cpu")) is None
    cards(1)
    assert idle_cards(request("auto"), card) is None


def test_a_sweep_deals_the_cards(cards):
    cards(2)
    run_here = SimpleNamespace(jobs=None, threads=None)
    plan = SimpleNamespace(options={"eig": {"device": "cuda"}, "trace": {"device": "cuda:1"}}, run=run_here)
    with pytest.raises(SpectraError, match=r"`device` cuda:1: .* CUDA_VISIBLE_DEVICES"):
        environments(plan)


def test_a_mac_has_no_float64(mac):
    assert choose_device_and_dtype("a.py:b", "mps", None) == (torch.device("mps", 0), torch.float32)
    assert choose_device("auto").type != "mps"  # it has to be asked for
    with pytest.raises(SpectraError, match="`dtype` float64: device mps has no float64; use `dtype` float32"):
        choose_device_and_dtype("a.py:b", "mps", "float64")
    assert devices.device_of_vectors(torch.device("mps", 0)) == torch.device("cpu")
    assert devices.device_of_vectors(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert memory_share(torch.device("mps", 0)) == 2 * 2**30


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="asks for a Mac's GPU where there is none")
def test_a_basis_lies_where_the_vectors_are():
    """On a Mac that is the CPU, for the place of a basis as for the matrix."""
    for kind, vectors in (("mps", "cpu"), ("cuda", "cuda"), ("cpu", "cpu")):
        problem = SimpleNamespace(size=3, dtype=torch.float32, device=torch.device(kind), processes=None)
        space = ShardedSpace(problem)
        assert (space.device.type, space.mesh, space.shape) == (vectors, None, (3, 3))
        if kind == "mps":
            assert name_of(placement(space, 30), space) == "device"


def test_a_mac_that_is_none(capsys):
    assert "--device mps: torch finds no Apple GPU here" in refused(capsys, f"eig {PROBLEM} --device mps")


def test_generators_come_back(mac, monkeypatch):
    told = []
    monkeypatch.setattr(torch.mps, "set_rng_state", told.append)
    before = devices.generator_states()
    drawn = torch.rand(3)
    devices.restore_generators(before)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(told[0], before["mps"])


def on_stand_in(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(STAND_IN), *words, "--json"]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


@stands_in
@pytest.mark.parametrize("without", [(), ("--without-float64",)], ids=["like CUDA", "like a Mac"])
def test_commands_on_another_device(tmp_path, without, capfd):
    """The same numbers as on the CPU, where no operation may mix the two."""
    curvatures = ("hessian", "ggn", "fisher-mc", "gradient-covariance")
    line = ["eig", *PROBLEM.split(), "-k", "2", "--tol", "1e-5", *(w for c in curvatures for w in ("--curvature", c))]
    done = on_stand_in(tmp_path, *without, *line)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problem"]["device"] in ("npu", "privateuseone")
    assert run([*line, "--device", "cpu", "--json"]) == 0
    expected = json.loads(capfd.readouterr().out)
    for one, other in zip(found["results"], expected["results"], strict=True):
        np.testing.assert_allclose(one["eigenvalues"], other["eigenvalues"], rtol=1e-4)


@stands_in
@pytest.mark.sampled(1)
@pytest.mark.parametrize("line", [
    "eig -k 2 --method gram --curvature fisher-empirical", "trace --method hutchinson --probes 3 --curvature fisher",
    "density --steps 6 --probes 2", "landscape --along 1 --along random --points 5", "inspect", "step -k 2",
    "compare -k 1 --steps 4 --probes 2", "layers -k 1 --rtol 1",
])  # fmt: skip
def test_every_command_runs_without_float64(tmp_path, line):
    command, *words = line.split()
    done = on_stand_in(tmp_path, "--without-float64", command, *PROBLEM.split(), *words, "--out", "results")
    assert done.returncode in (0, 1), done.stderr


@CUDA
def test_a_card_by_number(capsys, tmp_path):
    line = f"eig {PROBLEM} -k 2 --dtype float64 --tol 1e-9 --json"
    found = {}
    for device in ("cuda:0", "cuda", "cpu"):
        assert run([*line.split(), "--device", device, "--out", str(tmp_path / device.replace(":", ""))]) == 0
        found[device] = json.loads(capsys.readouterr().out)
        assert found[device]["problem"]["device"] == device
    values = {device: record["results"][0]["eigenvalues"] for device, record in found.items()}
    assert values["cuda:0"] == values["cuda"]
    np.testing.assert_allclose(values["cuda"], values["cpu"], rtol=1e-10)
    assert run(["eig", "--config", str(tmp_path / "cuda0" / "eig.json"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["problem"]["device"] == "cuda:0"
    assert again["results"][0]["eigenvalues"] == values["cuda"]


@CUDA
def test_the_last_card_is_current_meanwhile(monkeypatch):
    """What names no device is on the card of the model, and afterwards the current card is as it was."""
    count, seen = torch.cuda.device_count(), []
    last, before = torch.device("cuda", count - 1), torch.cuda.current_device()

    class Looking(nn.Linear):
        def forward(self, x):
            seen.append(torch.cuda.current_device())
            return super().forward(x)

    model = Looking(4, 3).to(last)
    x, y = torch.randn(20, 4, device=last), torch.arange(20, device=last) % 3
    result = spectra.eig(model, nn.CrossEntropyLoss(), (x, y), k=2)
    assert set(seen) == {last.index}
    assert torch.cuda.current_device() == before
    assert len(result.values) == 2
