"""Output on the terminal: notes and the user's own prints on standard error, the answer on standard output."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from spectra.cli.flags import with_flags
from spectra.cli.progress import Line, Telling, begin_work, clear_line, progress_line, tell_heading
from spectra.commands import COMMANDS
from spectra.errors import SpectraError
from spectra.quoting import LINE, escaped, quoted
from spectra.wording import counted

if TYPE_CHECKING:
    from spectra.records.entry import Entry
    from spectra.records.problem import ProblemRecord
    from spectra.records.record import Record

_printed = ""  # of the present command's answer, before the rest of it was known


def note(text: str) -> None:
    """One line on standard error."""
    clear_line()
    print(f"spectra: {quoted(for_terminal(text), LINE)}", file=sys.stderr, flush=True)


def for_terminal(text: str) -> str:
    """`text` with arguments of the library as options of the command line, where a command runs."""
    context = click.get_current_context(silent=True)
    return with_flags(text, context.find_root().command) if context else text


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Whatever a user's code prints inside, even from C, goes to standard error, as does progress.

    So does the heading, unless a terminal is to show the answer in tables: elsewhere standard output stays empty until
    there is an answer, since there may come none.
    """
    global _printed
    context = click.get_current_context(silent=True)
    as_json = bool(context and context.params.get("as_json"))
    sys.stdout.flush()
    kept, stdout = os.dup(1), sys.stdout

    watched = not as_json and stdout.isatty()

    def print_at_once(text: str) -> None:
        text = for_terminal(text)
        if watched:
            with suppress(OSError):  # the rest of the answer will meet the same
                os.write(kept, text.encode(stdout.encoding or "utf-8", "replace"))
        else:
            print(text, end="", file=sys.stderr, flush=True)

    os.dup2(2, 1)
    sys.stdout = sys.stderr
    telling = Telling(print_at_once, watched or sys.stderr.isatty())
    try:
        with telling:
            yield
    except SystemExit as error:
        text = f"code of yours ended the program (SystemExit: {error.code}); take that out of it"
        raise SpectraError(f"--model, --data, --transform, --loss or --operator: {text}") from error
    finally:
        ctypes.CDLL(None).fflush(None)  # what C code printed waits in a buffer of its own
        sys.stdout = stdout
        os.dup2(kept, 1)
        os.close(kept)
        _printed = telling.printed if watched else ""


def usual_heading(problem: ProblemRecord) -> str:
    """The heading of tables: what is looked at, and its loss."""
    from spectra.tables.results import heading, rendered

    return rendered(heading(problem))


@dataclass(frozen=True)
class Terminal:
    """The listener of a command's run: what passes goes to standard error, the heading to where the answer goes."""

    text: Callable[[ProblemRecord], str] = usual_heading

    def begin(self) -> None:
        begin_work()

    def work(self, name: str) -> AbstractContextManager[Line]:
        return progress_line(name)

    def heading(self, problem: ProblemRecord) -> None:
        tell_heading(self.text(problem))

    def note(self, text: str) -> None:
        note(text)


TERMINAL = Terminal()


def answer(text: str) -> None:
    """Print lines on standard output, without control characters. Raises SpectraError where that is full."""
    try:
        print("\n".join(map(escaped, text.split("\n"))), flush=True)
    except BrokenPipeError:
        raise  # whoever reads has seen enough: click ends quietly
    except OSError as error:
        text = f"cannot be written ({error.strerror}); free some space, or write it elsewhere"
        raise SpectraError(f"standard output: {text}") from error


def finish(record: Record, as_json: bool, text: str) -> int:
    """Print, and say by the exit status whether every tolerance was met and every number is finite."""
    if as_json:
        answer(record.to_json())
    elif not _printed:
        answer(for_terminal(text))
    elif rest := text.removeprefix(_printed).removeprefix("\n"):
        answer(for_terminal(rest))
    if reason := why_not(record):
        note(reason)
    return 1 if reason else 0


def why_not(record: Record) -> str:
    """The reason why the first result is not as good as was asked, and the way out; empty where all are."""
    limit = record.problem.option("max_products")
    for result in record.results:
        name = result.curvature
        # Where checks have found products finite, a number that is missing is one that --max-products left none for.
        short = limit is not None and math.isfinite(result.noise or math.nan) and result.products >= limit - 1
        if not result.is_finite() and not short:
            where = (
                "at what the operator returns" if record.problem.operators else "for a derivative of sqrt or norm at 0"
            )
            way_out = f"try --dtype float64, or look {where}"
            return f"{name}: a number is not finite{missing(result)}; {way_out}"
        if not result.converged:
            return f"{name}: not converged in {counted(result.products, 'product')}; {COMMANDS[record.command].way_out}"
    return ""


def missing(result: Entry) -> str:
    """How many examples have numbers that are not finite, and which is the first; empty where that is not of examples."""
    for name in ("eigenvalues_by_example", "traces_by_example"):
        found = getattr(result, name.replace("eigenvalues", "values"), None)
        if found is not None:
            of_each = found.reshape(len(found), -1).tolist()
            rows = [i for i, numbers in enumerate(of_each) if not all(map(math.isfinite, numbers))]
            return f" for {len(rows):,} of {counted(len(found), 'example')}, the first in row {rows[0]} of {name}"
    return ""
