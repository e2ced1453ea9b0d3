"""The page's templates, in which whatever a value holds is text: escaped, and printable as `quoted` makes it."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spectra.quoting import quoted


def printable(value: Any) -> Any:
    """The value of an expression, unless it is HTML that a macro has made."""
    return value if isinstance(value, Markup) else quoted(value, None)


TEMPLATES = Environment(
    loader=PackageLoader("spectra.page"),
    autoescape=True,
    finalize=printable,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
