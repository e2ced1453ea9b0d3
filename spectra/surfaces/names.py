"""Parse the names of directions: `1`, `lowest`, `random`, `gradient`, `checkpoint:late.pt`, `path:run/*.pt`.

Users type these names. The names in tables are in `records.directions`. This module does not load torch.
"""

from __future__ import annotations

from spectra.records.directions import OTHER, PATH

NAMES = (
    "name 1, 2, ... (eigenvectors), lowest, random, gradient, update, momentum, checkpoint:PATH or path:GLOB, or two "
    "of them separated by a comma"
)
WORDS = ("lowest", "random", "gradient", "update", "momentum")
OF_FILES = (OTHER, PATH)


def named(text: str) -> tuple[str, ...]:
    """Parse the direction of a line, or the two of a plane. Raises ValueError with a message for the user."""
    names = parts(text)
    if not (len(names) < 3 and all(map(known, names))):
        raise ValueError(f"{text!r} is neither one direction nor two; {NAMES}")
    names = [str(int(name)) if name.isdigit() else name for name in names]
    if len(set(names)) < len(names) and names[0] != "random":
        raise ValueError(f"{text!r} names one direction twice, but a plane needs two; name another one")
    return tuple(names)


def parts(text: str) -> list[str]:
    """The names in a text, separated by commas; a comma that no name follows is part of a file name."""
    names: list[str] = []
    for part in text.split(","):
        if names and names[-1].startswith(OF_FILES) and not known(part.strip()):
            names[-1] += f",{part}"
        else:
            names.append(part.strip())
    return names


def known(name: str) -> bool:
    """Whether this is the name of a direction: a word, a rank, or a prefix with a file or glob."""
    if name.startswith(OF_FILES):
        return bool(name.partition(":")[2].strip())
    return name in WORDS or (name.isascii() and name.isdigit() and len(name) < 10 and int(name) > 0)
