"""Figures as SVG small enough for a mail, accurate to a twentieth of a point."""

from __future__ import annotations

import io
import re

import numpy as np
from matplotlib.figure import Figure

from spectra.plots.style import save_figure

TOLERANCE = 0.05  # points (1/72 inch): less than a printer's dot
PATH = re.compile(r' d="([^"]*)"')
LINES = re.compile(r"M (\S+) (\S+) \n(L (\S+) (\S+) \n)+(z\n?)?")


def svg(figure: Figure) -> bytes:
    """The figure as SVG without prologue, comments, indentation, and invisible detail of curves."""
    save_figure(figure, file := io.BytesIO(), "svg")
    text = file.getvalue().decode()
    text = renamed(PATH.sub(lambda path: f' d="{shortened(path[1])}"', text[text.index("<svg") :]))
    return re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)).encode()


def renamed(text: str) -> str:
    """The SVG with short ids, numbered in order, and without ids that nothing refers to.

    Matplotlib's ids are hashes of positions, and the last digits of positions differ between two drawings of a figure.
    """
    referred = set(re.findall(r"#([\w.-]+)", text))
    names = [name for name in re.findall(r' id="([^"]*)"', text) if name in referred]
    numbers = {name: f"i{number}" for number, name in enumerate(names)}
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{numbers[found[1]]}"' if found[1] in numbers else "", text)
    return re.sub(r"#([\w.-]+)", lambda found: f"#{numbers.get(found[1], found[1])}", text)


def shortened(path: str) -> str:
    """The path with coordinates to a hundredth of a point, and without needless points of straight lines."""
    if LINES.fullmatch(path):
        points = np.array(re.findall(r"[ML] (\S+) (\S+)", path), dtype=np.float64)
        path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points[needed(points)]) + "z" * path.strip().endswith("z")
    return re.sub(r"(\.\d\d)\d+", r"\1", path)


def needed(points: np.ndarray) -> np.ndarray:
    """A mask (n,) of points (n, 2) to keep, so that no point is farther than `TOLERANCE` from the line.

    Douglas, Peucker 1973: if the farthest point from the chord is too far, it is kept and divides the line.
    """
    kept = np.zeros(len(points), dtype=bool)
    kept[[0, -1]] = True
    parts = [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first > 1:
            far = distances(points[first + 1 : last], points[first], points[last])
            if far.max() > TOLERANCE:
                middle = first + 1 + int(far.argmax())
                kept[middle] = True
                parts += [(first, middle), (middle, last)]
    return kept


def distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The distances (n,) of points (n, 2) from the segment between two points."""
    along = end - start
    share = np.clip((points - start) @ along / max(along @ along, np.finfo(float).tiny), 0, 1)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1)
