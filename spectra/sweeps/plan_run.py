"""The table [run] of a plan, and every key that it may hold: where the tasks run, and what each may take.

[run]
on = "local"            # or "slurm"
jobs = 2                # local: tasks at a time; default: one a GPU, else one for each `threads` cores
threads = 1             # OMP_NUM_THREADS of a task; slurm's default: its cpus
partition = "gpu"       # slurm, as are all that follow
account = "group"
gpus = 1
cpus = 4
memory = "16GB"
time = "01:00:00"       # of one task; what is unfinished then is queued again and goes on
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
    """The settings in [run]. A field that is None is left to Slurm's default, or to as many as there is room for."""

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
    """A test for whole numbers that are no smaller than `least`."""
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
    """Read and check the table [run]; what it leaves out has its default.

    Raises SpectraError: an unknown key, a value of another type, a key that serves Slurm alone or local runs alone,
    no time for Slurm.
    """
    file.refuse_unknown("run", KEYS)
    table = file.table("run")
    for key, value in table.items():
        holds, wanted = KEYS[key]
        if not holds(value):
            raise file.error(f"{shown(key, value)} is not {wanted}", "run")
    on = table.get("on", "local")
    if idle := table.keys() & (SLURM if on == "local" else LOCAL):
        here, there = ("local", "slurm") if on == "local" else ("slurm", "local")
        raise file.error(f'{min(idle)} does nothing where on = "{here}"; leave it out, or write on = "{there}"', "run")
    if on == "slurm" and "time" not in table:
        raise file.error('time is missing; write how long a task may take, as time = "01:00:00"', "run")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return RunSettings(**fields)
