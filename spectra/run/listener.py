"""Listeners, which receive the progress, the heading and the notes of a run.

The command line's listener writes to the terminal (`spectra.cli.terminal`); the listener for calls from Python is here.
Nothing in this package prints, apart from a progress line that a caller requests.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from spectra.quoting import quoted
from spectra.records.problem import ProblemRecord
from spectra.wording import progress

log = logging.getLogger("spectra")
EVERY = 0.2  # seconds between updates of a progress line
LONGEST = 78  # characters of a progress line


class Work(Protocol):
    """A piece of work in progress, called with numbers such as products=12."""

    def __call__(self, **numbers: float) -> None: ...

    def stage(self, name: str) -> None:
        """Report the next stage of the work."""
        ...


class Listener(Protocol):
    """The interface of an object that receives the progress of a run."""

    def begin(self) -> None:
        """Called when PyTorch is loaded and work on the problem begins."""
        ...

    def work(self, name: str) -> AbstractContextManager[Work]:
        """Called when a piece of work begins; it lasts as long as the context."""
        ...

    def heading(self, problem: ProblemRecord) -> None:
        """Called with the record of the problem when it is loaded."""
        ...

    def note(self, text: str) -> None:
        """Called with a sentence for the user."""
        ...


Progress = Callable[..., None]


@dataclass(frozen=True)
class Caller:
    """The listener for calls from Python: notes go to the logger `spectra`, progress to a function if there is one.

    The function is called as progress("hessian", products=12, ...) with the name of the current work and numbers, or as
    progress("loading", stage="reading the data"). An exception in it ends the run. True shows a progress line on
    standard error.
    """

    progress: Progress | bool | None = None

    def begin(self) -> None:
        pass

    @contextmanager
    def work(self, name: str) -> Iterator[Work]:
        if self.progress is not True:
            yield Reported(name, self.progress or nothing)
            return
        line = ProgressLine()
        try:
            yield Reported(name, line)
        finally:
            line.clear()

    def heading(self, problem: ProblemRecord) -> None:
        pass

    def note(self, text: str) -> None:
        log.info(text)


@dataclass(frozen=True)
class Reported:
    """A piece of work that reports its progress to a function."""

    name: str
    progress: Progress

    def __call__(self, **numbers: float) -> None:
        self.progress(self.name, **numbers)

    def stage(self, name: str) -> None:
        self.progress(self.name, stage=name)


@dataclass
class ProgressLine:
    """A progress function that keeps one line on standard error up to date."""

    start: float = field(default_factory=time.monotonic)
    written: float = -math.inf  # time of the last update
    width: int = 0  # of the last text

    def __call__(self, name: str, stage: str | None = None, **numbers: float) -> None:
        now = time.monotonic()
        if stage is None and now - self.written < EVERY:
            return
        text = f"{quoted(name, 40)}: {stage or progress(numbers)}, {now - self.start:.0f} s"[:LONGEST]
        sys.stderr.write(f"\r{text}{' ' * (self.width - len(text))}")
        sys.stderr.flush()
        self.written, self.width = now, len(text)

    def clear(self) -> None:
        """Erase the line."""
        if self.width:
            sys.stderr.write(f"\r{' ' * self.width}\r")
            sys.stderr.flush()


def nothing(*_: Any, **__: Any) -> None:
    """A progress function that does nothing."""
