"""Sweeps on Slurm, with stand-ins for its programs; scripts/test-slurm has the real ones.

`sbatch` keeps the script and says job 7, `squeue` prints a file, `scontrol` notes what it is asked to do.
"""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sweeps import TASKS, calls, change, make_home, states, wait, waiting

from spectra.cli import run

pytestmark = pytest.mark.skipif(  # not imported: as it is, it reads the signal, which our code sets before
    find_spec("submitit") is None, reason="sweeps on Slurm need submitit: pip install submitit"
)

PROGRAMS = {
    "sbatch": 'cp "$1" script; echo "Submitted batch job 7"',
    "srun": "true",
    "squeue": "cat queue",
    "scontrol": 'echo "$*" >asked',
}
RUN = """
on = "slurm"
partition = "gpu"
account = "group"
gpus = 1
cpus = 3
memory = "16GB"
time = "01:30:00"
throttle = 2
setup = ["module load python"]
"""
REFUSAL = """
echo 'sbatch: error: invalid partition specified: gpu' >&2
echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2
exit 1
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = make_home(tmp_path, monkeypatch)
    change(home, "jobs = 2", RUN)
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        stand_in(home, name, text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    Path("queue").touch()
    return home


def stand_in(home: Path, name: str, text: str) -> None:
    path = home.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def sweep(home, capfd):
    def sweep(action: str, *options: str):
        capfd.readouterr()
        return run(["sweep", action, "../home/plan.toml", *options]), *capfd.readouterr()

    return sweep


def test_tasks_are_submitted_as_one_array(home, sweep):
    status, out, err = sweep("run")
    assert (status, out, err) == (0, "4 tasks: 4 waiting; 4 submitted as job 7\n", "")
    script = Path("script").read_text()
    flags = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert flags >= {
        "array=0-3%2",
        "partition=gpu",
        "account=group",
        "gpus-per-node=1",
        "cpus-per-task=3",
        "mem=16GB",
        "time=90",
        "signal=USR1@120",
        "requeue",
        "job-name=spectra-plan",
        "open-mode=append",
    }
    assert script.index("module load python") < script.index("submitit.core._submit")
    assert calls(home) == []


def test_requeue_can_be_declined(home, sweep):
    change(home, "throttle = 2", "requeue = false")
    sweep("run")
    assert "#SBATCH --no-requeue\n" in Path("script").read_text()


def test_what_is_in_the_queue_is_not_submitted_again(home, sweep):
    sweep("run")
    Path("script").unlink()
    Path("queue").write_text("7_0 RUNNING\n7_1 PENDING\n7_2 COMPLETING\n8_3 RUNNING\n")
    (home / "plan/.sweep/slurm/7_3_0_log.err").write_text("module: not found\n")
    status, out, err = sweep("status")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "4 tasks: 2 running, 1 queued, 1 interrupted",
        f"  running: {TASKS[0]}",
        f"  running: {TASKS[2]}",
        "",
        f"{TASKS[3]} interrupted: job 7_3 ended before its task began ({home}/plan/.sweep/slurm/7_3_0_log.err)",
        "    module: not found",
    ]
    assert "1 submitted" in sweep("run", "--retry")[1]
    Path("script").unlink()
    Path("queue").write_text("7 PENDING\n7_0 RUNNING\n7_1 PENDING\n7_2 PENDING\n")
    assert "nothing submitted" in sweep("run")[1]
    assert not Path("script").exists()


@pytest.mark.parametrize(
    ("program", "text", "fragment"),
    [
        ("sbatch", REFUSAL, "invalid partition specified: gpu"),
        ("squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", "Unable to contact"),
    ],
)
def test_what_slurm_refuses_is_one_line(home, sweep, program, text, fragment):
    sweep("run")
    stand_in(home, program, text)
    status, out, err = sweep("run")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert fragment in err


def test_status_works_without_slurm(home, sweep):
    sweep("run")
    stand_in(home, "squeue", "exit 1")
    status, out, err = sweep("status")
    assert (status, out) == (0, "4 tasks: 4 waiting\n")
    assert "from files alone" in err


def test_missing_slurm_is_one_line(home, sweep, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    status, out, err = sweep("run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "needs sbatch and srun" in err


def test_missing_submitit_is_one_line(home, sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    status, out, err = sweep("run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "pip install submitit" in err


def job(home: Path) -> subprocess.Popen:
    """What the batch script starts on a node, for the second task."""
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_PREEMPT_SIGNAL": "USR1",
        "SLURM_JOB_ID": "9",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
    }
    command = [sys.executable, "-m", "submitit.core._submit", str(home / "plan/.sweep/slurm")]
    return subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_a_job_told_to_end_saves_its_state_and_is_queued_again(home, sweep):
    sweep("run")
    (home / "wait").touch()
    process = job(home)
    wait(lambda: waiting(home) == 1)
    assert states(home).count("running") == 1
    process.send_signal(signal.SIGUSR1)
    process.wait(30)
    assert (home / "saved").exists()
    assert Path("asked").read_text() == "requeue 7_1\n"
    assert states(home)[1] == "interrupted"
    (home / "wait").unlink()
    assert job(home).wait(30) == 0
    assert states(home) == ["waiting", "finished", "waiting", "waiting"]
    assert calls(home) == [f"eig {TASKS[1]}"] * 2 + [f"trace {TASKS[1]}"]
    assert job(home).wait(30) == 0
    assert calls(home) == []


def test_a_job_of_a_failed_task_fails(home, sweep):
    sweep("run")
    (home / "fail").write_text("step")
    assert job(home).wait(30) == 1
    assert states(home)[1] == "failed"
    assert json.loads(sweep("status", "--json")[1])["tasks"][1]["last_lines"][-1].endswith("is not to be had")
