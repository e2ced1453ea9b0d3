"""What all commands do: load the problem, apply a method to each matrix, keep and print what came out."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spectra.errors import SpectraError

SMALLEST_CHECKED = 8  # products; of fewer, the three of the check would leave too little
OTHERS = ("curvature", "max_products", "out", "as_json")


@dataclass
class Session:
    """The options that a command was given, and its problem once loaded."""

    command: str
    options: dict[str, Any]

    def load(self):
        from spectra.inputs.problem import load_problem
        from spectra.results import prepare_directory

        if self.options["out"]:
            prepare_directory(self.options["out"])
        named = {key: value for key, value in self.options.items() if key not in OTHERS}
        return load_problem(**named)

    def measure(self, problem, method: Callable) -> list[Measurement]:
        """`method(operator, generator=, max_products=, progress=)` on each matrix, from the same seed."""
        names = list(dict.fromkeys(self.options["curvature"]))
        matrices = [self._matrix(problem, name) for name in names]  # all are named rightly before any is computed
        return [self._measure_one(matrices.pop(0), method) for _ in names]  # popped: each gives its graphs back

    def _matrix(self, problem, name: str):
        from spectra.curvature.operator import Curvature

        return Curvature(problem, name)

    def _measure_one(self, matrix, method: Callable) -> Measurement:
        import torch

        from spectra.operator import Counting, check_operator

        with progress_line(matrix.name) as progress:
            matrix.prepare()
            start = time.perf_counter()
            counted = Counting(matrix)
            generator = torch.Generator().manual_seed(self.options["seed"])
            limit = self.options["max_products"]
            noise = None if limit is not None and limit < SMALLEST_CHECKED else check_operator(counted, generator)
            answer = method(
                counted,
                generator=generator,
                max_products=None if limit is None else limit - counted.products,
                progress=progress,
            )
            seconds = time.perf_counter() - start
        return Measurement(matrix.name, answer, counted.products, seconds, matrix.setup_seconds, noise, matrix.path)

    def write(self, record: dict[str, Any], arrays: dict[str, Any]) -> None:
        from spectra.results import save

        if self.options["out"]:
            save(self.options["out"], record, arrays)


@dataclass(frozen=True)
class Measurement:
    """What a method found for one matrix, and what it cost."""

    curvature: str
    answer: Any
    products: int
    seconds: float
    setup_seconds: float
    noise: float | None  # relative, of one product
    path: str  # how products were made

    def cost(self) -> dict[str, Any]:
        return {
            "converged": self.answer.converged,
            "products": self.products,
            "seconds": self.seconds,
            "setup_seconds": self.setup_seconds,
            "noise": self.noise,
            "path": self.path,
        }


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
        raise SpectraError(f"--model, --data or --loss: {text}") from error
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
        now = time.monotonic()
        if now - last < (0.1 if live else 30):
            return
        last = now
        text = f"{name}: {describe(numbers)}, {now - start:.0f} s"
        print(f"\r\x1b[K{text[:78]}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def describe(numbers: dict[str, float]) -> str:
    parts = [f"{numbers['products']} products"]
    if "converged" in numbers:
        parts.append(f"{numbers['converged']:.0f} of {numbers['wanted']:.0f} done")
    if "residual" in numbers and math.isfinite(numbers["residual"]):
        parts.append(f"residual {numbers['residual']:.1e}")
    if "trace" in numbers:
        parts.append(f"trace {numbers['trace']:.6g} ± {numbers['standard_error']:.1e}")
    return ", ".join(parts)


def finish(record: dict[str, Any], as_json: bool, text: str) -> int:
    """Print, and say by the exit status whether every tolerance was met and every number is finite."""
    from spectra.results import to_json

    try:
        print(to_json(record) if as_json else text, flush=True)
    except BrokenPipeError:
        raise  # whoever reads has seen enough: click ends quietly
    except OSError as error:
        text = f"cannot be written ({error.strerror}); free some space, or write it elsewhere"
        raise SpectraError(f"standard output: {text}") from error
    if reason := why_not(record):
        print(f"spectra: {reason}", file=sys.stderr)
    return 1 if reason else 0


MORE = "raise --max-products"
WAYS_OUT = {
    "eig": f"{MORE}, try --dtype float64, or loosen --tol",
    "trace": f"{MORE}, or loosen --rtol",
    "density": MORE,
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
