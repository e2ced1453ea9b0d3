"""Read and write the files of results: for each command a JSON file and, for arrays, an NPZ file."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from spectra.atomic import remove_abandoned, write_atomically
from spectra.errors import SpectraError
from spectra.files import WRITTEN_BY_US, open_regular, read_bounded

SCHEMA = 1


def to_json(record: Mapping[str, Any]) -> str:
    """Convert a record to strict JSON; numbers that are not finite become null."""
    return json.dumps(finite(record), allow_nan=False)


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def prepare_directory(path: Path, command: str = "") -> list[Path]:
    """Make the directory, and check that the files of `command` can be written there. Raises SpectraError.

    Temporary files of a killed run of the command are removed. Returns the directories that were made, for
    `remove_empty`.
    """
    made = [each for each in (path, *path.parents) if not os.path.exists(each)]  # False for invalid paths too
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        remove_empty(made)
        raise SpectraError(f"`out` {path}: cannot be written ({error.strerror}); choose another directory") from error
    for name in (f"{command}.json", f"{command}.npz", f"{command}.png"):
        if command and (path / name).is_dir():
            raise SpectraError(f"`out` {path}: {name} in it is a directory; move that away, or choose another `out`")
    remove_abandoned(path, lambda name: re.split("[.-]", name)[0] == command)
    return made


def remove_empty(directories: Sequence[Path]) -> None:
    """Remove the directories that are empty, the innermost first."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def save(directory: Path, command: str, text: str, arrays: Mapping[str, Any]) -> None:
    """Write `<command>.npz` if there are arrays, then `<command>.json` with this text; each is replaced atomically."""
    if arrays:
        write_atomically(directory / f"{command}.npz", lambda file: np.savez_compressed(file, **arrays))
    write_atomically(directory / f"{command}.json", lambda file: file.write(f"{text}\n".encode()))


def read(path: Path, commands: Sequence[str], argument: str = "RESULT") -> tuple[Path, dict[str, Any]]:
    """Read the record in a file, or in the first `<command>.json` of a directory; return the file and the record.

    Raises SpectraError if there is no such file, or it is not valid JSON, not a record, or a record of another command
    or a newer schema.
    """
    try:
        if path.is_dir():
            found = [file for name in commands if (file := path / f"{name}.json").exists()]
            if not found:
                names = ", ".join(f"{name}.json" for name in commands)
                raise SpectraError(f"{argument} {path}: the directory has none of {names}; give the file of a result")
            path = found[0]
        record = json.loads(read_bounded(path, WRITTEN_BY_US))
    except OSError as error:
        raise SpectraError(
            f"{argument} {path}: cannot be read ({error.strerror}); give the file or directory of a result"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SpectraError(
            f"{argument} {path}: is not valid JSON, or is cut off; give a result such as density.json"
        ) from error
    keys = {"schema": int, "command": str, "problem": dict, "results": list}
    if not (isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in keys.items())):
        raise SpectraError(f"{argument} {path}: is JSON, but not a result of spectra; give one such as density.json")
    if record["schema"] > SCHEMA:
        text = f"schema {record['schema']} is newer than {SCHEMA}, which this version reads; upgrade spectra"
        raise SpectraError(f"{argument} {path}: {text}")
    if record["command"] not in commands:
        raise SpectraError(f"{argument} {path}: is a result of {record['command']}; give one of {', '.join(commands)}")
    return path, record


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """Read the numeric arrays with these names, or all, from an NPZ file.

    None if the file is missing or damaged, or lacks one of them.
    """
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (arrays.files if names is None else names)}
            return found if all(array.dtype.kind in "iuf" for array in found.values()) else None
    except (OSError, EOFError, ValueError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # RuntimeError: in a damaged file a wrong bit may say that it is encrypted
