"""Lightning's hyper-parameters in a checkpoint, offered where arguments of a model are missing, never used unasked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectra.errors import SpectraError
from spectra.inputs.checkpoint_file import read_entries
from spectra.inputs.sources import is_place
from spectra.inputs.spec import NAMED, parse_spec, resolve, signature_of

KEY = "hyper_parameters"
OPTION = "`model`"
WORD = r"[\w./-]*[A-Za-z_/][\w./-]*"  # which is read as text, and means nothing to a shell


def fitting(model: str, checkpoint: str | Path) -> str | None:
    """The name of the model with the arguments that it lacks, taken from the hyper-parameters in a checkpoint.

    None where it lacks none, or where they are not all there.
    """
    try:
        name, options = parse_spec(model, OPTION)
        signature = signature_of(resolve(name, OPTION)) if is_place(name) else None
        known = [p for p in signature.parameters.values() if p.kind in NAMED] if signature else []
        held = written(read_entries(checkpoint))
    except SpectraError:  # whatever it is, the error that led here says more
        return None
    lacking = [p.name for p in known if p.default is p.empty and p.name not in options]
    if not lacking or not held.keys() >= {*lacking}:
        return None
    added = [f"{p.name}={held[p.name]}" for p in known if p.name in held and p.name not in options]
    return f"{model}{'&' if '?' in model else '?'}{'&'.join(added)}"


def written(content: Any) -> dict[str, str]:
    """The hyper-parameters of a checkpoint that can be written behind a name, as they are written there."""
    held = content.get(KEY) if isinstance(content, Mapping) else None
    pairs = held.items() if isinstance(held, Mapping) else ()
    return {key: text for key, value in pairs if isinstance(key, str) and (text := as_text(value)) is not None}


def as_text(value: Any) -> str | None:
    """A number, word, or list of numbers as the value of an option; None for what cannot be written so."""
    if isinstance(value, list | tuple):
        text = None if None in map(as_number, value) else repr(value).replace(" ", "")
    elif isinstance(value, str):
        text = value if re.fullmatch(WORD, value) else None
    else:
        text = as_number(value)
    return text


def as_number(value: Any) -> str | None:
    """A number, truth value or None as it is written; None for anything else."""
    return repr(value) if value is None or isinstance(value, bool | int | float) else None
