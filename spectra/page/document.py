"""The whole page: the problem, then each result with its figures and tables and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

from spectra.inputs.origin import RUN, is_strange
from spectra.page.figures import figures
from spectra.page.markup import Markup, element, joined, opening
from spectra.page.problem import Facts, facts, listed, shared
from spectra.page.results import KINDS
from spectra.page.style import STYLE
from spectra.page.tables import paragraphs_and_tables
from spectra.plots.saved import intact
from spectra.quoting import quoted, readable
from spectra.records.record import Record

NOTHING_ELSE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # what a browser may load or run
UNITS = (
    "A product is one multiplication of a matrix with a vector: the unit of cost. Times are in seconds, those of "
    "set-up apart. What stands behind ± is said above each table."
)


def document(
    results: Sequence[tuple[Path, Record]], title: str | None, repeat: Callable[[Record], Sequence[str]]
) -> Markup:
    """HTML of results, in this order; the same bytes for the same results.

    Args:
        results: files and records.
        title: by default what the page is of.
        repeat: the words of the command line that makes a record again; none where that is not known.

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


def section(number: int, path: Path, record: Record, own: Facts, repeat: Callable[[Record], Sequence[str]]) -> Markup:
    kind = KINDS[record.command]
    with intact(path, record.command):
        shown = readable(record)
        first, rest = paragraphs_and_tables(resolve_name(kind.parts)(shown))
        drawn = list(figures(path, shown))
        again = how_to_repeat(path, record.command, repeat(record), code_of(record))
    parts = [element("h2", kind.title), first, listed(own) if own else "", *drawn, rest, again]
    return element("section", *lines(parts), id=f"result-{number}")


def code_of(record: Record) -> list[str]:
    """Options of a result that name code, which `--config` does not take from it."""
    options = record.problem.options or {}
    named = {name: options.get(name) for name in RUN}
    strange = {name: text for name, text in named.items() if isinstance(text, str) and is_strange(text)}
    return [word for name, text in strange.items() for word in (f"--{name.replace('_', '-')}", text)]


def how_to_repeat(path: Path, command: str, words: Sequence[str], code: Sequence[str]) -> Markup:
    """`words` make the result again; `code` are those of them that a file may not say for its reader."""
    parts = [element("h3", "How to repeat it")]
    if words:
        parts += [command_line(words), element("p", "or, with the options in its own file:")]
    return joined(*lines([*parts, command_line(["spectra", command, "--config", str(path), *code])]))


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
