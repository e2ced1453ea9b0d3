"""What is kept: one JSON record and, where there are arrays, one NPZ file a command; never half written."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from spectra.errors import SpectraError

SCHEMA = 1


def make_record(command: str, problem: Mapping[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": SCHEMA, "command": command, "problem": dict(problem), "results": results}


def to_json(record: Mapping[str, Any]) -> str:
    """Strict JSON; numbers that are not finite become null."""
    return json.dumps(finite(record), allow_nan=False)


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def prepare_directory(path: Path) -> None:
    """Make the directory and see that it can be written, before hours are spent. Raises SpectraError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise SpectraError(f"--out {path}: cannot be written ({error.strerror}); name another directory") from error


def save(directory: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """`<command>.npz` where there are arrays, then `<command>.json`, each replaced whole."""
    name = record["command"]
    if arrays:
        write_atomically(directory / f"{name}.npz", lambda file: np.savez_compressed(file, **arrays))
    text = to_json(record) + "\n"
    write_atomically(directory / f"{name}.json", lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write beside the target, force it to disk, rename: readers see the old file or the new. Raises SpectraError."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise SpectraError(f"--out {path}: cannot be written ({reason}); free some space or name another") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
