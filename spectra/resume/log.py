"""An append-only file of records, readable after a kill or a full disk: what follows the last whole one is cut off."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HEADER = struct.Struct("<QQQdQI")  # of an Entry: position, place, mark, seconds, size; checksum of the content


@dataclass(frozen=True)
class Entry:
    """What stands before a record's content, and where that lies."""

    position: int
    place: int
    mark: int
    seconds: float
    size: int
    checksum: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.size


class Log:
    """The file at `path`, made where there is none; its `entries` in order. Contents are checked as they are read."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        self.entries = list(self._read())
        self.cut(len(self.entries))

    def _read(self) -> Iterator[Entry]:
        length, start = os.fstat(self._file.fileno()).st_size, 0
        while start + HEADER.size <= length:
            self._file.seek(start)
            *fields, checksum = HEADER.unpack(self._file.read(HEADER.size))
            entry = Entry(*fields, checksum, start + HEADER.size)
            if entry.end > length:
                return
            yield entry
            start = entry.end

    def content(self, entry: Entry) -> np.ndarray | None:
        """The record's bytes; None where they are not those that were written."""
        content = np.empty(entry.size, dtype=np.uint8)
        self._file.seek(entry.start)
        whole = self._file.readinto(memoryview(content)) == entry.size
        return content if whole and zlib.crc32(content) == entry.checksum else None

    def append(self, position: int, place: int, mark: int, seconds: float, content: np.ndarray) -> None:
        """Write one record, as far as the system's memory; raises OSError, with nothing of it left behind."""
        start = self.end
        entry = Entry(position, place, mark, seconds, content.nbytes, zlib.crc32(content), start + HEADER.size)
        try:
            self._file.seek(start)
            self._file.write(HEADER.pack(position, place, mark, seconds, entry.size, entry.checksum))
            self._file.write(memoryview(content))
            self._file.flush()
        except OSError:
            with suppress(OSError):
                self._file.close()  # tries again to write what it holds
            os.truncate(self.path, start)
            self._file = self.path.open("r+b")
            raise
        self.entries.append(entry)

    @property
    def end(self) -> int:
        return self.entries[-1].end if self.entries else 0

    def cut(self, count: int) -> None:
        """Keep only the first so many records."""
        del self.entries[count:]
        if os.fstat(self._file.fileno()).st_size > self.end:
            self._file.truncate(self.end)

    def sync(self) -> None:
        """Bring all of it to the disk itself."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
