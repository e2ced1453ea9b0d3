"""A sweep of 12 checkpoints x 3 matrices on a real Slurm, with tasks stopped in every way; see scripts/test-slurm.

Usage: python -m tests.slurm_sweep DIRECTORY
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

CHECKPOINTS, MATRICES, PATIENCE = 12, ("hessian", "ggn", "fisher-empirical"), 200
TRAIN = """
import time
from pathlib import Path
import torch
from torch import nn

class Slow(torch.autograd.Function):
    '''The identity; where a file says so, each product takes a while.'''

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.3 * Path("slow").exists())
        return Slow.apply(gradient)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))

    def forward(self, x):
        return Slow.apply(self.body(x))
"""
PLAN = """
[problem]
model = "train.py:Network"
data = "digits"
samples = 100
checkpoint = "checkpoints/*.pt"
curvature = ["hessian", "ggn", "fisher-empirical"]

[eig]
k = 3

[run]
on = "slurm"
partition = "test"
time = "00:10:00"
cpus = 1

[collect]
learning_rate = 0.5
"""


def make(home: Path) -> None:
    """Checkpoints of a short training, and the plan, twice: on Slurm, and here."""
    (home / "checkpoints").mkdir(parents=True)
    (home / "train.py").write_text(TRAIN)
    (home / "plan.toml").write_text(PLAN)
    (home / "here.toml").write_text('out = "here"\n' + PLAN.partition("[run]")[0] + "[run]\njobs = 2\n")
    (home / "nowhere.toml").write_text(PLAN.replace('"test"', '"nowhere"'))
    sys.path.insert(0, str(home))
    import train

    from spectra.inputs.data import load_data

    torch.manual_seed(0)
    digits, network = load_data("digits", None, 0), train.Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for step in range(CHECKPOINTS):
        torch.save({"step": 10 * step, "model": network.state_dict()}, home / f"checkpoints/step-{10 * step}.pt")
        for _ in range(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(digits.inputs), digits.targets).backward()
            optimizer.step()


def spectra(home: Path, line: str, status: int = 0) -> subprocess.CompletedProcess:
    """From another directory than the plan's."""
    command = [sys.executable, "-m", "spectra", *line.split()]
    done = subprocess.run(command, cwd=home.parent, capture_output=True, text=True, check=False)
    assert done.returncode == status, (line, done.returncode, done.stdout, done.stderr)
    return done


def states(home: Path) -> dict[str, str]:
    record = json.loads(spectra(home, f"sweep status {home.name}/plan.toml --json").stdout)
    return {task["name"]: task["state"] for task in record["tasks"]}


def wait(what: str, until) -> None:
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.5)


def slurm(*command: str) -> subprocess.Popen:
    return subprocess.Popen(command)


def log(home: Path, task: str) -> str:
    return (home / f"plan/.sweep/{task}.log").read_text()


def main(home: Path) -> None:
    start = time.monotonic()

    def tell(text: str) -> None:
        print(f"test-slurm: {time.monotonic() - start:.0f} s: {text}", flush=True)

    make(home)
    refused = spectra(home, f"sweep run {home.name}/nowhere.toml", status=2)
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "invalid partition specified: nowhere" in refused.stderr

    (home / "slow").touch()
    told = spectra(home, f"sweep run {home.name}/plan.toml").stdout
    tell(told.strip())
    assert f"{CHECKPOINTS * len(MATRICES)} submitted" in told
    assert "nothing submitted" in spectra(home, f"sweep run {home.name}/plan.toml").stdout
    requeued, cancelled, warned = (f"step-0/{name}" for name in MATRICES)
    jobs = json.loads((home / "plan/.sweep/jobs.json").read_text())
    stopped = (requeued, cancelled, warned)
    wait("three tasks with a state", lambda: all((home / f"plan/{task}/eig.state").exists() for task in stopped))
    time.sleep(5)  # some products
    running = states(home)
    assert {running[task] for task in stopped} == {"running"}, running
    assert "queued" in running.values()
    slurm("scontrol", "requeue", jobs[requeued])
    slurm("scancel", jobs[cancelled])
    warning = slurm("scancel", "--signal=USR1", jobs[warned])  # as Slurm does before the time limit
    tell("one task requeued, one cancelled, one warned of its time limit")
    wait("these to end", lambda: all("terminated" in log(home, task) for task in stopped))
    warning.kill()  # it asks again and again whether a job has the signal that has ended it
    (home / "slow").unlink()

    wait("a first result", lambda: "finished" in states(home).values())
    spectra(home, f"sweep collect {home.name}/plan.toml")
    assert 0 < rows(home / "plan/table.json")[1] < CHECKPOINTS * len(MATRICES)
    tell("collected while jobs run")
    wait("the queue to empty", lambda: not {"queued", "running"} & set(states(home).values()))
    after = states(home)
    assert after.pop(cancelled) == "interrupted"
    assert set(after.values()) == {"finished"}, after
    tell("all but the cancelled one are finished")

    assert "1 submitted" in spectra(home, f"sweep run {home.name}/plan.toml --retry").stdout
    wait("the cancelled one", lambda: set(states(home).values()) == {"finished"})
    for task in stopped:
        assert log(home, task).count("$ spectra eig") == 2, log(home, task)
    assert log(home, "step-10/ggn").count("$ spectra eig") == 1
    tell("that one too, by --retry")

    spectra(home, f"sweep run {home.name}/here.toml")
    for name in ("plan", "here"):
        spectra(home, f"sweep collect {home.name}/{name}.toml")
    there, unfinished = rows(home / "plan/table.json")
    here, _ = rows(home / "here/table.json")
    assert unfinished == 0
    assert there == here
    assert sum(row["quantity"] == "eigenvalue" for row in there) == 3 * CHECKPOINTS * len(MATRICES)
    assert (home / "plan/evolution.png").stat().st_size > 10_000
    tell(f"the same {len(there)} numbers as by a sweep without Slurm; all is well")


def rows(path: Path) -> tuple[list[dict], int]:
    table = json.loads(path.read_text())
    return table["rows"], len(table["unfinished"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
