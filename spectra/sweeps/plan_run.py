"""Read the table [run] of a plan: where tasks run, and the resources of each. Its keys are:

[run]
on = "local"            # or "slurm"
jobs = 2                # local: tasks at a time; default: one per GPU, otherwise one per `threads` cores
threads = 1             # OMP_NUM_THREADS of a task; slurm's default: its cpus
partition = "gpu"       # slurm, like all keys below
account = "group"
gpus = 1
cpus = 4
memory = "16GB"
time = "01:00:00"       # limit of one task; an unfinished task is queued again and resumes
throttle = 8            # tasks at a time
requeue = true          # after preemption
setup = ["module load cuda"]
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectra.sweeps.plan_tables import PlanFile, shown

TIME = re.compile(r"((?P<days>\d{1,6})-)?(?P<hours>\d{1,6}):(?P<minutes>\d\d)(:(?P<seconds>\d\d))?")


@dataclass(frozen=True)
class RunSettings:
    """The settings in [run]; None stands for Slurm's default, or for as many as fit."""

    on: str = "local"
    jobs: int | None = None
    threads: int | None = None
    partition: str | None = None
    account: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: str | None = None
    time: str | None = None
    throttle: int | None = None
    requeue: bool = True
    setup: tuple[str, ...] = ()

    @property
    def minutes(self) -> int | None:
        """`time` in whole minutes, which is Slurm's unit."""
        return None if self.time is None else minutes(self.time)


def minutes(text: str) -> int | None:
    """The whole minutes, rounded up, in a time `D-HH:MM:SS`, `HH:MM:SS` or `HH:MM`; None for any other text."""
    match = TIME.fullmatch(text)
    if not match:
        return None
    days, hours, whole, seconds = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return (days * 24 + hours) * 60 + whole + (seconds > 0)


def whole(least: int) -> Callable[[Any], bool]:
    """A test for whole numbers of `least` or more."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_text(value: Any) -> bool:
    """Whether a value is a line of printable text that is not blank."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


POSITIVE, COUNT = (whole(1), "a whole number above 0"), (whole(0), "a whole number, 0 or more")
TEXT = (is_text, "a line of text")
BOTH = {"on": (lambda value: value in ("local", "slurm"), '"local" or "slurm"'), "threads": POSITIVE}
LOCAL = {"jobs": POSITIVE}
SLURM = {
    "partition": TEXT,
    "account": TEXT,
    "gpus": COUNT,
    "cpus": POSITIVE,
    "memory": TEXT,
    "time": (lambda value: is_text(value) and bool(minutes(value)), 'a time such as "01:30:00" or "2-12:00:00"'),
    "throttle": POSITIVE,
    "requeue": (lambda value: isinstance(value, bool), "true or false"),
    "setup": (is_texts, "a list of lines for the shell"),
}
KEYS = {**BOTH, **LOCAL, **SLURM}


def read_run(file: PlanFile) -> RunSettings:
    """Read and check the table [run]; missing keys have their defaults.

    Raises SpectraError if a key is unknown, has a wrong value, or has no effect, or if Slurm has no `time`.
    """
    file.refuse_unknown("run", KEYS)
    table = file.table("run")
    for key, value in table.items():
        holds, wanted = KEYS[key]
        if not holds(value):
            raise file.error(f"{shown(key, value)} is not valid; give {wanted}", "run")
    on = table.get("on", "local")
    if idle := table.keys() & (SLURM if on == "local" else LOCAL):
        here, there = ("local", "slurm") if on == "local" else ("slurm", "local")
        raise file.error(f'{min(idle)} has no effect with on = "{here}"; remove it, or write on = "{there}"', "run")
    if on == "slurm" and "time" not in table:
        raise file.error('time is missing; write the time limit of a task, e.g. time = "01:00:00"', "run")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return RunSettings(**fields)
