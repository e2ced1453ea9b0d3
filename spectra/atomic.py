"""Files written whole or not at all: beside the target, forced to disk, renamed."""

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

TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # names of files that are being written


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """`replace_file`, for a file that the user has named. Raises SpectraError."""
    try:
        replace_file(path, write)
    except OSError as error:
        told = f"`out` {path}: cannot be written ({reason(error)}); free some space or name another"
        raise SpectraError(told) from error


def replace_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write beside the target, force it to disk, rename: readers see the old file or the new. Raises OSError.

    What is written is locked; what a run that was killed has left there is not, and is removed.
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
                file.close()  # Windows renames no file that is open, and there is no lock to keep
            os.replace(file.name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(file.name)


def locked_temporary(path: Path) -> IO[bytes]:
    """A new file beside `path`, locked. Raises OSError."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
        with suppress(OSError):  # a file system without locks
            lock(file)
        if os.path.exists(file.name):
            return file
        file.close()  # another run has taken it for abandoned before it was locked


def remove_abandoned(directory: Path, chosen: Callable[[str], bool]) -> None:
    """Remove what `replace_file` has left, where it was killed, of the files whose names are chosen."""
    for name in os.listdir(directory):
        found = TEMPORARY.fullmatch(name)
        if found and chosen(found[1]):
            with suppress(OSError), open(directory / name, "rb", opener=without_waiting) as file:
                lock(file)  # raises OSError where it is still being written
                os.unlink(directory / name)


def without_waiting(path: str, flags: int) -> int:
    """Open a file as `open` does, but neither through a link nor waiting at a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def reason(error: Exception) -> str:
    """Why a file cannot be written, in words."""
    number = getattr(error, "errno", None)
    return "the disk is full" if number == errno.ENOSPC else getattr(error, "strerror", None) or str(error)


def current_umask() -> int:
    """The permissions that this process takes off new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
