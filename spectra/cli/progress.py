"""Progress of a command: the heading of its answer, and on standard error what it is doing.

A thread tells it, since neither tracing nor a long product comes back to say how it stands. On a terminal the heading
comes at once, and one line is kept up to date; elsewhere both come once the work has taken some time.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spectra.cli.signals import raise_received
from spectra.quoting import quoted
from spectra.wording import progress

# Seconds of work after which it is told of where nobody watches a terminal: by the clock, if half of that was spent on
# it (a crowded machine makes short work long), or in any case; then between two lines.
LATE, IN_ANY_CASE, EVERY = 10.0, 60.0, 30.0
FRAME = 0.2  # seconds between two looks
LONG = 3000  # rows of a Gram matrix whose eigenvalues take seconds, of which nothing can be told on the way


class Line:
    """A piece of work: its name, and how it stands."""

    def __init__(self, name: str):
        self.name, self.stands, self.start = quoted(name, 40), "setting up", time.monotonic()

    def __call__(self, **numbers: float) -> None:
        raise_received()
        self.stands = progress(numbers)
        if numbers.get("gram_rows", 0) >= LONG and _telling:  # LAPACK may hold up every thread
            _telling.show()

    def stage(self, name: str) -> None:
        """Show this as what is done next."""
        raise_received()
        self.stands = name

    @property
    def text(self) -> str:
        """The line as it is shown: name, numbers and seconds."""
        return f"{self.name}: {self.stands}, {time.monotonic() - self.start:.0f} s"


class Telling:
    """The thread that shows progress; `answers` prints the heading, `watched` says whether a terminal shows that."""

    def __init__(self, answers: Callable[[str], None], watched: bool):
        self.answers, self.watched, self.live = answers, watched, sys.stderr.isatty()
        self.lines: list[Line] = []
        self.heading = self.printed = ""
        self.created, self.told, self.begun, self.spent = time.monotonic(), -EVERY, math.inf, math.inf
        self.guard, self.ended = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def begin(self) -> None:
        """Count time from now on, after which progress is shown."""
        self.begun, self.spent = time.monotonic(), time.process_time()

    def head(self, text: str) -> None:
        """The first lines of the answer, or more of them."""
        with self.guard:
            self.heading = text
            if self.watched:
                self._print_heading()

    def show(self) -> None:
        """Print how things stand now."""
        with self.guard:
            if self.lines:
                text = self.lines[-1].text
                print(f"\r\x1b[K{text[:78]}" if self.live else text, end="" if self.live else "\n", file=sys.stderr)
                sys.stderr.flush()

    def clear(self) -> None:
        """Take the line off the terminal."""
        with self.guard:
            if self.live and self.lines:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _print_heading(self) -> None:
        new = self.heading.removeprefix(self.printed).removeprefix("\n")
        if new and self.heading.startswith(self.printed):
            self.clear()
            self.answers(f"{new}\n")
            self.printed = self.heading

    def _run(self) -> None:
        while not self.ended.wait(FRAME):
            with self.guard:
                if late := self._late():
                    self._print_heading()
                if self.live or (late and self.lines and time.monotonic() >= self.told + EVERY):
                    self.show()
                    self.told = time.monotonic()

    def _late(self) -> bool:
        passed, spent = time.monotonic() - self.begun, time.process_time() - self.spent
        return time.monotonic() - self.created >= IN_ANY_CASE or (passed >= LATE and spent >= LATE / 2)

    def __enter__(self) -> Telling:
        global _telling
        _telling = self
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _telling
        _telling = None
        self.ended.set()
        self.thread.join()


_telling: Telling | None = None


def tell_heading(text: str) -> None:
    """Let the first lines of the answer be known before the rest of it is."""
    if _telling:
        _telling.head(text)


@contextmanager
def progress_line(name: str) -> Iterator[Line]:
    """A piece of work; the line is called with numbers as it gets on."""
    line, telling = Line(name), _telling
    if telling:
        telling.lines.append(line)
    try:
        yield line
    finally:
        if telling:
            telling.clear()
            telling.lines.remove(line)


def begin_work() -> None:
    """Count time from now on: what was done so far, as loading PyTorch, was done for every command alike."""
    if _telling:
        _telling.begin()


def clear_line() -> None:
    """Take the progress line off the terminal, if there is one."""
    if _telling:
        _telling.clear()
