"""A cache on disk: bytes by kind and key, in a directory that only the user may write to.

An entry may be missing at any time, and no function here raises an error: callers compute what is missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from spectra.atomic import TEMPORARY, replace_file, without_waiting

VARIABLE = "SPECTRA_CACHE"
LIMIT = 2**28  # bytes of all entries
LEAST = 2**16  # bytes that an entry counts as at least, which bounds the number of entries too
NAME = re.compile(r"[a-z]+-[0-9a-f]{64}")


def directory() -> Path | None:
    """The directory of the cache, created if it is missing.

    It is $SPECTRA_CACHE, else $XDG_CACHE_HOME/spectra, else ~/.cache/spectra. It is None if SPECTRA_CACHE is empty, if
    it cannot be created, or if another user owns it or may write to it.
    """
    try:
        path = place()
        if path is None:
            return None
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path if is_private(path) else None
    except (OSError, RuntimeError, ValueError):  # no home, a name with a null character
        return None


def read(kind: str, key: str) -> bytes | None:
    """The bytes written under this kind (a word of lower-case letters) and key; None where there are none."""
    path = entry(kind, key)
    if path is None:
        return None
    try:
        with open(path, "rb", opener=without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or not is_own(found) or found.st_size > LIMIT:
                return None
            content = file.read()
    except (OSError, MemoryError):
        return None
    data = content[32:]
    if content[:32] != checksum(path.name, data):
        return None
    with suppress(OSError):
        os.utime(path)  # the least recently used entries are removed first
    return data


def write(kind: str, key: str, data: bytes) -> None:
    """Write bytes under a kind and key; the least recently used entries are removed to make room."""
    path = entry(kind, key)
    if path is not None and len(data) < LIMIT / 2:
        with suppress(OSError):
            replace_file(path, lambda file: file.write(checksum(path.name, data) + data))
            remove_oldest(path.parent)


def entry(kind: str, key: str) -> Path | None:
    """The file of an entry; None where nothing is cached."""
    folder, digest = directory(), hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{kind}-{digest}" if folder else None


def checksum(name: str, data: bytes) -> bytes:
    """The checksum with which an intact entry begins."""
    return hashlib.sha256(name.encode() + data).digest()


def place() -> Path | None:
    """The directory that the environment names for the cache; None where the cache is off."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "spectra"


def is_private(path: Path) -> bool:
    """Whether the user owns a directory, and the link that leads to it, and nobody else may write there."""
    found = os.stat(path)
    others = os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and not others and is_own(found) and is_own(os.lstat(path))


def is_own(found: os.stat_result) -> bool:
    """Whether the user owns a file. True on Windows, which has no user ids and keeps a user's folders private."""
    return os.name != "posix" or found.st_uid == os.geteuid()


def remove_oldest(folder: Path) -> None:
    """Remove the least recently used entries until the rest are within the limit. Raises OSError."""
    room = LIMIT
    for path, found in sorted(entries(folder), key=lambda pair: pair[1].st_mtime, reverse=True):
        room -= max(LEAST, found.st_size)
        if room < 0:
            with suppress(OSError):
                os.unlink(path)


def entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files of the cache and its temporary files, and no others."""
    with os.scandir(folder) as found:
        for item in found:
            written = TEMPORARY.fullmatch(item.name)
            if NAME.fullmatch(written[1] if written else item.name):
                with suppress(OSError):  # another process has removed it
                    yield item.path, item.stat(follow_symlinks=False)
