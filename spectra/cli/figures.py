"""Figures of a command, written beside its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectra.records.record import Record
    from spectra.run.session import Session


def drawn(session: Session, record: Record, figures: Callable[[Record], Mapping[str, Any]]) -> Record:
    """Write the figures to --out as `<name>.png`, if it is given, and return the record with their paths."""
    from spectra.plots.files import write_png

    out = session.request.out
    paths = {out / f"{name}.png": figure for name, figure in figures(record).items() if figure} if out else {}
    if session.first:
        for path, figure in paths.items():
            write_png(figure, path)
    return record.changed(figures=list(map(str, paths)))
