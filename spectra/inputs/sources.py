"""The ways in which a user may name a model or data, each with the function that makes the object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Source:
    """One way to name an object."""

    form: str  # as an error lists it
    takes: Callable[[str], bool]  # whether a name, without options, is written so
    make: Callable[..., Any]  # what the name and the options after its '?' stand for


@dataclass(frozen=True)
class Told:
    """What a name of data stands for, with notes on how it was read."""

    data: Any
    notes: tuple[str, ...]
    holds_images: bool = False  # which the default transform is for


@dataclass(frozen=True)
class Built:
    """A model, and notes on it for the record."""

    model: nn.Module
    notes: Sequence[str] = ()


def half_notes(dtypes: Iterable[torch.dtype]) -> list[str]:
    """A note where some weights have fewer digits than float32, in which they are used."""
    names = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    half = sorted(names & {"bfloat16", "float16"})
    return [f"weights come in {' and '.join(half)}"] if half else []


def source_of(sources: Sequence[Source], name: str) -> Source | None:
    """The first source that takes the name; None where there is none."""
    return next((source for source in sources if source.takes(name)), None)


def forms(sources: Sequence[Source]) -> str:
    """All ways to write a name, as `digits, a file.npz or file.py:name`."""
    *most, last = [source.form for source in sources]
    return f"{', '.join(most)} or {last}" if most else last


def is_place(name: str) -> bool:
    """Whether a name has the form file.py:name or package.module:name."""
    return ":" in name or name.endswith(".py")
