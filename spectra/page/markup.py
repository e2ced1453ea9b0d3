"""HTML as text: elements, and what of others becomes harmless in them."""

from __future__ import annotations

from html import escape
from typing import Any

from spectra.quoting import quoted


class Markup(str):
    """Text that is HTML already."""


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """`<tag ...>children</tag>`; children that are no `Markup` are escaped.

    Attributes that are None or False are left out, those that are True have no value; `class_` is `class`.
    """
    return Markup(f"{opening(tag, **attributes)}{joined(*children)}</{tag}>")


def opening(tag: str, **attributes: Any) -> Markup:
    """`<tag ...>`: all that there is of an element without content."""
    words = [tag]
    for name, value in attributes.items():
        if value is not None and value is not False:
            name = name.rstrip("_").replace("_", "-")
            words.append(name if value is True else f'{name}="{text(value)}"')
    return Markup(f"<{' '.join(words)}>")


def joined(*children: Any) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else text(child) for child in children))


def text(value: Any) -> Markup:
    """Escaped, and what is not printable written as `quoted` does."""
    return Markup(escape(quoted(value, None)))
