"""Writing figures to files, each file replaced whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from spectra.atomic import write_atomically
from spectra.krylov.results import SpectralMeasure
from spectra.plots.density import density_figure
from spectra.plots.style import save_figure


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, replacing an existing file atomically. Raises SpectraError."""
    write_atomically(path, lambda file: save_figure(figure, file, "png"))


def draw_density(
    measures: dict[str, SpectralMeasure], path: Path, thresholds: Iterable[float | None] = (), log: bool = False
) -> None:
    """Draw the spectral densities of named matrices and write the figure as PNG; see `density_figure`."""
    write_png(density_figure(measures, log=log, thresholds=thresholds), path)
