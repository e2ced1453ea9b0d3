"""The other ranks of this job on this machine, and whether each of them is still alive.

A killed rank sends no message, and nobody notices before the ranks share a store. Linux shows the environment with
which each process of a user was started, where torchrun sets the rank. On other systems nothing is known. No torch is
loaded here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROCESSES = Path("/proc")
JOB = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


class RankProcess(NamedTuple):
    """A process, identified by its start time too, since its number may be reused."""

    pid: int
    started: int  # in clock ticks since the machine started


class LocalRanks:
    """The processes of other ranks on this machine, by rank, that `look` has found so far."""

    def __init__(self):
        self.found: dict[int, set[RankProcess]] = {}
        self._own = os.getpid()

    def look(self) -> None:
        """Find the processes that were started as ranks of this job."""
        wanted = {name: os.environ.get(name) for name in JOB}
        for entry in PROCESSES.glob("[0-9]*"):
            pid = int(entry.name)
            with suppress(OSError, ValueError, UnicodeDecodeError):
                environment = dict(
                    pair.split("=", 1) for pair in (entry / "environ").read_bytes().decode().split("\0") if "=" in pair
                )
                if pid != self._own and all(environment.get(name) == value for name, value in wanted.items()):
                    number = int(environment.get("RANK", ""))
                    if number != int(os.environ["RANK"]) and (started := start_of(pid)) is not None:
                        self.found.setdefault(number, set()).add(RankProcess(pid, started))

    def living(self) -> set[int]:
        """The ranks found that have a running process."""
        return {number for number, processes in self.found.items() if any(map(is_alive, processes))}

    def gone(self) -> set[int]:
        """The ranks found that have no running process any more."""
        return self.found.keys() - self.living()

    def never_seen(self) -> set[int]:
        """The ranks that torchrun has placed on this machine, and that have not been found."""
        own, count = int(os.environ["RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE") or 0)
        first = own - int(os.environ["LOCAL_RANK"])
        return set(range(first, first + count)) - {own} - self.found.keys() if PROCESSES.exists() else set()


def is_alive(process: RankProcess) -> bool:
    """Whether the process still runs."""
    return start_of(process.pid) == process.started


def start_of(pid: int) -> int | None:
    """The start time of a process; None where it has ended, even if its exit status has not been collected."""
    try:
        fields = (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # man 5 proc: state is the third field, starttime the 22nd
