"""Names of directions: `1`, `lowest`, `random`, `gradient`, `checkpoint:late.pt`, `path:run/*.pt`.

They are read as users type them, and shortened for tables and figures. No torch is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spectra.wording import short_paths

NAMES = (
    "name 1, 2, ... (eigenvectors), lowest or random, gradient, update, momentum, checkpoint:PATH or path:GLOB; one, "
    "or two with a comma"
)
WORDS = ("lowest", "random", "gradient", "update", "momentum")
OTHER, PATH = "checkpoint:", "path:"  # what names begin with that a file or a glob follows
OF_FILES = (OTHER, PATH)


def named(text: str) -> tuple[str, ...]:
    """The direction of a line, or the two of a plane. Raises ValueError, with what is wrong and the way out."""
    names = [str(int(name)) if name.isdigit() else name for name in parts(text)]
    if not (len(names) < 3 and all(map(known, names))):
        raise ValueError(f"{text!r} is neither one direction nor two; {NAMES}")
    if len(set(names)) < len(names) and names[0] != "random":
        raise ValueError(f"{text!r} names one direction twice, which is not a plane; name two")
    return tuple(names)


def parts(text: str) -> list[str]:
    """The names in a text; a comma that none follows belongs to the name of a file."""
    names: list[str] = []
    for part in text.split(","):
        if names and names[-1].startswith(OF_FILES) and not known(part.strip()):
            names[-1] += f",{part}"
        else:
            names.append(part.strip())
    return names


def known(name: str) -> bool:
    """Whether this names a direction: a word, a rank, or a file or glob behind what it is."""
    if name.startswith(OF_FILES):
        return bool(name.partition(":")[2].strip())
    return name in WORDS or (name.isascii() and name.isdigit() and len(name) < 10 and int(name) > 0)


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
