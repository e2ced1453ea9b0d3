"""Which results a page is of, read and found to be whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spectra.commands import COMMANDS, with_results
from spectra.inputs.spec import input_error
from spectra.plots.saved import read_modest
from spectra.records.record import Record
from spectra.spectrum.summarise import with_summaries


class Kind(NamedTuple):
    """The title of a command's results, and the function that makes strings and tables of a record."""

    title: str
    parts: str  # dotted name


# By command, in the order in which a directory's are shown.
KINDS = {name: Kind(COMMANDS[name].title, COMMANDS[name].tables) for name in with_results()}


def read_all(paths: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Files and their records: of a directory all results in it. Densities of older versions are summarised.

    Raises SpectraError: what cannot be read, a directory without results, a file that comes twice.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for path in paths:
        for file in files(path):
            if os.path.realpath(file) in found:
                raise input_error("RESULT", file, "is named twice; name it once")
            path, record = read_modest(file, list(KINDS))
            found[os.path.realpath(file)] = path, with_summaries(record) if record.command == "density" else record
    return list(found.values())


def files(path: Path) -> Iterator[Path]:
    """The files of results at a path: itself, or those in a directory."""
    held = [file for command in KINDS if (file := path / f"{command}.json").exists()]
    return iter(held or [path])  # of an empty directory `read` tells what it lacks
