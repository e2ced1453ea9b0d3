"""The whole page: the problem, then each result with its figures and tables and how to repeat it."""

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
    lead: str  # what it is of
    own: Facts  # of its problem, where other results have others
    figures: list[Drawing]
    parts: list[str | Table]
    ways: list[list[str]]  # command lines that make it again, option by option


def document(results: Sequence[tuple[Path, Record]], title: str | None, repeat: Repeat) -> str:
    """HTML of results, in this order; the same bytes for the same results.

    Args:
        results: files and records.
        title: by default what the page is of.
        repeat: command lines that make the record in a file again, as words: the options typed out, and read from
            the file; none where it is not known what would.

    Raises SpectraError: a record that is not whole.
    """
    told = []
    for path, record in results:
        with intact(path, record.command):
            told.append(facts(record))
    common = shared(told)
    sections = [
        section(path, record, {name: text for name, text in own.items() if name not in common}, repeat)
        for (path, record), own in zip(results, told, strict=True)
    ]
    title = title or usual_title(common)
    return TEMPLATES.get_template("page.html").render(
        title=title, units=UNITS, policy=NOTHING_ELSE, common=common, sections=sections
    )


def usual_title(common: Facts) -> str:
    """The title of a page that is given none."""
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
    """The words of a command line, each option with its value."""
    options: list[list[str]] = []
    for word in words:
        if not options or word.startswith("-"):
            options.append([])
        options[-1].append(word)
    return [shlex.join(some) for some in options]
