"""Names of directions in results of `landscape`, and how tables and figures call them. No torch is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spectra.wording import short_paths

OTHER, PATH = "checkpoint:", "path:"  # what names begin with that a file or a glob follows


def is_way(name: str) -> bool:
    """Whether a direction leads to another checkpoint."""
    return name.startswith(OTHER)


class ShortNames:
    """Names of the checkpoints and directions of results of `landscape`: files are called by what tells them apart."""

    def __init__(self, results: Iterable[Any], text: Callable[[str], str]):
        """`text` makes a name fit where it stands."""
        results = list(results)
        ways = [d.name.removeprefix(OTHER) for entry in results for d in entry.directions if is_way(d.name)]
        here = [entry.checkpoint for entry in results if entry.checkpoint]
        self.files, self.text = short_paths(ways) | short_paths(here), text

    def file(self, path: str | None) -> str:
        """The name of a checkpoint, by its path or by the direction that leads to it; empty for none."""
        path = (path or "").removeprefix(OTHER)
        return self.text(self.files.get(path, path))

    def __call__(self, direction: str) -> str:
        """The name of a direction."""
        return f"to {self.file(direction)}" if is_way(direction) else direction
