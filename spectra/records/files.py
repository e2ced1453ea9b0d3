"""Files of results: one JSON record and, where there are arrays, one NPZ file a command; never half written."""

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
    """Strict JSON; numbers that are not finite become null."""
    return json.dumps(finite(record), allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None for every number, at any depth, that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def prepare_directory(path: Path, command: str = "") -> list[Path]:
    """Make the directory and see that it can be written, before hours are spent. Raises SpectraError.

    Nor may directories stand where a `command` will write its files; what a run of it that was killed has left
    half-written is removed. Returns the directories that were made, for `remove_empty`.
    """
    made = [each for each in (path, *path.parents) if not os.path.exists(each)]  # which says no of what cannot be named
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        remove_empty(made)
        raise SpectraError(f"`out` {path}: cannot be written ({error.strerror}); name another directory") from error
    for name in (f"{command}.json", f"{command}.npz", f"{command}.png"):
        if command and (path / name).is_dir():
            raise SpectraError(f"`out` {path}: {name} there is a directory; move it away, or name another `out`")
    remove_abandoned(path, lambda name: re.split("[.-]", name)[0] == command)
    return made


def remove_empty(directories: Sequence[Path]) -> None:
    """Remove directories, the innermost first, into which nothing has come."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def save(directory: Path, command: str, text: str, arrays: Mapping[str, Any]) -> None:
    """`<command>.npz` where there are arrays, then `<command>.json` with this text, each replaced whole."""
    if arrays:
        write_atomically(directory / f"{command}.npz", lambda file: np.savez_compressed(file, **arrays))
    write_atomically(directory / f"{command}.json", lambda file: file.write(f"{text}\n".encode()))


def read(path: Path, commands: Sequence[str], argument: str = "RESULT") -> tuple[Path, dict[str, Any]]:
    """A saved record and its file: `path` itself, or of a directory the first `<command>.json` there is.

    Raises SpectraError: nothing there, no JSON or cut off, no record, of another command or a newer schema.
    """
    try:
        if path.is_dir():
            found = [file for name in commands if (file := path / f"{name}.json").exists()]
            if not found:
                names = ", ".join(f"{name}.json" for name in commands)
                raise SpectraError(f"{argument} {path}: the directory holds none of {names}; name a result's file")
            path = found[0]
        record = json.loads(read_bounded(path, WRITTEN_BY_US))
    except OSError as error:
        raise SpectraError(f"{argument} {path}: cannot be read ({error.strerror}); name a file or directory") from error
    except (ValueError, RecursionError) as error:
        raise SpectraError(
            f"{argument} {path}: is not valid JSON, or is cut off; name a result such as density.json"
        ) from error
    keys = {"schema": int, "command": str, "problem": dict, "results": list}
    if not (isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in keys.items())):
        raise SpectraError(f"{argument} {path}: is JSON, but not a result of spectra; name one such as density.json")
    if record["schema"] > SCHEMA:
        text = f"schema {record['schema']} is newer than this spectra, which reads {SCHEMA}; upgrade spectra"
        raise SpectraError(f"{argument} {path}: {text}")
    if record["command"] not in commands:
        raise SpectraError(f"{argument} {path}: a result of {record['command']}; name one of {', '.join(commands)}")
    return path, record


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """The arrays of numbers of these names, or all, from an NPZ file.

    None where it lacks one, is damaged or is not there.
    """
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (arrays.files if names is None else names)}
            return found if all(array.dtype.kind in "iuf" for array in found.values()) else None
    except (OSError, EOFError, ValueError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # RuntimeError: a bit that is wrong may say that it is encrypted
