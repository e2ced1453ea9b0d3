"""Figures drawn from saved results: one figure of several results of a kind, or the figures of one record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from spectra.commands import COMMANDS
from spectra.errors import SpectraError, describe
from spectra.inputs.spec import input_error, suggest
from spectra.krylov.results import SpectralMeasure, TraceEstimate
from spectra.plots.density import density_figure
from spectra.plots.eigenvalues import eigenvalue_figure
from spectra.plots.names import all_settable, check_text, default_labels, names, settable
from spectra.plots.style import MOST_CURVES, PAGE
from spectra.plots.trace import trace_figure
from spectra.records.fields import MissingKey, key_of
from spectra.records.files import read
from spectra.records.precondition import titled
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record

RANKS = {
    "LM": "rank by |λ|",
    "LA": "rank from the top",
    "SA": "rank from the bottom",
    "BE": "rank from the top, then from the bottom",
}


class Result(NamedTuple):
    """One matrix's entry in a saved record, with the file it comes from."""

    path: Path
    command: str
    problem: ProblemRecord
    entry: Any  # of `records.record.RESULTS[command]`

    @property
    def curvature(self) -> str:
        return self.entry.curvature

    def numbers(self, name: str) -> Any:
        """The number or array in this field. Raises SpectraError where it is missing or not finite."""
        found = getattr(self.entry, name, None)
        if found is None or not np.size(found):
            raise self.lacks(name)
        if not np.isfinite(found).all():
            what = f"{key_of(self.entry, name)} of {self.curvature}"
            text = f"{what}: a number is not finite; select other matrices by `curvature`"
            raise input_error("RESULT", self.path, text)
        return found

    def lacks(self, name: str) -> SpectraError:
        """The error for a number of the entry that is missing or unusable."""
        key = key_of(self.entry, name)
        text = f"{key} of {self.curvature}: missing or unusable; run spectra {self.command} again"
        return input_error("RESULT", self.path, text)


class Spectrum(NamedTuple):
    """The eigenvalues and residuals of an entry, and the end of the spectrum that they are from."""

    values: np.ndarray  # (k,)
    residuals: np.ndarray  # (k,)
    which: str
    sampling_errors: np.ndarray | None = None  # (k,), where the matrix is itself an estimate
    spread: np.ndarray | None = None  # (k,), over single examples, where the values are means over these


def spectrum(result: Result) -> Spectrum:
    """The eigenvalues of an entry. Raises SpectraError."""
    values, residuals = result.numbers("values"), result.numbers("residuals")
    if values.shape != residuals.shape:
        raise result.lacks("residuals")
    sampling = None if getattr(result.entry, "exact", True) else result.numbers("sampling_errors")
    if sampling is not None and sampling.shape != values.shape:
        raise result.lacks("sampling_errors")
    spread = None if getattr(result.entry, "spread", None) is None else result.numbers("spread")
    if spread is not None and spread.shape != values.shape:
        raise result.lacks("spread")
    return Spectrum(values, residuals, str(result.problem.option("which")), sampling, spread)


def trace(result: Result) -> TraceEstimate:
    """The trace of an entry. Raises SpectraError."""
    value, error = result.numbers("trace"), result.numbers("standard_error")
    return TraceEstimate(value, error, products=0, converged=True)


def measure(result: Result) -> SpectralMeasure:
    """The spectral measure of an entry. Raises SpectraError."""
    nodes, weights = result.numbers("nodes"), result.numbers("weights")
    dimension, deflated = result.numbers("dimension"), result.numbers("deflated")
    if weights.shape != nodes.shape or (weights < 0).any() or not np.allclose(weights.sum(axis=1), 1, rtol=1e-3):
        raise result.lacks("weights")
    if not 0 <= deflated <= min(dimension, nodes.shape[1]) or (deflated == nodes.shape[1]) != (deflated == dimension):
        raise result.lacks("deflated")
    return result.entry.measure()


def named(result: Result) -> str:
    """The name of an entry's matrix in a figure."""
    return settable(titled(result.curvature, result.problem.get("precondition")))


def threshold(result: Result) -> float | None:
    """The threshold of stability for an entry's eigenvalues, or None."""
    found = result.problem.get("precondition")
    return found.threshold_of(result.curvature) if found else None


def eig_figure(spectra: dict[str, Spectrum], **options: Any) -> Figure:
    """Draw eigenvalues; the axis of ranks is named by their order where all have the same order."""
    orders = {found.which for found in spectra.values()}
    rank = RANKS.get(orders.pop(), "rank") if len(orders) == 1 else "rank"
    return eigenvalue_figure(spectra, rank=rank, **options)


class Kind(NamedTuple):
    """How results of one command are drawn: the function that reads an entry, and the function that draws several."""

    answer: Callable[[Result], Any]
    figure: Callable[..., Figure]
    most: float  # curves that a reader can tell apart
    drawn: tuple[str, ...]  # fields of an entry
    marked: bool = False  # whether thresholds of stability are drawn

    def more(self, results: Sequence[Result]) -> dict[str, Any]:
        """Further options of the figure."""
        return {"thresholds": [threshold(result) for result in results]} if self.marked else {}


KINDS = {  # by command, in the order in which a directory is searched
    "density": Kind(measure, density_figure, MOST_CURVES, ("nodes", "weights"), True),
    "eig": Kind(spectrum, eig_figure, MOST_CURVES, ("values", "residuals"), True),
    "trace": Kind(trace, trace_figure, 100, ("trace", "standard_error")),
}
# Commands whose figures show one record, with the function that draws them, by name, at a width.
WHOLE = {name: command.figures for name, command in COMMANDS.items() if command.figures}
MOST_EIGENVALUES, MOST_NUMBERS = 20_000, 10**6


def saved_figure(
    paths: Sequence[Path],
    labels: Sequence[str] = (),
    curvatures: Sequence[str] = (),
    title: str | None = None,
    log: bool = False,
    width: float = PAGE,
    name: str | None = None,
) -> tuple[Figure, list[Path]]:
    """Draw one figure of the results at `paths`, and list the files that were read.

    Args:
        paths: files, or directories with a result.
        labels: one for each path; by default the shortest parts of the paths that differ.
        curvatures: the matrices to draw; by default all.
        title: the title, or None.
        log: draw eigenvalues and traces on a logarithmic axis.
        width: the width in inches.
        name: which figure to draw where a record has several; by default the first.

    Raises:
        SpectraError: a result that cannot be read or drawn, results of several commands, a name that is wrong.
    """
    check_text(title or "", "`title`")
    files, records = zip(*(read_modest(path, [*KINDS, *WHOLE]) for path in paths), strict=True)
    if records[0].command in WHOLE:
        own = {"`labels`": labels, "`curvature`": curvatures, "`title`": title, "`log`": log}
        changed = [option for option, given in own.items() if given]
        return whole_figure(files, records[0], changed, width, name), list(files)
    results = [results_of(*pair) for pair in zip(files, records, strict=True)]
    check_choice(files, records, results, curvatures)
    if curvatures:
        results = [[result for result in some if result.curvature in curvatures] for some in results]
    if name not in (None, records[0].command):
        raise input_error("`figure`", name, f"results of {records[0].command} have one figure; leave `figure` out")
    kind = KINDS[records[0].command]
    if (count := sum(map(len, results))) > kind.most:
        several = len({result.curvature for some in results for result in some}) > 1
        way = "select some by `curvature`" if several else "name the directory of a training run for a figure over it"
        text = f"{count} curves are too many to tell apart; draw {kind.most} at most, or {way}"
        raise input_error("RESULT", files[-1], text)
    known = names(labels, default_labels(files), [[named(result) for result in some] for some in results])
    every = [result for some in results for result in some]
    options: dict[str, Any] = {"log": log, "title": title, "width": width} | kind.more(every)
    return kind.figure(dict(zip(known, map(kind.answer, every), strict=True)), **options), list(files)


def whole_figure(
    files: Sequence[Path], record: Record, changed: Sequence[str], width: float, name: str | None
) -> Figure:
    """The figure of this name, or the first, of a record whose figures show all of it. Raises SpectraError."""
    command = record.command
    if len(files) > 1:
        raise input_error("RESULT", files[1], f"a figure of {command} shows one result; give one RESULT at a time")
    if changed:
        raise SpectraError(f"{changed[0]}: it has no effect on the figures of {command}; leave it out")
    if not (figures := record_figures(files[0], record, width)):
        raise input_error("RESULT", files[0], f"has no finite numbers to draw; run spectra {command} again")
    if name is not None and name not in figures:
        raise input_error("`figure`", name, f"{files[0]} has no such figure; {suggest(name, figures)}")
    return figures[name or next(iter(figures))]


def record_figures(path: Path, record: Record, width: float = PAGE) -> dict[str, Figure]:
    """Every figure of one result, by name, `width` inches wide; matrices whose numbers are not finite are left out.

    A density that was computed with `log` is drawn on an asinh axis too.

    Raises:
        SpectraError: a record that is not complete.
    """
    command = record.command
    with intact(path, command):
        if command in WHOLE:
            return resolve_name(WHOLE[command])(all_settable(record), width)
        kind = KINDS[command]
        held = [r for r in results_of(path, record) if all(is_finite(r.entry, name) for name in kind.drawn)]
        answers, options = {named(result): kind.answer(result) for result in held}, kind.more(held) | {"width": width}
        figures = {command: kind.figure(answers, **options)} if answers else {}
        if answers and command == "density" and record.problem.option("log"):
            figures["density-log"] = kind.figure(answers, log=True, **options)
        return figures


def is_finite(entry: Any, name: str) -> bool:
    """Whether the entry has this number or array and it is finite."""
    found = getattr(entry, name, None)
    return found is not None and bool(np.isfinite(found).all())


@contextmanager
def intact(path: Path, command: str) -> Iterator[None]:
    """A context that turns any error caused by a damaged record into a SpectraError that names its file."""
    try:
        yield
    except SpectraError as error:
        if str(error).startswith("RESULT "):
            raise
        raise input_error("RESULT", path, str(error)) from error
    except MissingKey as error:
        key = error.args[0]
        raise input_error("RESULT", path, f"lacks '{key}'; run spectra {command} again") from error
    except Exception as error:  # a damaged record may break anything; SPECTRA_TRACEBACK=1 shows where
        text = f"is not a result of spectra {command} ({describe(error)}); run it again"
        raise input_error("RESULT", path, text) from error


def read_modest(path: Path, commands: Sequence[str]) -> tuple[Path, Record]:
    """The file and the record of a saved result. Raises SpectraError, also where it has more numbers than are shown."""
    path, tree = read(path, commands)
    refuse_many(path, tree)
    return path, Record.of(tree, path)


def refuse_many(path: Path, record: dict[str, Any]) -> None:
    """Raise SpectraError where JSON has more numbers than any run writes; drawing them would take hours."""
    for entry in record["results"]:
        values = entry.get("eigenvalues") if isinstance(entry, dict) else None
        if isinstance(values, list) and len(values) > MOST_EIGENVALUES:
            text = f"has {len(values):,} eigenvalues of a matrix; at most {MOST_EIGENVALUES:,} are drawn; compute fewer"
            raise input_error("RESULT", path, text)
    if (count := numbers_in(record)) > MOST_NUMBERS:
        raise input_error("RESULT", path, f"has {count:,} values; at most {MOST_NUMBERS:,} are drawn; compute fewer")


def numbers_in(tree: Any) -> int:
    """The number of numbers and texts in a JSON value."""
    count, left = 0, [tree]
    while left:
        part = left.pop()
        held = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        if held is None:
            count += 1
        else:
            left.extend(held)
    return count


def results_of(file: Path, record: Record) -> list[Result]:
    """The entries of a record. Raises SpectraError where there are none."""
    if not record.results:
        raise input_error("RESULT", file, "has no results; run the command again")
    return [Result(file, record.command, record.problem, entry) for entry in record.results]


def check_choice(
    files: Sequence[Path], records: Sequence[Record], results: Sequence[list[Result]], curvatures: Sequence[str]
) -> None:
    """Raise SpectraError unless all files are of one command and differ, and each has a matrix to draw."""
    first = records[0].command
    every = {result.curvature for some in results for result in some}
    for name in curvatures:
        if name not in every:
            raise input_error("`curvature`", name, f"no RESULT has this matrix; {suggest(name, every)}")
    for i, (file, record, some) in enumerate(zip(files, records, results, strict=True)):
        held = [result.curvature for result in some]
        if record.command != first:
            text = f"is a result of {record.command}, but {files[0]} of {first}; draw them in separate figures"
            raise input_error("RESULT", file, text)
        if os.path.realpath(file) in [os.path.realpath(other) for other in files[:i]]:
            raise input_error("RESULT", file, "is given twice; give it once")
        if len(set(held)) < len(held):
            raise input_error("RESULT", file, "has results of one matrix twice; run the command again")
        if curvatures and not set(held) & set(curvatures):
            raise input_error(
                "RESULT", file, f"has only {', '.join(held)}; leave it out, or select one of these with `curvature`"
            )
