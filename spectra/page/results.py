"""Which results a page is of, read and found to be whole."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectra.commands import COMMANDS, with_results
from spectra.inputs.spec import input_error
from spectra.plots.saved import intact, refuse_many
from spectra.records.files import read


class Kind(NamedTuple):
    """What a command's results are called, and the function that makes strings and tables of a record."""

    title: str
    parts: str  # dotted name


# By command, in the order in which a directory's are shown.
KINDS = {name: Kind(COMMANDS[name].title, COMMANDS[name].tables) for name in with_results()}


def read_all(paths: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Files and their records: of a directory all results in it.

    Raises SpectraError: what cannot be read, a directory without results, a file that comes twice.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in paths:
        for file in files(path):
            if os.path.realpath(file) in found:
                raise input_error("RESULT", file, "comes twice; name it once")
            _, record = read(file, list(KINDS))
            refuse_many(file, record)
            with intact(file, record["command"]):
                found[os.path.realpath(file)] = file, restored(record)
    return list(found.values())


def files(path: Path) -> Iterator[Path]:
    held = [file for command in KINDS if (file := path / f"{command}.json").exists()]
    return iter(held or [path])  # of an empty directory `read` tells what it lacks


def restored(record: dict[str, Any]) -> dict[str, Any]:
    """With the numbers that are not finite, which JSON cannot hold; elsewhere null stays null."""
    entries = [{key: numbers(value) for key, value in entry.items()} for entry in record["results"]]
    for entry in entries:
        if record["command"] == "trace":
            entry["trace"] = math.nan if entry["trace"] is None else entry["trace"]
            entry["standard_error"] = math.inf if entry["standard_error"] is None else entry["standard_error"]
    return record | {"results": entries}


def numbers(value: Any) -> Any:
    """Lists of numbers hold no null, but what was not a number."""
    if isinstance(value, list):
        return [math.nan if item is None else numbers(item) for item in value]
    return value
