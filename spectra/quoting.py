"""Make foreign text safe to print: names in files, messages of other libraries, and arguments of commands.

It may contain anything: escape sequences that clear a terminal, line breaks that fake a message, characters that
reverse the direction of text, a million letters.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

NAME, LINE = 160, 550  # characters: of one name, and of one line that may hold several


def quoted(text: object, most: int | None = NAME) -> str:
    r"""Return `text` on one line: unprintable characters are escaped (`\x1b`, `\n`), and a long text loses its middle.

    Args:
        text: the text, or any object, as `str` gives it.
        most: the largest number of characters; None for no limit. Where it is less than a line, the text is taken for a
            name from others, and passed through `foreign`.
    """
    text = _as_text(text) if most is None or most >= LINE else foreign(text)
    if most is None or len(text) <= most:
        text = escaped(text)
        if most is None or len(text) <= most:
            return text
    end = (most - 5) // 2
    head, tail = escaped(text[: most - 5 - end])[: most - 5 - end], escaped(text[-end:])[-end:]
    return f"{head.rstrip()} ... {tail.lstrip()}"


def foreign(text: object) -> str:
    """Replace backticks around words by quotes in foreign text, since in our messages backticks mark arguments."""
    return re.sub(r"`(\w+(=\w+)?)`", r"'\1'", _as_text(text))


def escaped(text: str) -> str:
    r"""The text with characters that are not printable written as Python does: `\x1b`, `\n`, `\u202e`, `\udcff`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def readable(tree: T) -> T:
    """Return a JSON value or a record with every string in it, keys included, `quoted` to the length of a line."""
    return with_texts(tree, lambda text: quoted(text, LINE))


def with_texts(tree: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value or a record with `change` applied to every string in it, keys of objects included."""
    if isinstance(tree, str):
        return change(tree)
    if is_dataclass(tree):
        shown = copy.copy(tree)
        vars(shown).update({name: with_texts(value, change) for name, value in vars(tree).items()})
        return shown
    if isinstance(tree, dict):
        return {with_texts(key, change): with_texts(value, change) for key, value in tree.items()}
    return [with_texts(value, change) for value in tree] if isinstance(tree, (list, tuple)) else tree


def _as_text(text: object) -> str:
    try:
        return str(text)
    except ValueError:  # an integer of more than 4,300 digits
        return f"a number of type {type(text).__name__} too long to be shown"
