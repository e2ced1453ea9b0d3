"""Sweeps: plans and the tasks they make; what runs, what never runs twice, and what is told of it.

But for the last test, a small stand-in runs as `python -m spectra`: what is tested is which commands run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from sweeps import PLAN, TASKS, calls, change, make_home, states, wait, waiting

from spectra.cli import run
from spectra.cli.plan_options import COMMANDS, checked_plan
from spectra.demo import mlp
from spectra.records.inspect import CommandCost, InspectResult
from spectra.sweeps.cost import cost
from spectra.sweeps.local import environments, run_local
from spectra.sweeps.plan import natural, read_plan
from spectra.sweeps.plan_run import minutes
from spectra.sweeps.runner import Runner
from spectra.sweeps.tasks import file_lock, record_path, try_lock


@pytest.fixture
def home(tmp_path, monkeypatch):
    return make_home(tmp_path, monkeypatch)


@pytest.fixture
def sweep(home, capfd):
    """(status, standard output, standard error) of `spectra sweep ACTION ../home/plan.toml ...`."""

    def sweep(action: str, *options: str):
        capfd.readouterr()
        return run(["sweep", action, "../home/plan.toml", *options]), *capfd.readouterr()

    return sweep


ALL = sorted(f"{command} {task}" for task in TASKS for command in ("eig", "trace"))


def test_tasks_are_the_product_in_natural_order(home):
    change(home, 'device = "cpu"', "seed = [1, 0]")
    tasks = read_plan(home / "plan.toml").tasks
    assert [t.name for t in tasks] == [f"{name}/seed-{seed}" for name in TASKS for seed in (1, 0)]
    assert len({t.directory for t in tasks}) == len(tasks)
    assert all(t.directory == home / "plan" / t.name and t.checkpoint.is_file() for t in tasks)


@pytest.mark.parametrize(
    ("files", "pattern", "names"),
    [
        (["a/x.pt", "b/x.pt"], '"**/x.pt"', ["a/x", "b/x"]),
        (["a/x.pt", "a/x.ckpt"], '["a/*.pt", "a/*.ckpt", "a/x.*"]', ["x.ckpt", "x.pt"]),
        (["e9.pt", "e10.pt", "e1.pt"], '"e*.pt"', ["e1", "e9", "e10"]),
        (["epoch=1-loss=0.5.ckpt"], '"*.ckpt"', ["epoch=1-loss=0.5"]),
    ],
)
def test_checkpoints_have_names_of_their_own(home, files, pattern, names):
    for file in files:
        (home / file).parent.mkdir(exist_ok=True)
        (home / file).touch()
    change(home, '"checkpoints/*.pt"', pattern)
    assert [t.name for t in read_plan(home / "plan.toml").tasks] == [
        f"{name}/{matrix}" for name in names for matrix in ("hessian", "ggn")
    ]


def test_without_a_checkpoint_seeds_build_models(home):
    change(home, 'checkpoint = "checkpoints/*.pt"', "seed = [0, 1]")
    tasks = read_plan(home / "plan.toml").tasks
    assert [t.name for t in tasks][:2] == ["hessian/seed-0", "hessian/seed-1"]
    assert all(t.checkpoint is None and "--checkpoint" not in t.commands[0][1] for t in tasks)


def test_natural_order_is_that_of_numbers():
    names = [f"step-{i}" for i in range(120)]
    assert sorted(sorted(names), key=natural) == names
    assert sorted(["b", "1", "a2", "a", "10"], key=natural) == ["1", "10", "a", "a2", "b"]


def test_arguments_mean_what_the_file_says(home):
    """Each option, in every spelling, reaches its command as `--config` would read it."""
    change(home, 'device = "cpu"', 'batch-size = 7\nweight_decay = 0.5\nparams = ["a.*", "b"]\nmemory = "1GiB"')
    change(home, "k = 3", "k = 3\nsave-vectors = true\ntol = 1e-6")
    change(home, "[trace]", "[density]\nlog = false\n[trace]")
    task = read_plan(home / "plan.toml").tasks[1]
    assert [command for command, _ in task.commands] == ["eig", "density", "trace"]
    parsed = {name: COMMANDS[name].make_context(name, list(line)).params for name, line in task.commands}
    assert (parsed["eig"]["k"], parsed["eig"]["tol"], parsed["eig"]["save_vectors"]) == (3, 1e-6, True)
    assert (parsed["trace"]["rtol"], parsed["density"]["log"]) == (0.1, False)
    for options in parsed.values():
        assert (options["batch_size"], options["weight_decay"], options["params"]) == (7, 0.5, ("a.*", "b"))
        assert (options["curvature"], options["memory"], options["seed"]) == (("ggn",), 2**30, 0)
        assert options["out"] == Path("plan/step-2/ggn")


BAD = [
    ("k = 3", "k = ", ["not valid TOML"]),
    ("k = 3", "kk = 3", ["spectra eig has no option kk", "did you mean k"]),
    ("k = 3", "k = 0", ["k = 0", "x>=1"]),
    ("k = 3", "k = [3, 4]", ["k = [3, 4]"]),
    ("k = 3", "out = 'x'", ["[eig] out is set by the sweep; remove it"]),
    ("k = 3", "seed = 1", ["[eig] seed", "under [problem]"]),
    ("k = 3", "log = true", ["spectra eig has no option log"]),
    ("[eig]", "[egi]", ["[egi] is not a table", "did you mean eig"]),
    ("[problem]", "oout = 'x'\n[problem]", ["oout", "did you mean out"]),
    ("[problem]", "out = ''\n[problem]", ['out = ""', "give a directory"]),
    ("[problem]", "out = 'plan.toml'\n[problem]", ["is the plan itself"]),
    ("[problem]", "collect = 1\n[problem]", ["collect = 1", "not a table"]),
    ('"checkpoints/*.pt"', '"checkpoints/*.bin"', ["checkpoints/*.bin", "matches no file"]),
    ('"checkpoints/*.pt"', '["checkpoints/*.pt", "x.pt"]', ["x.pt", "matches no file"]),
    ('"checkpoints/*.pt"', "[]", ["checkpoint = []"]),
    ('"checkpoints/*.pt"', "3", ["checkpoint = 3"]),
    ('["hessian", "ggn"]', '["hessian", "gnn"]', ["gnn", "ggn"]),
    ('["hessian", "ggn"]', "[1]", ["curvature = [1]"]),
    ('device = "cpu"', 'seed = ["a"]', ['seed = ["a"] is not valid; give a whole number or a list of whole numbers']),
    ('device = "cpu"', "seed = -1", ["-1"]),
    ('device = "cpu"', "json = true", ["json is set by the sweep; remove it"]),
    ('model = "nets.py:build"', "", ["model is missing", "[problem]"]),
    ('data = "digits"', "data = true", ["data = true"]),
    ("jobs = 2", "jobs = 0", ["[run] jobs = 0", "above 0"]),
    ("jobs = 2", "job = 2", ["[run] job", "did you mean jobs"]),
    ("jobs = 2", "on = 'moon'", ['on = "moon"', "slurm"]),
    ("jobs = 2", "partition = 'gpu'", ["partition", 'on = "slurm"']),
    ("jobs = 2", "on = 'slurm'", ["time is missing"]),
    ("jobs = 2", "on = 'slurm'\ntime = '1 hour'", ['time = "1 hour"', "01:30:00"]),
    ("jobs = 2", "on = 'slurm'\ntime = '01:00:00'\njobs = 2", ["jobs", 'on = "local"']),
    ("jobs = 2", "on = 'slurm'\ntime = '01:00:00'\nsetup = 'x'", ['setup = "x"', "list"]),
    ("jobs = 2", "[collect]\nlearning_rate = 0", ["learning_rate = 0", "above 0"]),
    ("jobs = 2", "[collect]\nrate = 1", ["rate", "learning_rate"]),
]


@pytest.mark.parametrize(("before", "after", "fragments"), BAD, ids=[" ".join(after.split()) for _, after, _ in BAD])
def test_a_wrong_plan_is_one_line_before_anything_runs(home, sweep, before, after, fragments):
    change(home, before, after)
    status, out, err = sweep("run")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for fragment in ["../home/plan.toml", *fragments]:
        assert fragment in err
    assert not (home / "plan").exists()


def test_a_plan_without_commands_or_file_is_refused(home, sweep):
    (home / "plan.toml").write_text(PLAN.partition("[eig]")[0])
    assert "add a table [eig]" in sweep("status")[2]
    (home / "plan.toml").unlink()
    assert sweep("status") == (
        2,
        "",
        "spectra: PLAN ../home/plan.toml: cannot be read (No such file or directory); check the path\n",
    )


def test_what_is_finished_never_runs_again(home, sweep):
    (home / "json.py").write_text("raise SystemExit(9)")  # no file beside a plan stands for a module of ours
    status, out, err = sweep("run")
    assert (status, out) == (0, "4 tasks: 4 finished\n"), err
    assert calls(home) == ALL
    assert sweep("run")[:2] == sweep("run", "--retry")[:2] == (0, out)
    assert calls(home) == []
    assert sweep("status") == (0, out, "")
    record = json.loads(sweep("status", "--json")[1])
    assert [(t["name"], t["state"]) for t in record["tasks"]] == [(name, "finished") for name in TASKS]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ("k = 3", "k = 4", "eig"),
        ("rtol = 0.1", "", "trace"),
        ('device = "cpu"', 'device = "cpu"\nmemory = "1GiB"', ""),
        ('device = "cpu"', 'device = "cpu"\nsamples = 9', "eig trace"),
        ("[trace]\nrtol = 0.1", "", ""),
        ('"hessian", "ggn"', '"ggn", "hessian"', ""),
    ],
)
def test_a_changed_plan_runs_what_it_changes(home, sweep, before, after, again):
    sweep("run")
    calls(home)
    change(home, before, after)
    assert sweep("run")[0] == 0
    assert calls(home) == sorted(f"{command} {task}" for task in TASKS for command in again.split())


def test_a_changed_checkpoint_runs_its_tasks(home, sweep):
    sweep("run")
    calls(home)
    (home / "checkpoints/step-10.pt").write_text("weights 10")  # the same again
    assert states(home) == ["finished"] * 4
    (home / "checkpoints/step-10.pt").write_text("other weights")
    (home / "checkpoints/step-11.pt").write_text("more weights")
    assert states(home) == ["finished"] * 2 + ["waiting"] * 2 + ["waiting"] * 2
    assert sweep("run")[0] == 0
    assert calls(home) == sorted(
        f"{c} step-{s}/{m}" for c in ("eig", "trace") for s in (10, 11) for m in ("hessian", "ggn")
    )


def test_damaged_results_are_made_again(home, sweep):
    sweep("run")
    calls(home)
    (home / "plan/step-2/ggn/trace.json").write_text('{"schema": 1,')
    assert states(home)[1] != "finished"
    assert sweep("run")[0] == 0
    assert calls(home) == ["trace step-2/ggn"]


def test_failed_tasks_are_listed_and_run_again_by_retry_alone(home, sweep):
    (home / "fail").write_text("step-2/ggn")
    status, out, err = sweep("run")
    assert status == 1
    assert out.splitlines()[:3] == [
        "4 tasks: 3 finished, 1 failed",
        "",
        f"step-2/ggn failed: eig ended with status 2 ({home}/plan/.sweep/step-2/ggn.log)",
    ]
    assert out.splitlines()[3:] == [
        "    spectra: second",
        "    spectra: third",
        "    spectra: --data digits: is not to be had",
    ]
    assert "--retry" in err
    assert len(calls(home)) == 7
    (home / "fail").unlink()
    assert sweep("run")[1] == out
    assert calls(home) == []
    assert sweep("status")[:2] == (0, out)
    assert sweep("run", "--retry")[:2] == (0, "4 tasks: 4 finished\n")
    assert calls(home) == ["eig step-2/ggn", "trace step-2/ggn"]


def test_retry_leaves_alone_what_waits(home, sweep):
    (home / "fail").write_text("step-2")
    sweep("run")
    (home / "fail").unlink()
    calls(home)
    (home / "checkpoints/step-11.pt").write_text("more weights")
    assert sweep("run", "--retry")[0] == 1
    assert calls(home) == [line for line in ALL if "step-2/" in line]
    assert states(home) == ["finished"] * 4 + ["waiting"] * 2


def test_a_plan_put_right_is_no_failure_any_more(home, sweep):
    (home / "fail").write_text("step")
    sweep("run")
    assert states(home) == ["failed"] * 4
    (home / "fail").unlink()
    change(home, "k = 3", "k = 4")
    assert states(home) == ["waiting"] * 4
    assert sweep("run")[0] == 0


def test_an_unmet_tolerance_counts_as_finished_but_is_told(home, sweep):
    (home / "loose").touch()
    status, out, err = sweep("run")
    assert status == 1
    assert "4 tasks: 4 finished" in out
    assert "  step-10/ggn: eig, trace" in out.partition("Tolerance not met:")[2].splitlines()
    assert "step-10/ggn finished, tolerance not met: eig, trace" in err
    calls(home)
    assert sweep("run")[0] == 1
    assert calls(home) == []


def test_killed_tasks_go_on(home, sweep):
    (home / "kill").touch()
    assert sweep("run")[0] == 1
    assert states(home) == ["interrupted"] * 4
    assert "eig was killed by SIGKILL" in sweep("status")[1]
    (home / "kill").unlink()
    assert sweep("run")[0] == 0


def test_two_sweeps_at_once_run_each_task_once(home):
    plan = checked_plan(home / "plan.toml")
    threads = [threading.Thread(target=run_local, args=(plan, plan.tasks, lambda task: None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(home) == ALL
    assert states(home) == ["finished"] * 4


def test_what_another_sweep_has_seen_fail_is_left(home):
    """Also where both had chosen it before."""
    (home / "fail").write_text("step")
    plan = checked_plan(home / "plan.toml")
    first, second = Runner(plan, plan.tasks[0], {}), Runner(plan, plan.tasks[0], {})
    first.run()
    second.run()
    assert calls(home) == ["eig step-2/hessian"]


def test_a_look_does_not_keep_a_task_from_running(home):
    """`status` holds a lock for a moment."""
    plan = checked_plan(home / "plan.toml")
    lock = record_path(plan, plan.tasks[0], "lock")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        assert try_lock(file, shared=True)
        thread = threading.Thread(target=run_local, args=(plan, plan.tasks[:1], lambda task: None))
        thread.start()
        time.sleep(0.2)
    thread.join()
    assert calls(home) == ["eig step-2/hessian", "trace step-2/hessian"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_has_its_tasks_save_their_state(home, number, status):
    (home / "wait").touch()
    command = [sys.executable, "-m", "spectra", "sweep", "run", str(home / "plan.toml")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    wait(lambda: waiting(home) == 2)
    assert sorted(states(home)) == ["running"] * 2 + ["waiting"] * 2
    os.killpg(process.pid, number)  # as a terminal sends Ctrl-C
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, ""), err
    assert f"'spectra sweep run {home / 'plan.toml'}' resumes" in err
    assert (home / "saved").exists()
    assert len(calls(home)) == 2
    assert sorted(states(home)) == ["interrupted"] * 2 + ["waiting"] * 2


def test_a_killed_sweep_leaves_its_tasks_running(home, sweep):
    (home / "wait").touch()
    command = [sys.executable, "-m", "spectra", "sweep", "run", str(home / "plan.toml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(lambda: waiting(home) == 2)
    process.kill()
    process.wait()
    assert states(home).count("running") == 2
    before = calls(home)
    (home / "wait").unlink()
    wait(lambda: "running" not in states(home))
    assert "interrupted" in states(home)  # eig is there, trace is left
    assert sweep("run")[0] == 0
    assert sorted(before + calls(home)) == ALL


def test_environments_share_the_machine_out(home, monkeypatch):
    plan = checked_plan(home / "plan.toml")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert environments(plan) == [{"OMP_NUM_THREADS": "4"}] * 2
    change(home, "jobs = 2", "threads = 3")
    assert environments(checked_plan(home / "plan.toml")) == [{"OMP_NUM_THREADS": "3"}] * 2
    change(home, 'device = "cpu"', "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    change(home, "threads = 3", "")
    devices = [environment["CUDA_VISIBLE_DEVICES"] for environment in environments(checked_plan(home / "plan.toml"))]
    assert devices == ["3", "5"]


def test_locks_are_held_once(tmp_path):
    with file_lock(tmp_path / "a/lock") as first, file_lock(tmp_path / "a/lock", patience=0) as second:
        assert first
        assert second is None
    with file_lock(tmp_path / "a/lock", patience=0) as again:
        assert again


@pytest.mark.parametrize(
    ("text", "expected"),
    [("00:30", 30), ("01:00:00", 60), ("01:00:01", 61), ("2-12:00:00", 3600), ("90", None), ("x", None), ("1:2", None)],
)
def test_times_are_those_of_slurm(text, expected):
    assert minutes(text) == expected


ESTIMATES = [
    {"command": "eig", "method": "lanczos", "products": 30, "seconds": 3.0, "bytes": 5, "at_least": False},
    {"command": "eig", "method": "gram", "products": 10, "seconds": 1.0, "bytes": 7, "at_least": False},
    {"command": "trace", "method": "xtrace", "products": 100, "seconds": 10.0, "bytes": 5, "at_least": True},
    {"command": "trace", "method": "gram", "products": 8, "seconds": 0.8, "bytes": 7, "at_least": False},
    {"command": "density", "method": "lanczos", "products": 800, "seconds": 80.0, "bytes": 5, "at_least": False},
]
LOOK = InspectResult.known(curvature="ggn", estimates=[CommandCost(**estimate) for estimate in ESTIMATES])


@pytest.mark.parametrize(
    ("command", "options", "products", "seconds"),
    [
        ("eig", {}, 30, 3.0),
        ("eig", {"method": "gram"}, 10, 1.0),
        ("trace", {}, 8, 0.8),
        ("trace", {"method": "xtrace"}, 100, 10.0),
        ("trace", {"method": "xtrace", "probes": 20}, 20, 2.0),
        ("density", {"probes": 5, "steps": 40}, 200, 20.0),
        ("density", {"max-products": 50}, 50, 5.0),
    ],
)
def test_costs_are_those_of_the_method_asked_for(command, options, products, seconds):
    found = cost(LOOK, command, 3, options)
    assert (found.products, found.seconds) == (products, pytest.approx(seconds))


def test_costs_of_unknown_methods_are_unknown():
    assert cost(LOOK, "trace", 1, {"method": "hutch++"}).seconds != cost(LOOK, "trace", 1, {}).seconds
    assert cost(LOOK, "trace", 1, {"method": "hutch++"}).products != 8


def test_a_sweep_gives_the_numbers_of_its_commands(tmp_path, monkeypatch, capfd):
    """The whole of it, with the real commands."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    for step in (2, 10):
        torch.manual_seed(step)
        torch.save(mlp().state_dict(), f"checkpoints/step-{step}.pt")
    problem = 'model = "spectra.demo:mlp"\ndata = "digits"\nsamples = 50\ncheckpoint = "checkpoints/*.pt"\n'
    Path("plan.toml").write_text(f"[problem]\n{problem}device = 'cpu'\n[eig]\nk = 2\n[run]\nthreads = 1\n")
    status, out, err = run(["sweep", "run", "plan.toml", "--dry-run"]), *capfd.readouterr()
    assert (status, err) == (0, "")
    assert "2 tasks: 2 waiting" in out
    assert max(map(len, out.splitlines())) <= 80
    assert not Path("plan").exists()
    status, out, err = run(["sweep", "run", "plan.toml"]), *capfd.readouterr()
    assert (status, out) == (0, "2 tasks: 2 finished\n"), err
    line = (
        "eig --model spectra.demo:mlp --data digits --samples 50 --checkpoint checkpoints/step-10.pt -k 2 --device cpu"
    )
    assert run([*line.split(), "--out", "alone"]) == 0
    swept, alone = (json.loads(Path(p, "eig.json").read_text()) for p in ("plan/step-10/hessian", "alone"))
    assert swept["results"][0]["eigenvalues"] == alone["results"][0]["eigenvalues"]
    assert swept["problem"]["options"] == alone["problem"]["options"]
    capfd.readouterr()
    assert run(["sweep", "collect", "plan.toml", "--json"]) == 0
    table = json.loads(capfd.readouterr().out)
    top = [row["value"] for row in table["rows"] if row["quantity"] == "eigenvalue" and row["step"] == 10]
    assert top == alone["results"][0]["eigenvalues"]
    assert run(["sweep", "run", "plan.toml", "--dry-run"]) == 0
    assert capfd.readouterr().out == "2 tasks: 2 finished\n"
