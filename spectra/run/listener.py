"""Listeners, who follow a run: its progress, its heading, and notes that a user has to know.

The command line's listener writes to the terminal (`spectra.cli.terminal`); that of a caller in Python is here. Nothing
in this room prints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from spectra.records.problem import ProblemRecord

log = logging.getLogger("spectra")


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
    how far that is, and as progress("loading", stage="reading the data"). What it raises ends the run.
    """

    progress: Progress | None = None

    def begin(self) -> None:
        pass

    @contextmanager
    def work(self, name: str) -> Iterator[Work]:
        yield Told(name, self.progress or nothing)

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


def nothing(*_: Any, **__: Any) -> None:
    """A progress function that does nothing."""
