"""Write files whole or not at all: to a temporary file in the same folder, which is then renamed."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from spectra.errors import SpectraError
from spectra.locks import AVAILABLE, lock

TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # names of temporary files


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that the user has named, by `replace_file`. Raises SpectraError where that fails."""
    try:
        replace_file(path, write)
    except OSError as error:
        raise unwritable(path, error, "give another path") from error


def replace_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace a file atomically: readers see the old content or the new, never a part. Raises OSError.

    The content goes to a locked temporary file in the same folder, which is flushed to disk and renamed. Temporary
    files without a lock, which killed runs have left, are removed.
    """
    remove_abandoned(path.parent, path.name.__eq__)
    file = locked_temporary(path)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~current_umask())
            if not AVAILABLE:
                file.close()  # Windows cannot rename an open file, and has no lock to keep
            os.replace(file.name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(file.name)


def locked_temporary(path: Path) -> IO[bytes]:
    """Create a locked temporary file in the folder of `path`. Raises OSError."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
        with suppress(OSError):  # a file system without locks
            lock(file)
        if os.path.exists(file.name):
            return file
        file.close()  # another run has removed it as abandoned before it was locked


def remove_abandoned(directory: Path, chosen: Callable[[str], bool]) -> None:
    """Remove the temporary files that killed runs of `replace_file` have left for targets of `chosen` names."""
    for name in os.listdir(directory):
        found = TEMPORARY.fullmatch(name)
        if found and chosen(found[1]):
            with suppress(OSError), open(directory / name, "rb", opener=without_waiting) as file:
                lock(file)  # raises OSError where it is still being written
                os.unlink(directory / name)


def without_waiting(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=...)` without following a link or waiting for a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def unwritable(path: Path, error: OSError, way_out: str) -> SpectraError:
    """Return the error for a file that cannot be written; a full disk gives a second way out."""
    space = "free some space, or " if error.errno == errno.ENOSPC else ""
    return SpectraError(f"`out` {path}: cannot be written ({reason(error)}); {space}{way_out}")


def reason(error: Exception) -> str:
    """Return in words why a file cannot be written."""
    number = getattr(error, "errno", None)
    return "the disk is full" if number == errno.ENOSPC else getattr(error, "strerror", None) or str(error)


def current_umask() -> int:
    """Return the umask: the permissions that this process removes from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
