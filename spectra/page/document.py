"""The whole page: the problem, then each result with its figures and tables and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

from spectra.page.figures import figures
from spectra.page.markup import Markup, element, joined, opening
from spectra.page.problem import Facts, facts, listed, shared
from spectra.page.results import KINDS
from spectra.page.style import STYLE
from spectra.page.tables import paragraphs_and_tables
from spectra.plots.saved import intact
from spectra.quoting import quoted, readable
from spectra.records.record import Record

Repeat = Callable[[Path, Record], Sequence[Sequence[str]]]
NOTHING_ELSE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # what a browser may load or run
UNITS = (
    "A product is one multiplication of a matrix with a vector: the unit of cost. Times are in seconds, those of "
    "set-up apart. What stands behind ± is said above each table."
)


def document(results: Sequence[tuple[Path, Record]], title: str | None, repeat: Repeat) -> Markup:
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
        section(i + 1, path, record, {name: text for name, text in own.items() if name not in common}, repeat)
        for i, ((path, record), own) in enumerate(zip(results, told, strict=True))
    ]
    title = title or usual_title(common)
    body = [
        element("header", element("h1", title), element("p", UNITS)),
        contents(results) if len(results) > 1 else "",
        element("section", element("h2", "The problem"), listed(common), id="problem") if common else "",
        *sections,
    ]
    head = [
        opening("meta", charset="utf-8"),
        opening("meta", name="viewport", content="width=device-width, initial-scale=1"),
        opening("meta", http_equiv="Content-Security-Policy", content=NOTHING_ELSE),
        element("title", title),
        element("style", Markup(STYLE)),
    ]
    main = element("main", *lines(body))
    return joined(
        Markup("<!DOCTYPE html>\n"), element("html", element("head", *lines(head)), main, lang="en"), Markup("\n")
    )


def usual_title(common: Facts) -> str:
    model, data = common.get("Model"), common.get("Data", "").rpartition(", ")[0]
    return f"Loss landscape of {model}{f' on {data}' if data else ''}" if model else "Loss landscapes"


def contents(results: Sequence[tuple[Path, Record]]) -> Markup:
    links = [
        element("li", element("a", KINDS[record.command].title, href=f"#result-{i + 1}"), f" {quoted(path)}")
        for i, (path, record) in enumerate(results)
    ]
    return element("nav", element("ol", *lines(links)), aria_label="Contents")


def section(number: int, path: Path, record: Record, own: Facts, repeat: Repeat) -> Markup:
    kind = KINDS[record.command]
    with intact(path, record.command):
        shown = readable(record)
        first, rest = paragraphs_and_tables(resolve_name(kind.parts)(shown))
        drawn = list(figures(path, shown))
        again = how_to_repeat(repeat(path, record))
    parts = [element("h2", kind.title), first, listed(own) if own else "", *drawn, rest, again]
    return element("section", *lines(parts), id=f"result-{number}")


def how_to_repeat(ways: Sequence[Sequence[str]]) -> Markup | str:
    """One way after the other; nothing where none is known."""
    if not ways:
        return ""
    first, *others = map(command_line, ways)
    parts = [element("h3", "How to repeat it"), first]
    for other in others:
        parts += [element("p", "or, with the options in its own file:"), other]
    return joined(*lines(parts))


def command_line(words: Sequence[str]) -> Markup:
    """Lines break between options."""
    options: list[list[str]] = []
    for word in words:
        if not options or word.startswith("-"):
            options.append([])
        options[-1].append(word)
    return element("pre", element("code", Markup(" ".join(element("span", shlex.join(some)) for some in options))))


def lines(parts: Sequence[str]) -> list[Markup]:
    """Each on a line of its own."""
    return [Markup(f"\n{part}") for part in parts if part]
