"""Show the progress of a command on standard error, and the heading of its answer before the rest.

A thread prints it, since tracing and long products do not return in between. On a terminal the heading is printed at
once, and one line is updated; elsewhere both are printed only after some time.
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

# Seconds after which progress is printed if standard error is no terminal: LATE of wall-clock time, if half of it was
# CPU time (short work takes long on a busy machine), or IN_ANY_CASE; then EVERY between two lines.
LATE, IN_ANY_CASE, EVERY = 10.0, 60.0, 30.0
FRAME = 0.2  # seconds between two updates
LONG = 3000  # rows of a Gram matrix; the eigenvalues of a larger one take seconds, without updates in between


class Line:
    """The progress of one piece of work: its name, its state and the time it has taken."""

    def __init__(self, name: str):
        self.name, self.state, self.start = quoted(name, 40), "setting up", time.monotonic()

    def __call__(self, **numbers: float) -> None:
        raise_received()
        self.state = progress(numbers)
        if numbers.get("gram_rows", 0) >= LONG and _display:  # LAPACK may hold up every thread
            _display.show()

    def stage(self, name: str) -> None:
        """Show `name` as the current state."""
        raise_received()
        self.state = name

    @property
    def text(self) -> str:
        """The line as it is shown: name, numbers and seconds."""
        return f"{self.name}: {self.state}, {time.monotonic() - self.start:.0f} s"


class Display:
    """A thread that shows progress.

    Args:
        print_heading: prints the heading of the answer.
        watched: whether a terminal shows the heading.
    """

    def __init__(self, print_heading: Callable[[str], None], watched: bool):
        self.print_heading, self.watched, self.live = print_heading, watched, sys.stderr.isatty()
        self.lines: list[Line] = []
        self.heading = self.printed = ""
        self.created, self.last_shown, self.begun, self.spent = time.monotonic(), -EVERY, math.inf, math.inf
        self.guard, self.ended = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def begin(self) -> None:
        """Count time from now on, after which progress is shown."""
        self.begun, self.spent = time.monotonic(), time.process_time()

    def head(self, text: str) -> None:
        """Set the first lines of the answer, or more of them."""
        with self.guard:
            self.heading = text
            if self.watched:
                self._print_heading()

    def show(self) -> None:
        """Print the current state of the work."""
        with self.guard:
            if self.lines:
                text = self.lines[-1].text
                print(f"\r\x1b[K{text[:78]}" if self.live else text, end="" if self.live else "\n", file=sys.stderr)
                sys.stderr.flush()

    def clear(self) -> None:
        """Remove the progress line from the terminal."""
        with self.guard:
            if self.live and self.lines:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _print_heading(self) -> None:
        new = self.heading.removeprefix(self.printed).removeprefix("\n")
        if new and self.heading.startswith(self.printed):
            self.clear()
            self.print_heading(f"{new}\n")
            self.printed = self.heading

    def _run(self) -> None:
        while not self.ended.wait(FRAME):
            with self.guard:
                if late := self._late():
                    self._print_heading()
                if self.live or (late and self.lines and time.monotonic() >= self.last_shown + EVERY):
                    self.show()
                    self.last_shown = time.monotonic()

    def _late(self) -> bool:
        passed, spent = time.monotonic() - self.begun, time.process_time() - self.spent
        return time.monotonic() - self.created >= IN_ANY_CASE or (passed >= LATE and spent >= LATE / 2)

    def __enter__(self) -> Display:
        global _display
        _display = self
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _display
        _display = None
        self.ended.set()
        self.thread.join()


_display: Display | None = None


def show_heading(text: str) -> None:
    """Show the first lines of the answer before the rest is known."""
    if _display:
        _display.head(text)


@contextmanager
def progress_line(name: str) -> Iterator[Line]:
    """A context that shows the progress of a piece of work; its line is called with numbers as the work proceeds."""
    line, display = Line(name), _display
    if display:
        display.lines.append(line)
    try:
        yield line
    finally:
        if display:
            display.clear()
            display.lines.remove(line)


def begin_work() -> None:
    """Count time from now on, without what every command does first, such as loading PyTorch."""
    if _display:
        _display.begin()


def clear_line() -> None:
    """Remove the progress line from the terminal, if there is one."""
    if _display:
        _display.clear()
