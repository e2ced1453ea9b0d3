"""The page's templates; every value in them is escaped, and made printable by `quoted`."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spectra.quoting import quoted


def printable(value: Any) -> Any:
    """The value of an expression made printable; HTML that a macro made is returned unchanged."""
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
