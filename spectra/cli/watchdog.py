"""A thread in each rank that ends the process if the main thread cannot, because it waits in PyTorch for another rank.

Python handles signals only between calls into PyTorch, and a call that waits for a dead rank may take half an hour. So
the thread watches the signals and the other ranks, gives the main thread time to end, and then prints the error and ends
the process in its place. All of this takes less than ten seconds.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

from spectra.cli.signals import ENDING, INTERRUPTED, TERMINATED, received
from spectra.cluster import ranks

# All in seconds.
TICK = 0.25  # between two checks
PROMPT = 3.0  # for a main thread that can end to end
START = 7.0  # for all processes of a machine to start; loading PyTorch may then take any time
LONGEST = 8.0  # for the main thread to save its state
ALIKE = 6.0  # for ranks that are not connected yet to fail for the same reason, such as a bad option

End = Callable[[str, bool, int], None]  # of the message, whether a rank is missing, and the exit status


class Watchdog(threading.Thread):
    """A thread that calls `end` once, or never."""

    def __init__(self, end: End):
        super().__init__(name="sentinel", daemon=True)
        self.end = end
        self.since: dict[str, float] = {}  # the reasons to end that are present, and since when
        self.searched = False  # whether all processes of the other ranks have been found
        self.pipe, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        ranks.siblings.look()

    def run(self) -> None:
        """Watch the signals and the other ranks until this one leaves."""
        while not ranks.leaving():
            arrived = self.signals()
            if not self.searched:
                self.searched = ranks.met()
                ranks.siblings.look()
            for name, present in self.reasons(arrived):
                if present:
                    self.since.setdefault(name, time.monotonic())
                else:
                    self.since.pop(name, None)
            if how := self.verdict():
                self.end(*how)
                return

    def signals(self) -> set[int]:
        """The signals that have arrived in the last tick."""
        ready, _, _ = select.select([self.pipe], [], [], TICK)
        return set(os.read(self.pipe, 64)) if ready else set()

    def reasons(self, arrived: set[int]) -> list[tuple[str, bool]]:
        """The reasons to end, each with whether it is present now."""
        first, before = ranks.first_to_fail(), self.since
        return [
            ("terminated", "terminated" in before or bool(arrived & set(ENDING))),
            ("interrupted", "interrupted" in before or signal.SIGINT in arrived),
            ("another failed", first not in (None, ranks.rank())),
            ("one is gone", bool(ranks.siblings.gone()) and not ranks.done()),
            ("one never came", bool(ranks.siblings.never_seen()) and not ranks.met()),
        ]

    def verdict(self) -> tuple[str, bool, int] | None:
        """The arguments of `end`, once a reason has lasted too long."""
        prompt = LONGEST if received() else PROMPT  # a main thread that has received the signal saves its state
        if self.lasted("terminated", prompt):
            return (ranks.SILENT, True, TERMINATED) if ranks.lost_one() else ("terminated", False, TERMINATED)
        if self.lasted("interrupted", prompt):
            return "interrupted", False, INTERRUPTED
        if self.lasted("another failed", ranks.PATIENCE + 1 if ranks.rank() == 0 else PROMPT):
            return ranks.SILENT, True, 2
        if self.lasted("one is gone", PROMPT if ranks.met() else ALIKE):
            return ranks.SILENT, True, 2
        if self.lasted("one never came", START):
            return ranks.not_started(), True, 2
        return None

    def lasted(self, reason: str, seconds: float) -> bool:
        """Whether a reason has been present for so long."""
        return reason in self.since and time.monotonic() - self.since[reason] >= seconds
