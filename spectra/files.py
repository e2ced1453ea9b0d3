"""Open files from others without hanging or running out of memory.

A path may be a pipe to which nobody writes, an endless device, a loop of links, or a file of 200 GB. The `strerror` of
the OSError that is raised says in words what is wrong.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

MEBIBYTE = 2**20
WRITTEN_BY_HAND = MEBIBYTE // 4  # bytes of a TOML file or a plan
WRITTEN_BY_US = 64 * MEBIBYTE  # of a result's JSON, an index of shards
DEEP_KEY = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""")
# O_NONBLOCK: a pipe in a file's place does not hang. O_BINARY, on Windows: line ends are not changed.
READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
KINDS = {
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
    stat.S_IFDIR: "it is a folder",
}


def open_regular(path: Path | str) -> BufferedReader:
    """Open a file for reading. Raises OSError where it is a folder, pipe, socket or device, or cannot be opened."""
    refuse_special(path)  # opening a socket would fail with an unclear message
    file = os.fdopen(os.open(path, READING), "rb")
    try:
        _refuse(os.fstat(file.fileno()).st_mode, path)
    except OSError:
        file.close()
        raise
    return file


def refuse_special(path: Path | str) -> None:
    """Raise OSError where the path is a folder, pipe, socket or device, or cannot be reached."""
    _refuse(os.stat(path).st_mode, path)


def read_bounded(path: Path | str, most: int) -> bytes:
    """Read a regular file. Raises OSError as `open_regular` does, and where the file has more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else b""
        if size > most or len(content) > most:  # the files in /proc have no size
            text = f"it has {in_units(max(size, len(content)))}, more than the {in_units(most)} that are read"
            raise OSError(errno.EFBIG, text, str(path))
    return content


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file. Raises OSError where it cannot be read, and ValueError where it is not valid TOML."""
    text = read_bounded(path, WRITTEN_BY_HAND).decode("utf-8")
    if DEEP_KEY.search(text):  # tomllib's time grows with the square of the number of parts
        raise ValueError("a key has more than a hundred dotted parts")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("its arrays or tables are nested too deeply") from error
    except ValueError as error:  # Python makes no integer of more than 4,300 digits
        raise ValueError("an integer does not fit in 64 bits") from error
    refuse_long_integers(content)
    return content


def refuse_long_integers(value: Any, key: str = "") -> None:
    """Raise ValueError where a value of TOML contains an integer of more than 64 bits, which TOML does not allow."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{key} is an integer that does not fit in 64 bits")
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_long_integers(item, name)
    elif isinstance(value, list):
        for item in value:
            refuse_long_integers(item, key)


def in_units(size: float) -> str:
    """A number of bytes as text, as `3.2 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"


def _refuse(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, KINDS.get(stat.S_IFMT(mode), "it is not a regular file"), str(path))
