"""A run that is cut off anywhere, and begun again, ends with the numbers of one that was not: bit for bit."""

import fcntl
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import seeded, uniform, with_spectrum

from spectra.cli import run
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.dense import dense_eigenpairs
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.hutch_plus_plus import hutch_plus_plus
from spectra.krylov.hutchinson import hutchinson
from spectra.krylov.power import power_iteration
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.xtrace import xtrace
from spectra.operator import Counting, Wrapper
from spectra.resume.journal import CheckpointedOperator, Journal, JournalSettings
from spectra.resume.journal_file import RECORD, Log, head
from spectra.resume.state import State

MATRIX = with_spectrum([*uniform(55, -1, 1), 3.0, 3.0, -4.0, 5.0, 9.0]).float()
METHODS = {
    "eigenpairs": partial(eigenpairs, k=3, tolerance=1e-5),
    "eigenpairs, restarted": partial(eigenpairs, k=2, tolerance=1e-5, largest_basis=12),
    "power": partial(power_iteration, k=1),
    "dense": partial(dense_eigenpairs, k=2),
    "xtrace": partial(xtrace, probes=20),
    "hutch++": partial(hutch_plus_plus, rtol=0.1),
    "hutchinson": partial(hutchinson, rtol=0.1),
    "density": partial(spectral_measure, probes=5, steps=12),
    "density, two at once": partial(spectral_measure, probes=5, steps=12, largest_basis=36),
}


class Cut(BaseException):
    """The end of a process, as far as a method can see."""


class Cutting(Wrapper):
    """The same matrix; after `left` calls the process ends."""

    def __init__(self, operator, left=10**9):
        super().__init__(operator)
        self.left = self.calls = left

    def __matmul__(self, vectors):
        if not self.left:
            raise Cut
        self.left -= 1
        return self.operator @ vectors

    @property
    def made(self):
        return self.calls - self.left


def unwritable(error):
    raise AssertionError(error)


SETTINGS = JournalSettings(failed=unwritable)


def fields(answer):
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(answer).items()}


def measured(method, path, calls=10**9):
    """The method's answer beside a journal, from a matrix that gives so many products; and how many it gave."""
    matrix, journal = Cutting(MATRIX, calls), Journal(path, SETTINGS)
    try:
        answer = METHODS[method](Counting(CheckpointedOperator(matrix, journal)), generator=seeded(1))
    finally:
        journal.close()
    return fields(answer), matrix.made


@pytest.mark.parametrize("method", METHODS)
def test_a_method_cut_off_anywhere_ends_alike(method, tmp_path):
    whole, calls = measured(method, tmp_path / "whole")
    assert whole == fields(METHODS[method](Counting(MATRIX), generator=seeded(1)))
    for cut in {1, 2, calls // 3, calls // 2, calls - 1} & set(range(1, calls)):
        path = tmp_path / str(cut)
        with pytest.raises(Cut):
            measured(method, path, cut)
        again, made = measured(method, path)
        assert again == whole
        assert made == calls - cut + 1  # that of the sample, to see that the matrix is the same


@pytest.mark.parametrize("method", METHODS)
def test_a_method_cut_off_again_and_again(method, tmp_path):
    whole, _ = measured(method, tmp_path / "whole")
    for _ in range(500):
        try:
            again, _ = measured(method, tmp_path / "cut", 3)  # one is the check, so that two are new
        except Cut:
            continue
        assert again == whole
        return
    pytest.fail("no progress")


def test_a_finished_step_leaves_no_products(tmp_path):
    measured("density", tmp_path / "a")
    vector = MATRIX[0].nbytes
    first_run = 12 * (RECORD + vector)
    assert (tmp_path / "a.products").stat().st_size == len(head(tmp_path / "a", "")) + first_run
    journal = Journal(tmp_path / "a", SETTINGS)
    assert journal.held(vector) == 12 + 5 * 12
    journal.close()


@pytest.mark.parametrize("method", ["eigenpairs", "density, two at once"])
@pytest.mark.parametrize("kind", ["sample", "products", "steps"])
def test_damaged_files_cost_products_and_nothing_else(method, kind, tmp_path):
    """Cut at any byte, or with any byte changed."""
    whole, calls = measured(method, tmp_path / "whole")
    with pytest.raises(Cut):
        measured(method, tmp_path / "cut", calls - 4)
    kept = {path: path.read_bytes() for path in tmp_path.glob("cut.*")}
    draw = random.Random(0)
    for _ in range(12):
        for path in tmp_path.glob("cut.*"):
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
        if not (content := bytearray(kept.get(tmp_path / f"cut.{kind}", b""))):
            return
        place = draw.randrange(len(content))
        damaged = content[:place] if draw.random() < 0.5 else content
        if len(damaged) == len(content):
            damaged[place] ^= 0x10
        (tmp_path / f"cut.{kind}").write_bytes(damaged)
        assert measured(method, tmp_path / "cut")[0] == whole


def test_the_products_of_another_vector_are_made_anew(tmp_path):
    measured("eigenpairs", tmp_path / "a")
    method = partial(eigenpairs, k=3, tolerance=1e-5)
    matrix, journal = Cutting(MATRIX), Journal(tmp_path / "a", SETTINGS)
    other = method(CheckpointedOperator(matrix, journal), generator=seeded(2))
    journal.close()
    assert matrix.made == other.products + 1  # that of the sample
    assert fields(other) == fields(method(MATRIX, generator=seeded(2)))


def test_another_matrix_is_refused(tmp_path):
    measured("eigenpairs", tmp_path / "a")
    changed = CheckpointedOperator(MATRIX * 1.01, Journal(tmp_path / "a", SETTINGS))
    with pytest.raises(SpectraError, match="a matrix-vector product differs from that of the unfinished run"):
        METHODS["eigenpairs"](changed, generator=seeded(1))
    changed.journal.close()


def test_a_log_holds_what_was_appended(tmp_path):
    contents = [torch.rand(size, generator=seeded(size)).numpy().view("u1") for size in (3, 1, 0, 7)]
    log = Log(tmp_path / "log")
    for i, content in enumerate(contents):
        log.append(i, 2 * i, 3 * i, 0.5, content)
    log.close()
    log = Log(tmp_path / "log")
    assert [(e.position, e.place, e.mark, e.seconds) for e in log.entries] == [(i, 2 * i, 3 * i, 0.5) for i in range(4)]
    assert all((log.content(entry) == content).all() for entry, content in zip(log.entries, contents, strict=True))
    log.cut(2)
    assert log.path.stat().st_size == log.end
    log.close()


# On the command line

NETS = """
import time
from torch import nn

class Slow(nn.Sequential):
    pause = 0.0
    def forward(self, x):
        time.sleep(self.pause)
        return super().forward(x)

def net(pause=0.0):
    model = Slow(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    model.pause = pause
    return model
"""
BASE = "--model nets.py:net?pause={pause} --data digits --samples 60 --memory 0 --curvature hessian --curvature ggn"
COMMANDS = {
    "eig": "eig -k 4 --tol 1e-4",
    "trace": "trace --method hutchinson --rtol 0.08",
    "density": "density --probes 3 --steps 12",
}
CLOCKS = ("seconds", "setup_seconds")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(command, out, pause=0.0, more=""):
    return shlex.split(f"{COMMANDS[command]} {BASE.format(pause=pause)} --out {out} {more}")


def numbers(path):
    """Of a result, all that no clock has measured, and no path of."""
    record = json.loads(Path(path).read_text())
    for result in record["results"]:
        for name in (*CLOCKS, "figure"):
            result.pop(name, None)
    record["problem"]["options"].pop("model"), record["problem"].pop("model")
    return record


def cut_at(monkeypatch, calls, error=KeyboardInterrupt):
    """The run ends at this product."""
    multiply, left = Curvature.__matmul__, [calls]

    def limited(self, vectors):
        if not left[0]:
            raise error
        left[0] -= 1
        return multiply(self, vectors)

    monkeypatch.setattr(Curvature, "__matmul__", limited)
    return left


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_goes_on(command, folder, monkeypatch, capfd):
    assert run(arguments(command, "whole")) == 0
    assert not Path("whole", f"{command}.state").exists()
    with monkeypatch.context() as patch:
        left = cut_at(patch, 10**9)
        assert run(arguments(command, "counted")) == 0
        calls = 10**9 - left[0]
    for cut in (2, calls // 3, calls - 3):
        out = Path(f"cut-{cut}")
        capfd.readouterr()
        with monkeypatch.context() as patch:
            cut_at(patch, cut)
            assert run(arguments(command, out)) == 130
        shown, told = capfd.readouterr()
        assert shown == ""
        assert told == (
            f"spectra: interrupted; {out}/{command}.state holds the work so far; run the same command again to resume\n"
        )
        assert [path.name for path in out.iterdir()] == [f"{command}.state"]
        with monkeypatch.context() as patch:
            begun = len(list((out / f"{command}.state").glob("*.sample")))
            cut_at(patch, calls - cut + begun)  # one of each matrix is made again
            assert run(arguments(command, out)) == 0
        assert "resumes after" in capfd.readouterr().err
        assert numbers(out / f"{command}.json") == numbers(f"whole/{command}.json")
        assert not (out / f"{command}.state").exists()


def test_a_command_goes_on_wherever_its_basis_is_asked_to_lie(folder, monkeypatch, capfd):
    """On a CPU there is one memory, so that nothing changes."""
    assert run(arguments("eig", "whole", more="--basis host")) == 0
    with monkeypatch.context() as patch:
        cut_at(patch, 12)
        assert run(arguments("eig", "cut", more="--basis device")) == 130
    kept = json.loads(Path("cut/eig.state/manifest.json").read_text())
    assert kept["settled"]["basis"] == "device"
    assert "basis" not in kept["problem"]
    assert run(arguments("eig", "cut", more="--basis host")) == 0
    assert "resumes after" in capfd.readouterr().err
    assert numbers("cut/eig.json") == numbers("whole/eig.json")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(command, folder):
    """By SIGKILL, which nothing can catch; and by the signals that machines send."""
    assert run(arguments(command, "whole")) == 0
    line = [sys.executable, "-m", "spectra", *arguments(command, "cut", pause=0.004)]
    draw = random.Random(COMMANDS[command])
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}
    for sent in [signal.SIGKILL, draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])]:
        running = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            before = written()
            deadline = time.monotonic() + 120
            while written() == before and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.2))
            running.send_signal(sent)
            shown, told = running.communicate(timeout=60)
        finally:
            running.kill()
        assert running.returncode in (codes[sent], 0), told
        if running.returncode:
            assert "Traceback" not in told, told
            records = list(Path("cut").glob("*.json"))  # written, and then the signal came
            assert shown == "" or records
            for path in records:
                assert numbers(path) == numbers(f"whole/{command}.json")
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert numbers(f"cut/{command}.json") == numbers(f"whole/{command}.json")


def written():
    return {path: path.stat().st_size for path in Path("cut").glob("*.state/*.products")}


def unfinished(command, monkeypatch, out="out", more=""):
    with monkeypatch.context() as patch:
        cut_at(patch, 9)
        assert run(arguments(command, out, more=more)) == 130


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("-k 5", "k was 4, is 5"),
        ("--seed 1", "seed was 0, is 1"),
        ("--weight-decay 0.1", "weight decay was 0.0, is 0.1"),
        ("--curvature fisher", 'curvature was ["hessian", "ggn"], is ["hessian", "ggn", "fisher"]'),
        ("--dtype float64", 'dtype was "float32", is "float64"'),
        ("--samples 50", "data checksum was"),
    ],
)
def test_the_state_of_another_problem_is_refused(more, told, folder, monkeypatch, capfd):
    unfinished("eig", monkeypatch)
    capfd.readouterr()
    assert run(arguments("eig", "out", more=more)) == 2
    shown, line = capfd.readouterr()
    assert shown == ""
    assert line.startswith("spectra: --out out: an unfinished run of another problem is there (")
    assert told in line
    assert line.count("\n") == 1
    assert run(arguments("eig", "out")) == 0  # nothing of it was harmed


def test_a_changed_model_is_refused(folder, monkeypatch, capfd):
    unfinished("eig", monkeypatch)
    rewrite(NETS.replace("Tanh", "Sigmoid"))
    capfd.readouterr()
    assert run(arguments("eig", "out")) == 2
    told = capfd.readouterr().err
    assert "(mean loss was" in told
    assert "so the model's code or the data have changed" in told
    assert told.count("\n") == 1
    rewrite(NETS)
    assert run(arguments("eig", "out")) == 0


def rewrite(code):
    """As if a new process imported it."""
    Path("nets.py").write_text(code)
    for name in [name for name in sys.modules if name.startswith("spectra_user_nets")]:
        del sys.modules[name]


def test_what_does_not_change_the_numbers_may_change(folder, monkeypatch):
    unfinished("eig", monkeypatch)
    assert run(arguments("eig", "out", more="--save-every 0.1 --save-vectors --json")) == 0


def test_a_finished_result_is_replaced(folder):
    assert run(arguments("eig", "out")) == 0
    assert run(arguments("eig", "out", more="-k 2")) == 0
    assert len(json.loads(Path("out/eig.json").read_text())["results"][0]["eigenvalues"]) == 2


def test_an_error_leaves_no_state(folder, capfd):
    assert run(arguments("eig", "out/in", more="--method power --which LA")) == 2
    assert not Path("out").exists()
    Path("out").mkdir()
    for more in ("--method power --which LA", "--samples 10000", "--checkpoint missing.pt"):
        assert run(arguments("eig", "out/in", more=more)) == 2
        assert list(Path("out").iterdir()) == []
    assert run(["inspect", "--model", "nets.py:nothing", "--out", "new/in"]) == 2
    assert not Path("new").exists()


def test_code_that_changes_the_curvature_alone_is_refused(folder, monkeypatch, capfd):
    """The mean loss is the same: a product of the finished matrix is made again, and of the one at work."""
    parts = "model.pause = pause", "model.pause = pause\n    model[2].forward = lambda x: f(x)"
    other = "def f(x):\n    y = x.tanh() + x\n    return x.tanh() + y - y.detach()\n"
    for cut, names in ((5, 1), (10**9, 2)):
        rewrite(NETS)
        with monkeypatch.context() as patch:
            left = cut_at(patch, 10**9)
            assert run(arguments("eig", "whole", more="--no-check")) == 0
            calls = 10**9 - left[0]
        out = f"cut-{cut}"
        with monkeypatch.context() as patch:
            cut_at(patch, min(cut, calls - 1))
            assert run(arguments("eig", out, more="--no-check")) == 130
        assert len(list(Path(out, "eig.state").glob("*.sample"))) == names
        rewrite(NETS.replace(*parts) + other)
        capfd.readouterr()
        assert run(arguments("eig", out, more="--no-check")) == 2
        assert "the model's code or the data have changed; restore them" in capfd.readouterr().err
        rewrite(NETS)
        assert run(arguments("eig", out, more="--no-check")) == 0


def test_what_killed_runs_have_left_half_written_is_removed(folder):
    Path("out").mkdir()
    left = [Path("out", f".density{name}.ab12_xyz") for name in (".json", ".npz", ".png", "-other.png")]
    for path in left:
        path.write_bytes(b"half")
    other = [Path("out", name) for name in (".eig.json.ab12_xyz", ".density.png", ".density.png.saved-by-me")]
    for path in other:
        path.write_bytes(b"kept")
    at_work = Path("out", ".density.png.ab12_abc")
    with at_work.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another run writes it
        assert run(arguments("density", "out")) == 0
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in [*other, at_work])
    assert run(arguments("density", "out")) == 0
    assert not at_work.exists()


def test_a_state_is_removed_before_its_lock_is_let_go(folder, monkeypatch):
    """A run that comes at any moment of the removal is told of the other, or begins anew; and finds its own files."""
    problem, settled, home = {"k": 1}, {"memory_share": 1}, Path("out/eig.state")
    home.parent.mkdir()
    met = []

    def come(unlink):
        def also(path, *args, **kwargs):
            unlink(path, *args, **kwargs)
            if path.parent == home and not come.busy:
                come.busy = True
                other = State(home, 60, print)
                try:
                    other.begin(problem, settled)
                except SpectraError as error:
                    met.append("told" if "another run is using it" in str(error) else str(error))
                else:
                    met.append("begun")
                    come.others.append(other)
                come.busy = False

        return also

    come.busy, come.others = False, []
    first = State(home, 60, print)
    first.begin(problem, settled)
    first.journal("hessian").finish({"answer": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", come(Path.unlink))
        first.remove()
    assert met == ["told", "told", "begun"]  # as manifest, answer and lock went
    again = State(home, 60, print)
    with pytest.raises(SpectraError, match="another run is using it"):
        again.begin(problem, settled)
    assert (home / "manifest.json").exists()
    come.others[0].remove()
    assert not home.exists()


def test_concurrent_runs_end_whole_or_are_told(folder):
    """Many processes that begin and end at one place."""
    script = (
        "import sys; from pathlib import Path\nfrom spectra.errors import SpectraError\n"
        "from spectra.resume.state import State\ntold = 0\n"
        "for _ in range(150):\n"
        "    state = State(Path('out/eig.state'), 60, print)\n"
        "    try:\n        state.begin({}, {'memory_share': 1})\n"
        "    except SpectraError as error:\n"
        "        assert 'another run is using it' in str(error), error\n        told += 1\n        continue\n"
        "    state.journal('hessian').finish({'answer': 1})\n    state.remove()\n"
    )
    Path("out").mkdir()
    running = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for each in running:
        told = each.communicate(timeout=120)[1]
        assert each.returncode == 0, told
    assert list(Path("out").iterdir()) == []


def test_two_at_once_are_refused(folder):
    Path("out").mkdir()
    busy = State(Path("out/eig.state"), 60, print)
    busy.begin({}, {"memory_share": 1})
    with pytest.raises(SpectraError, match="another run is using it"):
        State(Path("out/eig.state"), 60, print).begin({}, {"memory_share": 1})
    busy.close()
    again = State(Path("out/eig.state"), 60, print)
    again.begin({}, {"memory_share": 1})
    again.close()


def test_a_damaged_manifest_is_one_line(folder, monkeypatch, capfd):
    unfinished("eig", monkeypatch)
    Path("out/eig.state/manifest.json").write_text('{"problem": ')
    capfd.readouterr()
    assert run(arguments("eig", "out")) == 2
    assert capfd.readouterr().err == (
        "spectra: --out out: out/eig.state/manifest.json cannot be read; remove out/eig.state\n"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A directory that holds 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone, and not in every container")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_the_saving_and_not_the_run(folder, small_disk, capfd):
    assert run(arguments("trace", "whole", more="--rtol 0.3")) == 0
    capfd.readouterr()
    assert run(arguments("trace", small_disk, more="--rtol 0.3")) == 0
    assert numbers(small_disk / "trace.json") == numbers("whole/trace.json")
    assert capfd.readouterr().err == ""  # finished steps need no room

    assert run(arguments("density", "whole")) == 0
    capfd.readouterr()
    status = run(arguments("density", small_disk))
    told = capfd.readouterr().err.splitlines()
    assert told[0].startswith(f"spectra: {small_disk}/density.state: cannot be written (the disk is full), so this run")
    assert status == 2  # there is no room for the figure either
    assert "the disk is full" in told[1]
    assert len(told) == 2
    assert [path.name for path in small_disk.iterdir() if path.name != "trace.json"] == ["density.state"]
