"""Tables of the terminal for a page: lines become paragraphs and captions, and tables become HTML tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A table as text."""

    caption: str  # empty: none
    columns: list[tuple[str, bool]]  # headings, and whether they are right-aligned
    rows: list[list[str]]


def paragraphs_and_tables(parts: Sequence[Any]) -> tuple[str, list[str | Table]]:
    """The first part, which describes the record, and the parts after it.

    Args:
        parts: strings and rich tables in order; a string right above a table is its caption.
    """
    first, *rest = parts
    return "; ".join(str(first).split("\n")), list(blocks(rest))


def blocks(parts: Sequence[Any]) -> Iterator[str | Table]:
    """Paragraphs and tables in their order, each table with the line above it as its caption."""
    for i, part in enumerate(parts):
        before, after = (parts[j] if 0 <= j < len(parts) else "" for j in (i - 1, i + 1))
        if not isinstance(part, str):
            yield table(part, before if isinstance(before, str) else "")
        elif part.strip() and isinstance(after, str):
            yield on_a_line(part)


def table(rich: Any, caption: str) -> Table:
    """The text of a `rich.table.Table`."""
    rows = zip(*(column.cells for column in rich.columns), strict=True)
    columns = [(str(column.header), column.justify == "right") for column in rich.columns]
    return Table(on_a_line(caption), columns, [[str(cell) for cell in cells] for cells in rows])


def on_a_line(text: str) -> str:
    """The text without the line breaks that a terminal needs."""
    return " ".join(text.strip().split("\n"))
