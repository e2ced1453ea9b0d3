"""Open the files of a state safely: only regular files, without following links and without blocking."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, Literal, cast, overload

from spectra.atomic import replace_file, without_waiting
from spectra.errors import SpectraError

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@overload
def opened(path: Path, mode: Literal["rb"] = "rb") -> BufferedReader: ...
@overload
def opened(path: Path, mode: Literal["r+b", "x+b", "a+b"]) -> BufferedRandom: ...
def opened(path: Path, mode: Literal["rb", "r+b", "x+b", "a+b"] = "rb") -> BufferedReader | BufferedRandom:
    """Open the regular file at `path`, like `open`.

    Raises SpectraError if the path is not a regular file, FileNotFoundError if there is no file and `mode` makes none,
    and OSError if the file cannot be opened.
    """
    refuse_another_kind(path)
    return cast("BufferedReader | BufferedRandom", open(path, mode, opener=without_waiting))


def refuse_another_kind(path: Path, wanted: int = stat.S_IFREG) -> None:
    """Raise SpectraError if `path` exists and is not of the kind `wanted`, by default a regular file."""
    try:
        found = stat.S_IFMT(path.lstat().st_mode)
    except OSError:  # opening it raises the error
        return
    if found != wanted:
        what = KINDS.get(found, "a regular file")
        raise SpectraError(f"`out`: {path} is {what}, which no run wrote; move it away, or choose another `out`")


def own_copy(path: Path) -> None:
    """Replace a file that has other hard links by a copy, so that changes in place do not reach these."""
    if path.lstat().st_nlink > 1:
        with opened(path) as file:
            replace_file(path, lambda copy: shutil.copyfileobj(file, copy, 2**20))


def checksum(content: dict[str, Any]) -> str:
    """The SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
