"""Listeners, who follow a run: its progress, its heading, and notes that a user has to know.

The command line's listener writes to the terminal (`spectra.cli.terminal`); that of a caller in Python is here. Nothing
in this room prints, but for the line of progress that a caller asks for.
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
EVERY = 0.2  # seconds between two writings of a progress line
LONGEST = 78  # characters of one


class Work(Protocol):
    """A piece of work: called with numbers as it gets on."""

    def __call__(self, **numbers: float) -> None: ...

    def stage(self, name: str) -> None:
        """Say what is done next."""
        ...


class Listener(Protocol):
    """The interface of whoever follows a run."""

    def begin(self) -> None:
        """All is set up that every run needs, as PyTorch; what comes is work on this problem."""
        ...

    def work(self, name: str) -> AbstractContextManager[Work]:
        """A piece of work begins, and lasts as long as the context does."""
        ...

    def heading(self, problem: ProblemRecord) -> None:
        """The problem is loaded; this is its record."""
        ...

    def note(self, text: str) -> None:
        """A sentence that the user has to know."""
        ...


Progress = Callable[..., None]


@dataclass(frozen=True)
class Caller:
    """A caller in Python: notes go to the logger `spectra`, the rest to a function, where there is one.

    It is called as progress("hessian", products=12, ...) with the name of what is being done and the numbers that tell
    how far that is, and as progress("loading", stage="reading the data"). What it raises ends the run. True stands for
    a line on standard error that is kept up to date, in a terminal or a notebook.
    """

    progress: Progress | bool | None = None

    def begin(self) -> None:
        pass

    @contextmanager
    def work(self, name: str) -> Iterator[Work]:
        if self.progress is not True:
            yield Told(name, self.progress or nothing)
            return
        line = ProgressLine()
        try:
            yield Told(name, line)
        finally:
            line.clear()

    def heading(self, problem: ProblemRecord) -> None:
        pass

    def note(self, text: str) -> None:
        log.info(text)


@dataclass(frozen=True)
class Told:
    """A piece of work whose progress is given to a function."""

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
    written: float = -math.inf  # when it was written last
    width: int = 0  # of what is written

    def __call__(self, name: str, stage: str | None = None, **numbers: float) -> None:
        now = time.monotonic()
        if stage is None and now - self.written < EVERY:
            return
        text = f"{quoted(name, 40)}: {stage or progress(numbers)}, {now - self.start:.0f} s"[:LONGEST]
        sys.stderr.write(f"\r{text}{' ' * (self.width - len(text))}")
        sys.stderr.flush()
        self.written, self.width = now, len(text)

    def clear(self) -> None:
        """Leave an empty line."""
        if self.width:
            sys.stderr.write(f"\r{' ' * self.width}\r")
            sys.stderr.flush()


def nothing(*_: Any, **__: Any) -> None:
    """A progress function that does nothing."""
