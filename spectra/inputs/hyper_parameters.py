"""Suggest missing arguments of a model from Lightning's hyper-parameters in a checkpoint; they are only suggested."""

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
WORD = r"[\w./-]*[A-Za-z_/][\w./-]*"  # is parsed as a string, and needs no quotes in a shell


def fitting(model: str, checkpoint: str | Path) -> str | None:
    """Complete the name of a model with its missing arguments, taken from the hyper-parameters in a checkpoint.

    Returns None where no argument is missing, or where the checkpoint lacks one of them.
    """
    try:
        name, options = parse_spec(model, OPTION)
        signature = signature_of(resolve(name, OPTION)) if is_place(name) else None
        known = [p for p in signature.parameters.values() if p.kind in NAMED] if signature else []
        held = written(read_entries(checkpoint))
    except SpectraError:  # the caller reports a more helpful error
        return None
    lacking = [p.name for p in known if p.default is p.empty and p.name not in options]
    if not lacking or not held.keys() >= {*lacking}:
        return None
    added = [f"{p.name}={held[p.name]}" for p in known if p.name in held and p.name not in options]
    return f"{model}{'&' if '?' in model else '?'}{'&'.join(added)}"


def written(content: Any) -> dict[str, str]:
    """Return the hyper-parameters of a checkpoint that can be written as options of a name, as text."""
    held = content.get(KEY) if isinstance(content, Mapping) else None
    pairs = held.items() if isinstance(held, Mapping) else ()
    return {key: text for key, value in pairs if isinstance(key, str) and (text := as_text(value)) is not None}


def as_text(value: Any) -> str | None:
    """Write a number, word or list of numbers as the value of an option; None for any other value."""
    if isinstance(value, list | tuple):
        text = None if None in map(as_number, value) else repr(value).replace(" ", "")
    elif isinstance(value, str):
        text = value if re.fullmatch(WORD, value) else None
    else:
        text = as_number(value)
    return text


def as_number(value: Any) -> str | None:
    """Write a number, boolean or None as text; None for any other value."""
    return repr(value) if value is None or isinstance(value, bool | int | float) else None
