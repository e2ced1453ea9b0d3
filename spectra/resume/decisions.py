"""The decisions that an unfinished run made by timing, so that a resumed run makes the same ones.

DIR/choices.json, DIR/choices.rank1.json    the decisions by key, with a checksum
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from spectra.atomic import replace_file
from spectra.resume.files import checksum, opened, refuse_another_kind

Note = Callable[[str], None]


class Decisions(MutableMapping[str, str]):
    """A mapping of strings that is written to a file at each change.

    Args:
        path: the file. If it is damaged, decisions are made again, and the user is notified.
        note: called with a message for the user.
        failed: called with an error of the disk, after which nothing more is written.

    Raises:
        SpectraError: the path is not a regular file.
    """

    def __init__(self, path: Path, note: Note, failed: Callable[[Exception], None]):
        self._path, self._failed, self._writing = path, failed, True
        self._held: dict[str, str] = {}
        try:
            with opened(path) as file:
                self._held = checked(json.loads(file.read()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError):
            note(f"{path} is damaged, so its decisions are made again, and numbers may differ by rounding")

    def __getitem__(self, key: str) -> str:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __setitem__(self, key: str, value: str) -> None:
        self._held[key] = value
        self._write()

    def __delitem__(self, key: str) -> None:
        del self._held[key]
        self._write()

    def _write(self) -> None:
        if not self._writing:
            return
        text = json.dumps({"choices": self._held, "checksum": checksum(self._held)})
        try:
            refuse_another_kind(self._path)
            replace_file(self._path, lambda file: file.write(text.encode()))
        except OSError as error:
            self._writing = False
            self._failed(error)


def checked(content: Any) -> dict[str, str]:
    """The choices in the content of a file. Raises ValueError if it is damaged."""
    if not isinstance(content, dict) or {*content} != {"choices", "checksum"}:
        raise ValueError("not a file of choices")
    held = content["choices"]
    if content["checksum"] != checksum(held):
        raise ValueError("another checksum")
    return held
