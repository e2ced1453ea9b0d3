"""The files that show spectra over training: a table as CSV and JSON, a figure as PNG and PDF."""

from __future__ import annotations

from pathlib import Path

from spectra.atomic import write_atomically
from spectra.plots.evolution import evolution_figure
from spectra.plots.style import PAGE, save_figure
from spectra.records.files import prepare_directory
from spectra.records.sweep import Evolution


def evolution_files(evolution: Evolution, directory: Path, width: float = PAGE) -> list[Path]:
    """Write the table and the figure of an evolution: table.csv, table.json, evolution.png and evolution.pdf.

    Each file is replaced as a whole, so that an interrupted call leaves no file half written.

    Args:
        evolution: the table, as `spectra.evolution_of` returns it.
        directory: the directory, which is made where it does not exist.
        width: the width of the figure in inches.

    Returns:
        The paths of the files.

    Raises:
        SpectraError: the directory cannot be written.
    """
    prepare_directory(directory)
    figure = evolution_figure(evolution, width)
    writers = {
        "table.csv": lambda file: file.write(evolution.to_csv().encode()),
        "table.json": lambda file: file.write(f"{evolution.to_json()}\n".encode()),
        "evolution.png": lambda file: save_figure(figure, file, "png"),
        "evolution.pdf": lambda file: save_figure(figure, file, "pdf"),
    }
    for name, write in writers.items():
        write_atomically(directory / name, write)
    return [directory / name for name in writers]
