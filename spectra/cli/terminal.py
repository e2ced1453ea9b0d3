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
from spectra.cli.progress import Display, Line, begin_work, clear_line, progress_line, show_heading
from spectra.commands import COMMANDS
from spectra.errors import SpectraError
from spectra.quoting import LINE, escaped, quoted
from spectra.wording import counted

if TYPE_CHECKING:
    from spectra.records.entry import Entry
    from spectra.records.problem import ProblemRecord
    from spectra.records.record import Record

_printed = ""  # the part of the answer that was printed before the rest was known


def note(text: str) -> None:
    """One line on standard error."""
    clear_line()
    print(f"spectra: {quoted(for_terminal(text), LINE)}", file=sys.stderr, flush=True)


def for_terminal(text: str) -> str:
    """Replace names of arguments by flags, if a command is running."""
    context = click.get_current_context(silent=True)
    return with_flags(text, context.find_root().command) if context else text


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Send to standard error what user code prints inside this context, even from C, and progress.

    The heading goes there too, unless standard output is a terminal that will show tables: otherwise standard output
    stays empty until the answer is complete.
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
            with suppress(OSError):  # printing the rest of the answer raises the same error
                os.write(kept, text.encode(stdout.encoding or "utf-8", "replace"))
        else:
            print(text, end="", file=sys.stderr, flush=True)

    os.dup2(2, 1)
    sys.stdout = sys.stderr
    display = Display(print_at_once, watched or sys.stderr.isatty())
    try:
        with display:
            yield
    except SystemExit as error:
        status = "" if error.code is None else error.code
        text = f"your code called sys.exit({status}); remove the call"
        raise SpectraError(f"--model, --data, --transform, --loss or --operator: {text}") from error
    finally:
        ctypes.CDLL(None).fflush(None)  # C code has a buffer of its own
        sys.stdout = stdout
        os.dup2(kept, 1)
        os.close(kept)
        _printed = display.printed if watched else ""


def usual_heading(problem: ProblemRecord) -> str:
    """The heading of tables: model, data, sizes and loss."""
    from spectra.tables.results import heading, rendered

    return rendered(heading(problem))


@dataclass(frozen=True)
class Terminal:
    """A listener that shows a run's progress and notes on standard error, and its heading with the answer."""

    text: Callable[[ProblemRecord], str] = usual_heading

    def begin(self) -> None:
        begin_work()

    def work(self, name: str) -> AbstractContextManager[Line]:
        return progress_line(name)

    def heading(self, problem: ProblemRecord) -> None:
        show_heading(self.text(problem))

    def note(self, text: str) -> None:
        note(text)


TERMINAL = Terminal()


def answer(text: str) -> None:
    """Print lines on standard output, with control characters escaped. Raises SpectraError if it is full."""
    try:
        print("\n".join(map(escaped, text.split("\n"))), flush=True)
    except BrokenPipeError:
        raise  # the reader has closed the pipe: click ends quietly
    except OSError as error:
        text = f"cannot be written ({error.strerror}); free some space, or redirect it elsewhere"
        raise SpectraError(f"standard output: {text}") from error


def finish(record: Record, as_json: bool, text: str) -> int:
    """Print the answer and return 0 if every tolerance was met and every number is finite, else 1."""
    if as_json:
        answer(record.to_json())
    elif not _printed:
        answer(for_terminal(text))
    elif rest := text.removeprefix(_printed).removeprefix("\n"):
        answer(for_terminal(rest))
    if reason := unsatisfied_reason(record):
        note(reason)
    return 1 if reason else 0


def unsatisfied_reason(record: Record) -> str:
    """Why the first unsatisfactory result falls short, and the way out; empty if all are satisfactory."""
    limit = record.problem.option("max_products")
    for result in record.results:
        name = result.curvature
        # If the checks found finite products, a number that is missing is due to --max-products.
        short = limit is not None and math.isfinite(result.noise or math.nan) and result.products >= limit - 1
        if not result.is_finite() and not short:
            where = "what the operator returns" if record.problem.operators else "the model for sqrt or norm at 0"
            way_out = f"try --dtype float64, or check {where}"
            return f"{name}: a number is not finite{missing(result)}; {way_out}"
        if not result.converged:
            return f"{name}: not converged in {counted(result.products, 'product')}; {COMMANDS[record.command].way_out}"
    return ""


def missing(result: Entry) -> str:
    """Text on the examples with numbers that are not finite; empty for results without numbers of single examples."""
    for name in ("eigenvalues_by_example", "traces_by_example"):
        found = getattr(result, name.replace("eigenvalues", "values"), None)
        if found is not None:
            of_each = found.reshape(len(found), -1).tolist()
            rows = [i for i, numbers in enumerate(of_each) if not all(map(math.isfinite, numbers))]
            return f" for {len(rows):,} of {counted(len(found), 'example')}, the first in row {rows[0]} of {name}"
    return ""
