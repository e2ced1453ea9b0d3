"""An append-only file of records, readable after a kill or a full disk: an incomplete last record is cut off.

head      MARK, and a digest of the owner and the name of the file
record    an Entry: position, place, mark, seconds, size, checksum of the content; checksum of these; the content
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any

import numpy as np

from spectra.atomic import replace_file
from spectra.resume.files import opened, own_copy

MARK = b"spectra 2 state\n"
HEADER = struct.Struct("<QQQdQI")  # of an Entry
CHECKSUM = struct.Struct("<I")  # of the HEADER
RECORD = HEADER.size + CHECKSUM.size  # bytes before a content
CHUNK = 2**24


@dataclass(frozen=True)
class Entry:
    """The header of a record, and the offset of its content."""

    position: int
    place: int
    mark: int
    seconds: float
    size: int
    checksum: int
    start: int

    @property
    def end(self) -> int:
        """The offset of the end of the record."""
        return self.start + self.size

    def packed(self) -> bytes:
        """The header as bytes, with its checksum."""
        fields = (self.position, self.place, self.mark, self.seconds, self.size, self.checksum)
        header = HEADER.pack(*fields)
        return header + CHECKSUM.pack(zlib.crc32(header))


class Log:
    """A file of records, which is made with its first record; `entries` are the headers of its records in order.

    `owner` names what the file belongs to. If it belongs to another owner, or a record is corrupt, `damaged` is set,
    and the file is cut before the first corrupt record; contents are checked when they are read. Raises SpectraError if
    `path` is not a regular file.
    """

    def __init__(self, path: Path, owner: str = ""):
        self.path, self.head = path, head(path, owner)
        self.damaged = False
        self.entries: list[Entry] = []
        self._opened: BufferedRandom | None = None
        with suppress(FileNotFoundError):
            own_copy(path)
            self._opened = opened(path, "r+b")
            self.entries = list(self._read())
            self.cut(len(self.entries))

    def _read(self) -> Iterator[Entry]:
        found = self._file.read(len(self.head))
        if found != self.head:
            self.damaged = not self.head.startswith(found)
            return
        length, start = os.fstat(self._file.fileno()).st_size, len(self.head)
        while start + RECORD <= length:
            self._file.seek(start)
            header, checksum = self._file.read(HEADER.size), self._file.read(CHECKSUM.size)
            if CHECKSUM.unpack(checksum)[0] != zlib.crc32(header):
                self.damaged = True
                return
            entry = Entry(*HEADER.unpack(header), start=start + RECORD)
            if entry.end > length:
                return
            yield entry
            start = entry.end

    def read(self, entry: Entry, content: np.ndarray) -> bool:
        """Fill `content` with the record's bytes, and return whether they are intact; if not, set `damaged`."""
        self._file.seek(entry.start)
        whole = self._file.readinto(memoryview(content)) == entry.size
        if not (whole and zlib.crc32(content) == entry.checksum):
            self.damaged = True
            return False
        return True

    def content(self, entry: Entry) -> np.ndarray | None:
        """The record's bytes; None if they are corrupt."""
        content = np.empty(entry.size, dtype=np.uint8)
        return content if self.read(entry, content) else None

    def load(self, entry: Entry, read: Callable[[IO[bytes]], Any]) -> Any | None:
        """Read the content of the last record with `read`; return None and set `damaged` if it is corrupt."""
        self.damaged |= checksum(self._file, entry.start) != entry.checksum
        self._file.seek(entry.start)
        return None if self.damaged else read(self._file)

    def append(self, position: int, place: int, mark: int, seconds: float, content: np.ndarray) -> None:
        """Append one record, without a sync to the disk. Raises OSError, and leaves nothing of the record behind."""
        before = self.end
        start = (before or len(self.head)) + RECORD
        entry = Entry(position, place, mark, seconds, content.nbytes, zlib.crc32(content), start)
        if self._opened is None:
            self._opened = opened(self.path, "x+b")
        try:
            self._file.seek(before)
            self._file.write((b"" if before else self.head) + entry.packed())
            self._file.write(memoryview(content))
            self._file.flush()
        except OSError:
            with suppress(OSError):
                self._file.close()  # tries again to write its buffer
            os.truncate(self.path, before)
            self._opened = opened(self.path, "r+b")
            raise
        self.entries.append(entry)

    @property
    def end(self) -> int:
        """The offset of the end of the last record."""
        return self.entries[-1].end if self.entries else 0

    def cut(self, count: int) -> None:
        """Keep only the first `count` records."""
        del self.entries[count:]
        if self._open and os.fstat(self._file.fileno()).st_size > self.end:
            self._file.truncate(self.end)

    def sync(self) -> None:
        """Sync the file to the disk."""
        if self._open:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._open:
            self._file.close()

    @property
    def _open(self) -> bool:
        return self._opened is not None and not self._opened.closed

    @property
    def _file(self) -> BufferedRandom:
        """The open file; it is open if there are entries."""
        assert self._opened
        return self._opened


def head(path: Path, owner: str) -> bytes:
    """The first bytes of a file with this owner and this name, which consists of matrix, rank and kind."""
    return MARK + hashlib.sha256(f"{owner}\n{path.name}".encode()).digest()


def write_whole(path: Path, owner: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace a file by one with a single record; `write` writes its content.

    Raises OSError, and what `write` raises.
    """
    begin = head(path, owner)
    start = len(begin) + RECORD

    def record(file: IO[bytes]) -> None:
        file.seek(start)
        write(file)
        size = file.tell() - start
        entry = Entry(0, 0, 0, 0.0, size, checksum(file, start), start)
        file.seek(0)
        file.write(begin + entry.packed())

    replace_file(path, record)


def checksum(file: IO[bytes], start: int) -> int:
    """The checksum of everything from `start` on."""
    file.seek(start)
    found = 0
    while chunk := file.read(CHUNK):
        found = zlib.crc32(chunk, found)
    return found
