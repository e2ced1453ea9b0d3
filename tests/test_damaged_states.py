"""Whatever happens to a file of a state: the same numbers, what is damaged made anew; or one line. Nothing hangs.

Each damage is done to a copy of a state that holds a finished matrix and half of another.
"""

import os
import random
import shlex
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_resume import cut_at, numbers

from spectra.cli import run

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
"""
BASE = "--model nets.py:net --data data.npz --memory 0 --curvature hessian --curvature ggn"
COMMANDS = {"eig": "eig -k 3 --tol 1e-4", "trace": "trace --method hutchinson --rtol 0.2"}
FILES = {
    "eig": ["manifest.json", "lock", "hessian.sample", "hessian.done", "ggn.sample", "ggn.products", "ggn.steps"],
    "trace": ["manifest.json", "lock", "hessian.sample", "hessian.done", "ggn.sample", "ggn.steps"],
}
SECONDS = 60  # in which a run of a second has hung


class Damage(NamedTuple):
    command: str
    file: str
    kind: str
    draw: float  # where it is

    def __str__(self):
        return f"{self.command}-{self.file}-{self.kind}-{self.draw:.3f}"


def flipped(path: Path, draw: float) -> None:
    content = bytearray(path.read_bytes())
    if content:
        place = int(draw * 8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)


def cut(path: Path, draw: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(draw * len(content))])


def overwritten(path: Path, draw: float) -> None:
    content = bytearray(path.read_bytes())
    place = int(draw * len(content))
    content[place : place + 16] = random.Random(draw).randbytes(16)
    path.write_bytes(content)


def lengthened(path: Path, draw: float) -> None:
    path.write_bytes(path.read_bytes() + random.Random(draw).randbytes(int(200 * draw)))


def swapped(path: Path, draw: float) -> None:
    """With another file of the state."""
    other = random.Random(draw).choice([p for p in sorted(path.parent.iterdir()) if p != path])
    path.rename(path.with_name("third"))
    other.rename(path)
    path.with_name("third").rename(other)


def exchanged(path: Path, draw: float) -> None:
    """By the same file of another problem."""
    shutil.copy(Path("others", path.parent.name, path.name), path)


def directory(path: Path, draw: float) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, draw: float) -> None:
    path.unlink()
    os.mkfifo(path)


def listening(path: Path, draw: float) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link(path: Path, draw: float) -> None:
    path.unlink()
    path.symlink_to(Path("precious").absolute())


def dangling(path: Path, draw: float) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def device(path: Path, draw: float) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def second_name(path: Path, draw: float) -> None:
    path.rename("precious")
    path.hardlink_to("precious")


def missing(path: Path, draw: float) -> None:
    path.unlink()


def unreadable(path: Path, draw: float) -> None:
    path.chmod(0)


CONTENTS = {flipped: 36, cut: 16, overwritten: 8, lengthened: 3, swapped: 5, exchanged: 1, second_name: 1, missing: 1}
WRONG = {directory: 1, pipe: 1, listening: 1, link: 1, dangling: 1, device: 1, unreadable: 1}
HOW: dict[str, Callable] = {how.__name__: how for how in (*CONTENTS, *WRONG)}
EVERY = [
    Damage(command, file, how.__name__, random.Random(f"{command} {file} {how.__name__} {i}").random())
    for command, files in FILES.items()
    for file in files
    for how, times in (CONTENTS | WRONG).items()
    for i in range(times)
]


def arguments(command: str, out: str, more: str = "") -> list[str]:
    return shlex.split(f"{COMMANDS[command]} {BASE} --out {out} {more}")


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """States of each command in unfinished/, its result in unfinished-COMMAND/; in others/ those of another problem."""
    home = tmp_path_factory.mktemp("states")
    draw = np.random.default_rng(0)
    np.savez(home / "data.npz", x=draw.normal(size=(24, 6)), y=draw.integers(3, size=24))
    (home / "nets.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for command, files in FILES.items():
            for out, more in (("unfinished", ""), ("others", "--seed 1")):
                with pytest.MonkeyPatch.context() as counting:
                    left = cut_at(counting, 10**9)
                    assert run(arguments(command, f"{out}-{command}", more)) == 0
                with pytest.MonkeyPatch.context() as cutting:
                    cut_at(cutting, 10**9 - left[0] - 1)
                    assert run(arguments(command, out, more)) == 130
                assert {path.name for path in Path(out, f"{command}.state").iterdir()} >= set(files)
    return home


@pytest.fixture
def limited():
    """A run that hangs ends as a failure."""

    def end(*_):
        raise AssertionError("the run hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.sampled(15)
@pytest.mark.parametrize("damage", EVERY, ids=str)
def test_damage_costs_products_or_is_told_in_one_line(damage, states, tmp_path, monkeypatch, capfd, limited):
    shutil.copytree(states, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("precious").write_bytes(b"of a user")
    file = Path("unfinished", f"{damage.command}.state", damage.file)
    HOW[damage.kind](file, damage.draw)
    precious = Path("precious").read_bytes()
    capfd.readouterr()

    status = run(arguments(damage.command, "unfinished"))
    shown, told = capfd.readouterr()
    lines = told.splitlines()
    assert Path("precious").read_bytes() == precious
    assert all(line.startswith("spectra: ") for line in lines), told
    if status == 2:
        assert shown == ""
        assert len([line for line in lines if "--out" in line]) == 1
        assert "SPECTRA_TRACEBACK" not in told
        assert not Path("unfinished", f"{damage.command}.json").exists()
    else:
        assert status == 0
        assert numbers(f"unfinished/{damage.command}.json") == numbers(
            f"unfinished-{damage.command}/{damage.command}.json"
        )
        assert not file.parent.exists()
