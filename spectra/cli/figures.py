"""Figures of a command, written beside its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from spectra.run.session import Session


def draw(session: Session, figures: dict[str, Any]) -> list[str]:
    """Write `<name>.png` to --out for each figure that there is; their paths. Without --out, none."""
    out = session.request.out
    paths = {name: out / f"{name}.png" for name, figure in figures.items() if figure} if out else {}
    for name, path in paths.items():
        write(session, figures[name], path)
    return [str(path) for path in paths.values()]


def write(session: Session, figure: Any, path: Path) -> None:
    """Write a figure as PNG, by the process that writes."""
    from spectra.plots.style import save_figure
    from spectra.records.files import write_atomically

    if session.first:
        write_atomically(path, lambda file: save_figure(figure, file, "png"))
