"""A plan for tests of sweeps, and what stands in for the commands that it runs."""

import time
from pathlib import Path

import spectra
from spectra.cli.plan_options import checked_plan
from spectra.sweeps.tasks import task_state

PLAN = """
[problem]
model = "nets.py:build"
data = "digits"
checkpoint = "checkpoints/*.pt"
curvature = ["hessian", "ggn"]
device = "cpu"

[eig]
k = 3

[trace]
rtol = 0.1

[run]
jobs = 2
"""
# A package `spectra` that is the real one but for its commands: they note that they ran, and leave a record.
PACKAGE = f"""
from pathlib import Path
__path__.append({str(Path(spectra.__file__).parent)!r})
__file__ = str(Path(__path__[-1], "__init__.py"))  # beside which the public names are
exec(Path(__file__).read_text())
"""
STAND_IN = """
import hashlib, json, os, signal, sys, time
from pathlib import Path

command, arguments = sys.argv[1], sys.argv[2:]
if command == "sweep":
    from spectra.cli import main
    main(sys.argv[1:])
given = dict(zip(arguments[::2], arguments[1::2]))
with open("calls", "a") as file:
    file.write(f"{command} {given['--out']}\\n")
if Path("wait").exists():
    def save(*_):
        time.sleep(0.3)
        Path("saved").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    print("waits", flush=True)
    while Path("wait").exists():
        time.sleep(0.02)
if Path("fail").exists() and Path("fail").read_text().strip() in given["--out"]:
    print("spectra: first\\n\\nspectra: second\\nspectra: third\\nspectra: --data digits: is not to be had")
    sys.exit(2)
if Path("kill").exists():
    os.kill(os.getpid(), signal.SIGKILL)
from spectra.cli.plan_options import recorded
digest = hashlib.sha256(Path(given["--checkpoint"]).read_bytes()).hexdigest()
problem = {"options": recorded(command, arguments), "checkpoint_sha256": digest}
results = [{"curvature": given["--curvature"], "converged": not Path("loose").exists()}]
record = {"schema": 1, "command": command, "problem": problem, "results": results}
(Path(given["--out"]) / f"{command}.json").write_text(json.dumps(record))
sys.exit(Path("loose").exists())
"""
TASKS = ["step-2/hessian", "step-2/ggn", "step-10/hessian", "step-10/ggn"]


def make_home(place: Path, monkeypatch) -> Path:
    """The directory of a plan of two checkpoints and two matrices; the present one is another."""
    home, elsewhere, stand_in = (place / name for name in ("home", "elsewhere", "stand-in"))
    for directory in (home / "checkpoints", elsewhere, stand_in / "spectra"):
        directory.mkdir(parents=True)
    for step in (2, 10):
        (home / f"checkpoints/step-{step}.pt").write_text(f"weights {step}")
    (home / "plan.toml").write_text(PLAN)
    (stand_in / "spectra/__init__.py").write_text(PACKAGE)
    (stand_in / "spectra/__main__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(stand_in))
    monkeypatch.chdir(elsewhere)
    return home


def calls(home: Path) -> list[str]:
    """The commands that ran since the last look, as `eig step-2/ggn`."""
    path = home / "calls"
    lines = path.read_text().replace("plan/", "").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(lines)


def waiting(home: Path) -> int:
    """How many stand-ins wait, and would now end on SIGTERM as commands do."""
    return sum(path.read_text().count("waits") for path in (home / "plan/.sweep").rglob("*.log"))


def states(home: Path) -> list[str]:
    plan = checked_plan(home / "plan.toml")
    return [task_state(plan, task).state for task in plan.tasks]


def change(home: Path, before: str, after: str) -> None:
    text = (home / "plan.toml").read_text()
    assert before in text
    (home / "plan.toml").write_text(text.replace(before, after))


def wait(until) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)
