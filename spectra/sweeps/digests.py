"""The SHA-256 of checkpoints, computed once as long as sizes and times of their files do not change.

DIRECTORY/.checkpoint.json     the digest that a task's results were last compared with, and those sizes and times
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from spectra.atomic import replace_file
from spectra.files import WRITTEN_BY_US, read_bounded
from spectra.inputs.checkpoint_folder import parts, sha256

NAME = ".checkpoint.json"
Stamps = tuple[tuple[str, int, int, int], ...]  # of each file: path, size, times of its last change in ns


def digest(checkpoint: Path, directory: Path) -> str:
    """The SHA-256 that a result of this checkpoint lists; it is remembered in `directory`, if that can be written.

    Raises OSError if a file cannot be read, and SpectraError if an index of shards is not valid.
    """
    seen = stamps(checkpoint)
    if (found := remembered(directory, seen)) is None:
        found = computed(checkpoint, seen)
        with suppress(OSError):
            content = json.dumps({"files": seen, "sha256": found}).encode()
            replace_file(directory / NAME, lambda file: file.write(content))
    return found


@cache
def computed(checkpoint: Path, _seen: Stamps) -> str:
    """The SHA-256 of a checkpoint's content, of all files of an index or a folder."""
    if parts(checkpoint) == [checkpoint] and checkpoint.suffix != ".json":
        return sha256(checkpoint)
    from spectra.inputs.checkpoint_file import digest_of  # loads torch

    return digest_of(checkpoint)


def remembered(directory: Path, seen: Stamps) -> str | None:
    """The SHA-256 that an earlier call saved; None if the files have changed since."""
    try:
        content = json.loads(read_bounded(directory / NAME, WRITTEN_BY_US))
        same = tuple(tuple(stamp) for stamp in content["files"]) == seen
        return content["sha256"] if same and isinstance(content["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def stamps(checkpoint: Path) -> Stamps:
    """The name, size and times of each file of a checkpoint, to detect changes."""
    found = [(str(file), os.stat(file)) for file in parts(checkpoint)]
    return tuple((name, held.st_size, held.st_mtime_ns, held.st_ctime_ns) for name, held in found)
