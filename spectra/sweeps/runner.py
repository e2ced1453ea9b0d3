"""Run one task: its commands one after another, each in its own process."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO

from spectra.sweeps.plan import Plan, Task
from spectra.sweeps.tasks import Attempt, file_lock, record_path, remaining, result


class Runner:
    """Runs one task; `environment` is added to the current environment."""

    def __init__(self, plan: Plan, task: Task, environment: Mapping[str, str]):
        self.plan, self.task, self.environment = plan, task, environment
        self.before = self.last()
        self.process: subprocess.Popen | None = None
        self.stopping = False
        self.guard = threading.RLock()  # reentrant, for signals that arrive inside

    def last(self) -> Attempt | None:
        """The last attempt at this task, if there was one."""
        return Attempt.read(record_path(self.plan, self.task, "json"))

    def run(self) -> None:
        """Run the unfinished commands until one fails or `stop` is called; none if another runner has the task."""
        with file_lock(record_path(self.plan, self.task, "lock")) as lock:
            if lock is None or self.last() != self.before:
                return
            self.task.directory.mkdir(parents=True, exist_ok=True)
            for command, arguments in remaining(self.task):
                if not self.run_one(Attempt(command, arguments), lock):
                    return

    def run_one(self, attempt: Attempt, lock: IO) -> bool:
        """Run one command of the task; return whether it wrote its result."""
        note = record_path(self.plan, self.task, "json")
        with record_path(self.plan, self.task, "log").open("ab") as log:
            with self.guard:
                if self.stopping:
                    return False
                attempt.write(note)
                self.process = self.start(attempt, log, lock)
            status = self.process.wait()
        if status in (0, 1) and result(self.task, attempt.command):
            note.unlink()  # the result replaces it
            return True
        Attempt(attempt.command, attempt.arguments, status).write(note)
        return False

    def start(self, attempt: Attempt, log: IO, lock: IO) -> subprocess.Popen:
        """Start the command of an attempt as a process that writes to the log and holds the lock."""
        line = [attempt.command, *attempt.arguments]
        log.write(f"$ spectra {shlex.join(line)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "spectra", *line],  # -P: no file beside the plan shadows a module
            cwd=self.plan.directory,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops its tasks
        )

    def stop(self) -> None:
        """Make the current command save its state and end, and start no other. Safe in a signal handler."""
        with self.guard:
            self.stopping = True
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send a signal to the running command, if there is one."""
        if self.process and self.process.returncode is None:
            self.process.send_signal(number)

    def wait(self) -> None:
        """Wait until the current command has ended; safe even if `run` waits for it in the same thread."""
        if self.process and self.process.returncode is None:
            try:
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                return  # `run` has already waited for it
