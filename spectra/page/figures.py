"""Figures on a page: SVG inside of an image's address, so that neither names nor styles of two can meet."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spectra.plots.saved import KINDS, WHOLE, record_figures
from spectra.plots.svg import svg

CAPTIONS = {
    "eig": "Eigenvalues by rank, with residuals",
    "trace": "Traces, with two standard errors to either side",
    "density": "Spectral density, and below it the cumulative distribution, with 95 % bands",
    "density-log": "The same on an asinh axis: logarithmic, but linear around zero",
    "compare": "Eigenvalues, leading eigenspaces, distributions and distances of the matrices",
    "compare-held-out": "Leading eigenvalues and eigenspaces here and on the held-out data",
    "compare-subsample": "Largest eigenvalues by number of examples, and where they tend to",
    "layers": "What the diagonal blocks of the matrices hold, block by block",
    "layers-density": "Spectral density of each diagonal block",
    "landscape": "Loss along directions, and its quadratic model",
    "landscape-plane": "Loss in the planes of two directions",
    "landscape-surface": "The same planes as surfaces",
}


class Drawing(NamedTuple):
    caption: str
    alternative: str
    address: str  # the image itself
    width: int
    height: int


def figures(path: Path, record: dict[str, Any]) -> Iterator[Drawing]:
    """All figures of a result, drawn again from its numbers. Raises SpectraError."""
    if record["command"] not in KINDS | WHOLE:
        return
    matrices = ", ".join(dict.fromkeys(str(entry["curvature"]) for entry in record["results"] if "curvature" in entry))
    for name, drawn in record_figures(path, record).items():
        caption = CAPTIONS.get(name, name.replace("-", " ").capitalize())
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg(drawn)).decode()}"
        width, height = (round(96 * inches) for inches in drawn.get_size_inches())
        yield Drawing(caption, f"{caption}: {matrices}", address, width, height)
