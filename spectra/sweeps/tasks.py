"""The state of a task, read from files alone, so that it is known while another process or machine runs it.

OUT/NAME/<command>.json     its results: a command is done if one has this plan's options and checkpoint
OUT/.sweep/NAME.lock        locked (flock) while it runs, also by the command, which outlives a killed sweep
OUT/.sweep/NAME.json        the last command, and how it ended
OUT/.sweep/NAME.log         the output of commands
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from spectra.atomic import write_atomically
from spectra.errors import SpectraError
from spectra.files import WRITTEN_BY_US, open_regular, read_bounded
from spectra.inputs.checkpoint_folder import parts
from spectra.locks import lock
from spectra.records.record import Record, load
from spectra.records.sweep import SweepStatus, TaskStatus
from spectra.sweeps.digests import digest
from spectra.sweeps.plan import Plan, Task

# Options that change no number beyond rounding, or that a run sets itself.
FREE = frozenset({"memory", "basis", "device", "deflate"})
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
ENDING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGKILL")  # Windows lacks some of them
KILLED = tuple(-getattr(signal, name) for name in ENDING if hasattr(signal, name))
LAST_LINES = 3
LONGEST_LOADING = 600  # seconds, a generous bound on the time from a command's start to its first product


@dataclass(frozen=True)
class Attempt:
    """The last command of a task that was started, and has not written a result."""

    command: str
    arguments: tuple[str, ...]
    status: int | None = None  # exit status, negative for a signal; None: not known to have ended

    def write(self, path: Path) -> None:
        """Write the attempt to a file atomically."""
        write_atomically(path, lambda file: file.write(json.dumps(asdict(self)).encode()))

    @classmethod
    def read(cls, path: Path) -> Attempt | None:
        """Read an attempt; None if there is no valid file."""
        try:
            content = json.loads(read_bounded(path, WRITTEN_BY_US))
            return cls(content["command"], tuple(content["arguments"]), content["status"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    @property
    def interrupted(self) -> bool:
        """Whether the command was ended from outside, so that it can resume."""
        return self.status is None or self.status in (*INTERRUPTED, *KILLED)


@dataclass(frozen=True)
class BatchJob:
    """The Slurm job of a task, and its state in the queue."""

    id: str
    state: str  # "running", "queued", "gone"
    log: Path


@dataclass(frozen=True)
class TaskState:
    """The state of a task, with the reason for it."""

    task: Task
    state: str  # of records.sweep.STATES
    reason: str = ""
    log: Path | None = None
    unmet: tuple[str, ...] = ()  # commands that are done, but did not meet a tolerance

    def last_lines(self) -> list[str]:
        """The last lines of the task's log."""
        return last_lines(self.log) if self.log else []


def status_of(plan: Plan, standings: Sequence[TaskState]) -> SweepStatus:
    """The record of the states of all tasks."""
    tasks = [
        TaskStatus(
            name=s.task.name,
            state=s.state,
            reason=s.reason or None,
            log=str(s.log) if s.log else None,
            last_lines=s.last_lines(),
            tolerance_not_met=list(s.unmet),
        )
        for s in standings
    ]
    return SweepStatus(plan=str(plan.path), out=str(plan.out), tasks=tasks)


def record_path(plan: Plan, task: Task, suffix: str) -> Path:
    """The sweep's file for a task with this suffix: json, log or lock."""
    return plan.records / f"{task.name}.{suffix}"


def task_state(plan: Plan, task: Task, job: BatchJob | None = None) -> TaskState:
    """The state of a task, from its results, its last attempt, its lock and its job."""
    found = {command: read_result(task, command) for command, _ in task.commands}
    records, edited = {command: record for command, (record, _) in found.items()}, [text for _, text in found.values()]
    reason = next(filter(None, edited), "")
    unmet = tuple(command for command, record in records.items() if record and not converged(record))
    if all(records.values()):
        return TaskState(task, "finished", unmet=unmet)
    if is_locked(record_path(plan, task, "lock")):
        return TaskState(task, "running")
    if job and job.state in ("running", "queued"):
        return TaskState(task, job.state)
    attempt = Attempt.read(record_path(plan, task, "json"))
    if job and attempt is None and not record_path(plan, task, "log").exists():
        return TaskState(task, "interrupted", f"job {job.id} ended before its task began", job.log)
    if attempt is None or (attempt.command, attempt.arguments) not in task.commands:  # the plan has changed since
        return TaskState(task, "waiting", reason)
    state = "interrupted" if attempt.interrupted else "failed"
    return TaskState(task, state, how_it_ended(attempt), record_path(plan, task, "log"))


def how_it_ended(attempt: Attempt) -> str:
    """How an attempt ended without its result, as text."""
    if attempt.status is None:
        return f"{attempt.command} was running when its sweep ended"
    if attempt.status < 0:
        return f"{attempt.command} was killed by {signal.Signals(-attempt.status).name}"
    if attempt.status in (0, 1):
        return f"{attempt.command} ended with status {attempt.status}, but did not write the requested result"
    return f"{attempt.command} ended with status {attempt.status}"


def remaining(task: Task) -> list[tuple[str, tuple[str, ...]]]:
    """The commands that are not done."""
    return [(command, arguments) for command, arguments in task.commands if result(task, command) is None]


def result(task: Task, command: str) -> Record | None:
    """The record of a command, if it has the plan's options and the current checkpoint; otherwise None."""
    return read_result(task, command)[0]


def read_result(task: Task, command: str) -> tuple[Record | None, str]:
    """The record that `result` returns, and the error message of a file that is not a valid result of the command."""
    path = task.directory / f"{command}.json"
    try:
        _, record = load(path, [command])
    except SpectraError as error:
        return None, str(error) if os.path.lexists(path) else ""
    asked, options = task.recorded.get(command, {}), record.problem.options or {}
    if any(asked[name] != options[name] for name in (asked.keys() & options.keys()) - FREE):
        return None, ""
    if asked.get("precondition") != options.get("precondition"):  # older results lack it
        return None, ""
    return (record if same_checkpoint(task, path, record) else None), ""


def same_checkpoint(task: Task, path: Path, record: Record) -> bool:
    """Whether a result belongs to the current checkpoint: by time if it is long unchanged, otherwise by SHA-256."""
    if task.checkpoint is None:
        return True
    times = [getattr(entry, key, 0) for entry in record.results for key in ("seconds", "setup_seconds")]
    spent = sum(time for time in times if math.isfinite(time))
    try:
        changed, written = task.checkpoint.stat().st_ctime, path.stat().st_mtime
        if changed < written - spent - LONGEST_LOADING and parts(task.checkpoint) == [task.checkpoint]:
            return True
        return digest(task.checkpoint, task.directory) == record.problem.checkpoint_sha256
    except (OSError, SpectraError):
        return False


def converged(record: Record) -> bool:
    """Whether every result in a record met its tolerance."""
    return all(getattr(entry, "converged", True) for entry in record.results)


def last_lines(path: Path, count: int = LAST_LINES) -> list[str]:
    """The last lines of a text file, empty ones left out."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - 10_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


@contextmanager
def file_lock(path: Path, patience: float = 1.0) -> Iterator[IO | None]:
    """Lock a file inside this context, and yield it for child processes to inherit; None if others hold the lock.

    It waits for `patience` seconds, since `is_locked` takes the lock for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with path.open("a") as file:
        while not (mine := try_lock(file)) and time.monotonic() < end:
            time.sleep(0.05)
        yield file if mine else None


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on this file."""
    try:
        with path.open() as file:
            return not try_lock(file, shared=True)
    except FileNotFoundError:
        return False


def try_lock(file: IO, shared: bool = False) -> bool:
    """Try to lock an open file, and return whether this succeeded."""
    try:
        lock(file, shared)
    except BlockingIOError:
        return False
    return True
