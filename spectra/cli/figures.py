"""Figures of a command, written beside its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectra.run.session import Session


def draw(session: Session, figures: dict[str, Any]) -> list[str]:
    """Write `<name>.png` to --out for each figure that there is; their paths. Without --out, none."""
    from spectra.plots.files import write_png

    out = session.request.out
    paths = {name: out / f"{name}.png" for name, figure in figures.items() if figure} if out else {}
    for name, path in paths.items():
        if session.first:
            write_png(figures[name], path)
    return [str(path) for path in paths.values()]
