"""A thread of each of several ranks that ends it where its main thread cannot, since that waits in PyTorch for another.

Signals reach Python only between two calls into PyTorch, and one that waits for a rank that has died may take half an
hour. So the thread watches the other ranks and the signals, gives the main thread time to end by itself, and then speaks
for it. All of this takes less than ten seconds.
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

TICK = 0.25  # seconds between two looks
PROMPT = 3.0  # seconds in which a main thread that can ends by itself
START = (
    7.0  # seconds in which all ranks of a machine have been started; they may then load PyTorch as long as they like
)
LONGEST = 8.0  # seconds in which it has saved its state
ALIKE = 6.0  # seconds in which ranks that have not met yet end alike, for their command line

End = Callable[[str, bool, int], None]  # what to say, whether of a rank that is missed, the exit status


class Sentinel(threading.Thread):
    """A thread that calls `end` once, or never."""

    def __init__(self, end: End):
        super().__init__(name="sentinel", daemon=True)
        self.end = end
        self.since: dict[str, float] = {}  # what is seen, and since when
        self.searched = False  # for the other ranks' processes, to the last
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
            for name, seen in self.sights(arrived):
                if seen:
                    self.since.setdefault(name, time.monotonic())
                else:
                    self.since.pop(name, None)
            if how := self.verdict():
                self.end(*how)
                return

    def signals(self) -> set[int]:
        """The signals that have come in the last tick."""
        ready, _, _ = select.select([self.pipe], [], [], TICK)
        return set(os.read(self.pipe, 64)) if ready else set()

    def sights(self, arrived: set[int]) -> list[tuple[str, bool]]:
        """The reasons to end, each with whether it is seen now."""
        first, before = ranks.first_to_fail(), self.since
        return [
            ("terminated", "terminated" in before or bool(arrived & set(ENDING))),
            ("interrupted", "interrupted" in before or signal.SIGINT in arrived),
            ("another failed", first not in (None, ranks.rank())),
            ("one is gone", bool(ranks.siblings.gone()) and not ranks.done()),
            ("one never came", bool(ranks.siblings.never_seen()) and not ranks.met()),
        ]

    def verdict(self) -> tuple[str, bool, int] | None:
        """The message and status to end with, once a reason has lasted too long."""
        prompt = LONGEST if received() else PROMPT  # where the main thread has had the signal, it is at its end
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

    def lasted(self, sight: str, seconds: float) -> bool:
        """Whether a reason has lasted so long."""
        return sight in self.since and time.monotonic() - self.since[sight] >= seconds
