"""The error message for a name that `data` does not know, with a suggestion what to write instead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from spectra.quoting import quoted

TEXTS = {".txt", ".text", ".md"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
ARRAYS = {".npy", ".pt", ".pth", ".mat", ".h5", ".hdf5", ".pkl"}


def unknown(name: str, forms: str) -> str:
    """Say why a name is not known data, and what to write; `forms` lists all ways to name data."""
    path = Path(name)
    if os.path.isfile(path):
        return of_file(path)
    if near := [*same_set(name), *same_path(path)]:
        return f"it is not known data; did you mean {near[0]}?"
    return f"it is not known data{missing(name)}; write {forms}"


def of_file(path: Path) -> str:
    """Say what to write for a file of a kind that is not supported."""
    if path.suffix.lower() in TEXTS:
        return f"a text is cut into chunks of tokens; write text:{quoted(path)}?length=256"
    if path.suffix.lower() in IMAGES:
        return "it is one image; name the folder that holds a folder of images for each class"
    kind = f"{path.suffix} files are not supported" if path.suffix else "files without a suffix are not supported"
    arrays = "save its arrays x and y with numpy.savez, or " if path.suffix.lower() in ARRAYS else ""
    return f"{kind}; {arrays}write a function that reads it and returns tensors (x, y) or a data set, as file.py:name"


def same_set(name: str) -> Iterator[str]:
    """Find the data set of torchvision with this name, up to capital letters and hyphens."""
    with suppress(Exception):  # a torchvision of another torch raises RuntimeError
        from torchvision import datasets

        yield from (
            f"torchvision:{one}?root=FOLDER" for one in datasets.__all__ if one.lower() == name.lower().replace("-", "")
        )


def same_path(path: Path) -> Iterator[str]:
    """Find paths that exist, with a similar name for the first part of `path` that does not exist."""
    for depth, part in enumerate(path.parts):
        parent = Path(*path.parts[:depth])
        if os.path.exists(parent / part):
            continue
        with suppress(OSError):
            for near in get_close_matches(part, sorted(one.name for one in parent.iterdir()), n=3):
                if os.path.exists(found := Path(parent, near, *path.parts[depth + 1 :])):
                    yield quoted(found)
        return


def missing(name: str) -> str:
    """Say which part of a path does not exist; an empty text for a name without a folder, or a path that exists."""
    if "/" not in name or os.path.exists(name):
        return ""
    path = Path(name).absolute()
    there = next(parent for parent in path.parents if os.path.exists(parent))
    first = path.relative_to(there).parts[0]
    return f"; there is no {quoted(first)} in {quoted(there)}"
