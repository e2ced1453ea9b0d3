"""The results that a page shows, read from files and checked."""

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
    """Read files, and all results in directories. Densities of older versions get their summaries.

    Raises SpectraError: a file that cannot be read, a directory without results, a file that is given twice.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for path in paths:
        for file in files(path):
            if os.path.realpath(file) in found:
                raise input_error("RESULT", file, "is given twice; give it once")
            path, record = read_modest(file, list(KINDS))
            found[os.path.realpath(file)] = path, with_summaries(record) if record.command == "density" else record
    return list(found.values())


def files(path: Path) -> Iterator[Path]:
    """The files of results at a path: the path itself, or the results in a directory."""
    held = [file for command in KINDS if (file := path / f"{command}.json").exists()]
    return iter(held or [path])  # for an empty directory, `read` raises the error
