"""Names of directions in results of `landscape`, as tables and figures show them. No torch is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spectra.wording import short_paths

OTHER, PATH = "checkpoint:", "path:"  # prefixes of names that end in a file or a glob


def leads_to_checkpoint(name: str) -> bool:
    """Whether a direction leads to another checkpoint."""
    return name.startswith(OTHER)


class ShortNames:
    """Short names of checkpoints and directions in results of `landscape`: the parts of paths that differ."""

    def __init__(self, results: Iterable[Any], text: Callable[[str], str]):
        """`text` shortens or escapes a name for the place where it is shown."""
        results = list(results)
        ways = [
            d.name.removeprefix(OTHER) for entry in results for d in entry.directions if leads_to_checkpoint(d.name)
        ]
        here = [entry.checkpoint for entry in results if entry.checkpoint]
        self.files, self.text = short_paths(ways) | short_paths(here), text

    def file(self, path: str | None) -> str:
        """The short name of a checkpoint, given its path or the direction to it; empty for None."""
        path = (path or "").removeprefix(OTHER)
        return self.text(self.files.get(path, path))

    def __call__(self, direction: str) -> str:
        """The short name of a direction."""
        return f"to {self.file(direction)}" if leads_to_checkpoint(direction) else direction
