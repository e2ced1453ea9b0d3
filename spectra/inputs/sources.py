"""The forms in which a user may name a model or data, each with the function that makes the object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectra.wording import dtype_name

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Source:
    """One form of a name, and the function that makes the object."""

    form: str  # as messages list it
    takes: Callable[[str], bool]  # whether a name, without options, has this form
    make: Callable[..., Any]  # makes the object from the name and the options after its '?'


@dataclass(frozen=True)
class NamedData:
    """Data that were named by the user, with notes on how they were read."""

    data: Any
    notes: tuple[str, ...]
    holds_images: bool = False  # then the default transform applies


@dataclass(frozen=True)
class Built:
    """A model, and notes on it for the record."""

    model: nn.Module
    notes: Sequence[str] = ()


def half_notes(dtypes: Iterable[torch.dtype]) -> list[str]:
    """Return a note if weights come in half precision, which is less precise than the float32 they are used in."""
    names = {dtype_name(dtype) for dtype in dtypes}
    half = sorted(names & {"bfloat16", "float16"})
    return [f"weights come in {' and '.join(half)}"] if half else []


def source_of(sources: Sequence[Source], name: str) -> Source | None:
    """Return the first source that takes the name; None where no source does."""
    return next((source for source in sources if source.takes(name)), None)


def forms(sources: Sequence[Source]) -> str:
    """List all forms of a name for a message: `digits, a file.npz, or file.py:name`."""
    *most, last = [source.form for source in sources]
    return f"{', '.join(most)}, or {last}" if most else last


def is_place(name: str) -> bool:
    """Whether a name has the form file.py:name or package.module:name."""
    return ":" in name or name.endswith(".py")
