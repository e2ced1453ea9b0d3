"""The whole page: the problem, then each result with its figures, its tables and its command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from spectra.page.figures import Drawing, figures
from spectra.page.problem import Facts, facts, shared
from spectra.page.results import KINDS
from spectra.page.tables import Table, paragraphs_and_tables
from spectra.page.templating import TEMPLATES
from spectra.plots.saved import intact
from spectra.quoting import quoted, readable
from spectra.records.record import Record

Repeat = Callable[[Path, Record], Sequence[Sequence[str]]]
NOTHING_ELSE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # what a browser may load or run
UNITS = (
    "A product is one multiplication of a matrix with a vector: the unit of cost. Times are in seconds, without "
    "setup, which has its own column. The text above each table says what ± means."
)


class Section(NamedTuple):
    """The part of a page on one result."""

    title: str
    path: str
    lead: str  # what the result shows
    own: Facts  # about its problem, that not all results share
    figures: list[Drawing]
    parts: list[str | Table]
    ways: list[list[str]]  # command lines that repeat it, option by option


def document(results: Sequence[tuple[Path, Record]], title: str | None, repeat: Repeat) -> str:
    """Write HTML of results in the order given; the same results give the same bytes.

    Args:
        results: files and records.
        title: by default made of model and data.
        repeat: a function of a file and its record that returns the command lines that repeat it, as lists of words:
            one with all options, and one that reads them from the file; an empty list where they are not known.

    Raises SpectraError: a record that is not complete.
    """
    known = []
    for path, record in results:
        with intact(path, record.command):
            known.append(facts(record))
    common = shared(known)
    sections = [
        section(path, record, {name: text for name, text in own.items() if name not in common}, repeat)
        for (path, record), own in zip(results, known, strict=True)
    ]
    title = title or usual_title(common)
    return TEMPLATES.get_template("page.html").render(
        title=title, units=UNITS, policy=NOTHING_ELSE, common=common, sections=sections
    )


def usual_title(common: Facts) -> str:
    """The default title of a page."""
    if operator := common.get("Operator"):
        return f"Spectrum of {operator.partition(', ')[0]}"
    model, data = common.get("Model"), common.get("Data", "").rpartition(", ")[0]
    return f"Loss landscape of {model}{f' on {data}' if data else ''}" if model else "Loss landscapes"


def section(path: Path, record: Record, own: Facts, repeat: Repeat) -> Section:
    """The part of a page on one result. Raises SpectraError."""
    kind = KINDS[record.command]
    with intact(path, record.command):
        shown = readable(record)
        lead, parts = paragraphs_and_tables(resolve_name(kind.parts)(shown))
        drawn = list(figures(path, shown))
        ways = [by_option(words) for words in repeat(path, record)]
    return Section(kind.title, quoted(path), lead, own, drawn, parts, ways)


def by_option(words: Sequence[str]) -> list[str]:
    """The words of a command line, grouped so that each option is with its value."""
    options: list[list[str]] = []
    for word in words:
        if not options or word.startswith("-"):
            options.append([])
        options[-1].append(word)
    return [shlex.join(some) for some in options]
