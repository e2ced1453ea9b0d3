"""A thousand wrong inputs: each ends in one line that says what to put right, and leaves every file as it was.

`pytest --hypothesis-show-statistics` counts how each kind ended.
"""

import json
import re
import sys
from pathlib import Path

import pytest
from bad_files import FIELDS, GOOD
from bad_inputs import KINDS, Kind
from bad_lines import VALID, Wrong
from hypothesis import HealthCheck, Phase, event, given, settings

from spectra.cli import run

WRONG = 1000  # inputs that are so for certain; those of which some turn out valid come on top
LONGEST = 600  # characters of an error
SHARES = sum(kind.share for kind in KINDS.values() if 0 not in kind.statuses)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a user has: good files, and results in out/."""
    folder = tmp_path_factory.mktemp("user")
    write(folder, GOOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in FIELDS:
            valid = [part for pair in VALID[command].items() for part in pair]
            assert run([command, *valid, "--checkpoint", "linear.pt", "--out", "out"]) == 0
    return folder


@pytest.fixture(autouse=True)
def at_home(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("SPECTRA_TRACEBACK", raising=False)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_back(folder: Path, files: dict[str, bytes]) -> None:
    """The folder holds these files and nothing else."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    write(folder, {name: content for name, content in files.items() if files_in(folder).get(name) != content})


@pytest.mark.sampled(20)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_wrong_inputs(kind: Kind, folder, capfd):
    home = files_in(folder)

    @settings(
        max_examples=-(-WRONG * kind.share // SHARES),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.wrong)
    def every(wrong: Wrong):
        try:
            write(folder, wrong.files)
            before = files_in(folder)
            capfd.readouterr()
            status = run(wrong.line)
            event(f"status {status}")
            out, err = capfd.readouterr()
            assert status in kind.statuses, (status, err)
            if status == 2:
                assert out == ""
                assert_one_line(err, wrong.names)
                assert files_in(folder) == before
            else:
                assert out.endswith("\n")
                assert all(line.startswith("spectra: ") for line in err.splitlines()), err
                assert_whole(folder, wrong.line[0], before)
        finally:
            put_back(folder, home)

    every()


def assert_one_line(err: str, names) -> None:
    """The argument, what came, and the way out, for a terminal."""
    assert err.startswith("spectra: ")
    assert err.endswith("\n")
    line = err[:-1]
    assert line.isprintable(), ascii(line)
    assert len(line) <= LONGEST, (len(line), line)
    assert re.search(r"--\w|-k|RESULT|command", line), line
    for name in names:
        assert name in line, line
    for inner in ("Traceback", "Warning", "spectra_user"):
        assert inner not in line, line
    assert re.search(r"; \S|see 'spectra", line), f"no way out: {line}"


def assert_whole(folder: Path, command: str, before: dict[str, bytes]) -> None:
    """What is new or changed is a result of the command, and nothing of it is half written."""
    for name, content in files_in(folder).items():
        if before.get(name) != content:
            assert Path(name).stem in (command, "figure"), name
            if name.endswith(".json"):
                json.loads(content)
