"""What the terminal shows of a record, on a page: lines become paragraphs and captions, tables tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spectra.page.markup import Markup, element, joined


def paragraphs_and_tables(parts: Sequence[Any]) -> tuple[Markup, Markup]:
    """The first part, which says what the record is of, and all that follows.

    Args:
        parts: strings and rich tables, one below the other; a string right above a table is its caption.
    """
    first, *rest = parts
    return element("p", str(first), class_="lead"), Markup("\n".join(blocks(rest)))


def blocks(parts: Sequence[Any]) -> Iterator[Markup]:
    for i, part in enumerate(parts):
        before, after = (parts[j] if 0 <= j < len(parts) else "" for j in (i - 1, i + 1))
        if not isinstance(part, str):
            yield table(part, before if isinstance(before, str) else "")
        elif part.strip() and isinstance(after, str):
            yield element("p", part.strip())


def table(rich: Any, caption: str) -> Markup:
    """A `rich.table.Table`; wide ones scroll inside their own box, which the keyboard can reach."""
    sides = [column.justify for column in rich.columns]
    head = [cell("th", str(column.header), side, scope="col") for column, side in zip(rich.columns, sides, strict=True)]
    rows = zip(*(column.cells for column in rich.columns), strict=True)
    body = [row([str(found) for found in cells], sides) for cells in rows]
    content = element(
        "table", element("thead", element("tr", *head)), Markup("\n"), element("tbody", Markup("\n".join(body)))
    )
    title = element("figcaption", caption.strip()) if caption.strip() else ""
    box = element("div", content, class_="wide", tabindex="0", role="region", aria_label=caption.strip() or "table")
    return element("figure", title, box, class_="table")


def row(cells: Sequence[str], sides: Sequence[str]) -> Markup:
    """Its first cell names it; one that stands alone names those below it, which are set in."""
    first, *rest = cells
    if first and rest and not any(rest):
        return element("tr", element("th", first.strip(), colspan=len(cells), scope="rowgroup"))
    name = element("th", first.strip(), scope="row", class_="inner" if first.startswith(" ") else None)
    return element("tr", name, *[cell("td", *pair) for pair in zip(rest, sides[1:], strict=True)])


def cell(tag: str, content: str, side: str, **attributes: Any) -> Markup:
    """Empty corners are no headings."""
    if not content.strip():
        return element("td")
    return element(tag, joined(content), class_="right" if side == "right" else None, **attributes)
