"""Figures on a page, each as SVG in the address of an image, so that names and styles of two figures cannot clash."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spectra.commands import COMMANDS
from spectra.plots.saved import KINDS, WHOLE, record_figures
from spectra.plots.svg import svg
from spectra.records.record import Record

CAPTIONS = {name: text for command in COMMANDS.values() for name, text in command.captions.items()}


class Drawing(NamedTuple):
    """A figure on a page."""

    caption: str
    alternative: str
    address: str  # the image itself
    width: int
    height: int


def figures(path: Path, record: Record) -> Iterator[Drawing]:
    """Draw all figures of a result from its saved numbers. Raises SpectraError."""
    if record.command not in KINDS | WHOLE:
        return
    matrices = ", ".join(dict.fromkeys(entry.curvature for entry in record.results))
    for name, drawn in record_figures(path, record).items():
        caption = CAPTIONS.get(name, name.replace("-", " ").capitalize())
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg(drawn)).decode()}"
        width, height = (round(96 * inches) for inches in drawn.get_size_inches())
        yield Drawing(caption, f"{caption}: {matrices}", address, width, height)
