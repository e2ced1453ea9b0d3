"""Which results a page is of, read and found to be whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spectra.inputs.spec import input_error
from spectra.plots.saved import read_modest
from spectra.records.record import Record


class Kind(NamedTuple):
    """What a command's results are called, and the function that makes strings and tables of a record."""

    title: str
    parts: str  # dotted name


KINDS = {  # by command, in the order in which a directory's are shown
    "inspect": Kind("Checkpoint and cost", "spectra.tables.inspection:inspect_parts"),
    "eig": Kind("Eigenvalues", "spectra.tables.results:eig_parts"),
    "trace": Kind("Trace", "spectra.tables.results:trace_parts"),
    "density": Kind("Spectral density", "spectra.tables.outliers:density_parts"),
    "compare": Kind("Comparison of matrices", "spectra.tables.comparison:compare_parts"),
    "layers": Kind("Layer by layer", "spectra.tables.layers:layers_parts"),
    "landscape": Kind("Loss along eigenvectors", "spectra.tables.landscape:landscape_parts"),
}


def read_all(paths: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Files and their records: of a directory all results in it.

    Raises SpectraError: what cannot be read, a directory without results, a file that comes twice.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for path in paths:
        for file in files(path):
            if os.path.realpath(file) in found:
                raise input_error("RESULT", file, "comes twice; name it once")
            found[os.path.realpath(file)] = read_modest(file, list(KINDS))
    return list(found.values())


def files(path: Path) -> Iterator[Path]:
    held = [file for command in KINDS if (file := path / f"{command}.json").exists()]
    return iter(held or [path])  # of an empty directory `read` tells what it lacks
