"""The style of all figures: sizes, line and marker styles, titles, legends, and files.

Figures are drawn on `matplotlib.figure.Figure` with matplotlib's defaults and `STYLE`, without pyplot or a window.
Global settings are neither read nor changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import matplotlib.figure
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation

STYLE = [
    "default",
    {
        "font.size": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.solid_capstyle": "butt",
        "pdf.fonttype": 42,  # TrueType, embedded: text stays text
        "svg.fonttype": "path",  # glyphs as outlines: the same wherever it is opened
        "svg.hashsalt": "spectra",
        "savefig.dpi": 200,
    },
]
PAGE, COLUMN = 6.5, 3.25  # widths in inches
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito 2008
# Later curves are drawn on top of earlier ones, thinner and with wider gaps, so that equal curves all show.
DASHES = (
    "solid",
    (0, (5, 2)),
    (0, (1.2, 1.4)),
    (0, (6, 2, 1.2, 2)),
    (0, (9, 3)),
    (0, (2.5, 2.5)),
    (0, (1, 3)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The second round of colours has other dashes and markers: two curves that share a pattern differ by 12 or more in
# CIE lightness (of 100), so that they differ in grey too. Other steps leave less; a third round would repeat both.
STEP = 3
MOST_CURVES = 2 * len(COLOURS)
THICKEST, THINNEST = 2.4, 1.1  # points
LEGEND_SIZE, HEAD_SIZE, TITLE_SIZE, SMALL = 8.5, 8.5, 10, 7  # points; head: of a panel's title; small: of its legend
BELOW = 0.44  # inches from an x-axis to the legend of its panel, with room for the ticks and the label
NO_DATES = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the formats written


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook displays, as it displays figures of pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def line_style(index: int, count: int) -> dict[str, Any]:
    """The line style of curve `index` among `count`, at most `MOST_CURVES`."""
    thickness = np.linspace(THICKEST, THINNEST, count)[index] if count > 1 else 1.6
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[_pattern(index)],
        "linewidth": float(thickness),
        "zorder": 3 + index,
    }


def marker_style(index: int) -> dict[str, Any]:
    """The marker style of series `index`."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[_pattern(index)], "linestyle": "none"}


def _pattern(index: int) -> int:
    rounds, place = divmod(index, len(COLOURS))
    return (place + STEP * rounds) % len(COLOURS)


class Legend(NamedTuple):
    """A legend above all panels, with as many columns, and its title in as many lines, as the width needs."""

    labels: list[str]
    columns: int
    title: str | None
    handle: float  # length of a sample, in font sizes

    def height(self) -> float:
        """The height in inches to add to a figure that has room for one entry of two lines."""
        rows = math.ceil(len(self.labels) / self.columns)
        lines = rows * max(label.count("\n") + 1 for label in self.labels)
        title = self.title.count("\n") + 1 if self.title else 0
        points = LEGEND_SIZE * (1.25 * (lines - 2) + 0.5 * (rows - 1)) + 1.25 * TITLE_SIZE * title
        return max(0, points) / 72

    def draw(self, figure: FigureBase, handles: Sequence[Any], handlers: Mapping[Any, Any] | None = None) -> None:
        """Draw the legend above everything else in the figure; `handlers` draw handles of these types."""
        legend = figure.legend(
            handles,
            self.labels,
            loc="outside upper center",
            ncols=self.columns,
            title=self.title,
            title_fontsize=TITLE_SIZE,
            fontsize=LEGEND_SIZE,
            frameon=False,
            handlelength=self.handle,
            handler_map=handlers,
        )
        legend.get_title().set_multialignment("center")


def lay_out_legend(labels: Sequence[str], title: str | None, width: float, handle: float = 3.2) -> Legend:
    """Lay out a legend for a figure `width` inches wide; labels that are too long are shortened."""
    page, space = 72 * width, LEGEND_SIZE * (handle + 2.7)  # points; a handle and what is around it
    names, notes = zip(*(text.split("\n", 1) if "\n" in text else (text, "") for text in labels), strict=True)
    names = shortened(names, page - space, LEGEND_SIZE)
    labels = ["\n".join(filter(None, entry)) for entry in zip(names, notes, strict=True)]
    widths = [space + max(text_width(line, LEGEND_SIZE) for line in text.split("\n")) for text in labels]
    columns = max(count for count in range(1, len(labels) + 1) if count == 1 or _total(widths, count) <= page)
    return Legend(labels, columns, wrapped(title, page - 20, TITLE_SIZE) if title else None, handle)


def _total(widths: Sequence[float], columns: int) -> float:
    """The width of a legend whose entries fill so many columns, one after the other."""
    return sum(max(column) for column in np.array_split(widths, columns))


def side_by_side(panels: int, width: float, each: float, most: int) -> int:
    """The number of panels in a row, at most so many, that leaves each of them `each` inches of a figure's width."""
    return max(1, min(panels, most, int(width / each)))


def head(axes: Axes, text: str, inches: float, size: float = HEAD_SIZE) -> None:
    """Write the title of a panel, in lines of at most so many inches."""
    axes.set_title(wrapped(text, 72 * inches, size), loc="left", fontsize=size, pad=4)


def head_of_part(axes: Axes, text: str, inches: float) -> None:
    """Write the title of a subfigure with one panel, in lines of at most so many inches from its left edge."""
    axes.figure.suptitle(wrapped(text, 72 * inches - 6, HEAD_SIZE), x=0.01, ha="left", fontsize=HEAD_SIZE)


def label_below(figure: FigureBase, text: str, inches: float, size: float = 9) -> None:
    """Write the label of all x-axes of a figure, in lines of at most so many inches."""
    figure.supxlabel(wrapped(text, 72 * inches - 6, size), fontsize=size)


def legend_below(axes: Axes, inches: float) -> None:
    """Draw the legend of a panel, so many inches wide, below the label of its x-axis, where it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    below = ScaledTranslation(0, -BELOW, figure_of(axes).dpi_scale_trans)
    axes.legend(
        handles,
        shortened(labels, 72 * inches - 3 * SMALL, SMALL),
        fontsize=SMALL,
        frameon=False,
        handlelength=1.8,
        labelspacing=0.3,
        borderpad=0,
        borderaxespad=0,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
    )


def height_below(entries: int) -> float:
    """The height in inches that `legend_below` needs for so many entries."""
    return 1.4 * SMALL * entries / 72


def text_width(text: str, size: float) -> float:
    """The width of a text in points, with mathtext between dollar signs as rendered."""
    return TextPath((0, 0), text, size=size).get_extents().width if text.strip() else 0.0


def shortened(names: Sequence[str], points: float, size: float) -> list[str]:
    """The names, with long ones cut at the place that keeps them different where possible; formulas are not cut."""
    best: list[str] = []
    for head in (0.5, 0.75, 0.25, 1.0, 0.0):
        cut = [_cut(name, points, size, head) for name in names]
        best = max(best, cut, key=lambda some: len(set(some)))
        if len(set(best)) == len(names):
            break
    return best


def _cut(text: str, points: float, size: float, head: float) -> str:
    """`text` with a part replaced by an ellipsis so that it fits; the share `head` of the rest is before that."""
    whole = text_width(text, size)
    if whole <= points or text.count("$") > 1:
        return text
    for kept in range(min(len(text) - 1, int(1.5 * len(text) * points / whole)), 0, -1):
        first = round(head * kept)
        short = f"{text[:first]}…{text[len(text) - kept + first :]}"
        if text_width(short, size) <= points:
            return short
    return "…"


def wrapped(text: str, points: float, size: float) -> str:
    """The text broken into lines of at most so many points."""
    lines = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and text_width(longer, size) > points:
                lines.append(word)
            else:
                lines[-1] = longer
    return "\n".join(_cut(line, points, size, head=0.5) for line in lines)


def with_note(label: str, note: str, inches: float, size: float = 9) -> str:
    """A label and a note on it, in one line where that has at most so many inches, else in lines of their own."""
    whole = f"{label} {note}"
    return whole if text_width(whole, size) <= 72 * inches else wrapped(f"{label}\n{note}", 72 * inches, size)


def in_lines(names: Sequence[str], inches: float, size: float) -> list[str]:
    """Names in lines of at most so many inches; in one line each where lines would make two of them equal."""
    lines = [wrapped(name, 72 * inches, size) for name in names]
    return lines if len(set(lines)) == len(set(names)) else shortened(names, 72 * inches, size)


def figure_of(axes: Axes) -> matplotlib.figure.Figure:
    """The figure of axes that are not in a subfigure."""
    return cast(matplotlib.figure.Figure, axes.figure)


def png(figure: matplotlib.figure.Figure) -> bytes:
    """The bytes of a figure as a PNG."""
    save_figure(figure, file := BytesIO(), "png")
    return file.getvalue()


def save_figure(figure: matplotlib.figure.Figure, target: Path | str | IO[bytes], format: str | None = None) -> None:
    """Save a figure as png (200 dpi), pdf or svg; the same figure gives the same bytes.

    Args:
        figure: the figure.
        target: the file, or a binary buffer.
        format: png, pdf or svg; None: by the name of the file. A buffer needs it.
    """
    if format is None and isinstance(target, Path | str):
        format = Path(target).suffix.lstrip(".").lower()
    with matplotlib.style.context(STYLE):
        figure.savefig(target, format=format, metadata=NO_DATES.get(format or ""))
