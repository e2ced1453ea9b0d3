"""What passes over the terminal: progress and the user's own prints on standard error, the answer on standard output."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from spectra.cli.signals import raise_received
from spectra.errors import SpectraError

LONG = 3000  # rows of a Gram matrix whose eigenvalues take seconds, of which nothing can be told on the way


def note(text: str) -> None:
    """One line on standard error."""
    print(f"spectra: {text}", file=sys.stderr, flush=True)


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Whatever a user's code prints inside, even from C, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    except SystemExit as error:
        text = f"code of yours ended the program (SystemExit: {error.code}); take that out of it"
        raise SpectraError(f"--model, --data, --transform or --loss: {text}") from error
    finally:
        ctypes.CDLL(None).fflush(None)  # what C code printed waits in a buffer of its own
        sys.stdout = stdout
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress_line(name: str) -> Iterator[Callable[..., None]]:
    """A live line on a terminal's standard error; elsewhere a line every half minute."""
    start = last = time.monotonic()
    live = sys.stderr.isatty()

    def show(**numbers: float) -> None:
        nonlocal last
        raise_received()
        now = time.monotonic()
        if now - last < (0.1 if live else 30) and numbers.get("gram_rows", 0) < LONG:
            return
        last = now
        text = f"{name}: {describe(numbers)}, {now - start:.0f} s"
        print(f"\r\x1b[K{text[:78]}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)

    if live:
        print(f"\r\x1b[K{name}: setting up", end="", file=sys.stderr, flush=True)
    try:
        yield show
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def describe(numbers: dict[str, float]) -> str:
    if "gram_rows" in numbers:
        return f"eigenvalues of a Gram matrix of {numbers['gram_rows']:,} rows"
    parts = [f"{numbers['products']} products"]
    if "converged" in numbers:
        parts.append(f"{numbers['converged']:.0f} of {numbers['wanted']:.0f} done")
    if "residual" in numbers and math.isfinite(numbers["residual"]):
        parts.append(f"residual {numbers['residual']:.1e}")
    if "trace" in numbers:
        parts.append(f"trace {numbers['trace']:.6g} ± {numbers['standard_error']:.1e}")
    return ", ".join(parts)


def answer(text: str) -> None:
    """Print on standard output. Raises SpectraError where that is full."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise  # whoever reads has seen enough: click ends quietly
    except OSError as error:
        text = f"cannot be written ({error.strerror}); free some space, or write it elsewhere"
        raise SpectraError(f"standard output: {text}") from error


def finish(record: dict[str, Any], as_json: bool, text: str) -> int:
    """Print, and say by the exit status whether every tolerance was met and every number is finite."""
    from spectra.results import to_json

    answer(to_json(record) if as_json else text)
    if reason := why_not(record):
        note(reason)
    return 1 if reason else 0


MORE = "raise --max-products"
WAYS_OUT = {
    "eig": f"{MORE}, try --dtype float64, or loosen --tol; eigenvalues that crowd, as at 0, take the most",
    "trace": f"{MORE}, or loosen --rtol",
    "density": MORE,
    "compare": f"{MORE}, or ask for fewer -k",
    "layers": f"{MORE}, try --dtype float64, or loosen --rtol or --tol",
    "landscape": f"{MORE}, try --dtype float64, or loosen --tol; eigenvalues that crowd, as at 0, take the most",
}


def why_not(record: dict[str, Any]) -> str:
    """What is wrong with the first result that is not as good as was asked, and the way out; else empty."""
    from spectra.results import finite

    for result in record["results"]:
        name = result["curvature"]
        known = {key: value for key, value in result.items() if (key, value) != ("standard_error", math.inf)}
        if finite(known) != known:
            return f"{name}: a number is not finite; try --dtype float64, or look for a derivative of sqrt or norm at 0"
        if not result["converged"]:
            return f"{name}: not converged in {result['products']} products; {WAYS_OUT[record['command']]}"
    return ""
