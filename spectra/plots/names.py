"""Names of curves from labels and matrices, and text in characters that the figure's font has."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.mathtext import MathTextParser

from spectra.inputs.spec import input_error
from spectra.quoting import quoted, with_texts
from spectra.wording import counted

T = TypeVar("T")
FONT = "DejaVu Sans"  # matplotlib's own, which comes with it


def names(labels: Sequence[str], defaults: Sequence[str], curvatures: Sequence[Sequence[str]]) -> list[str]:
    """A name for each matrix of each result: the label, the matrix, or both where one alone is ambiguous.

    Raises SpectraError: `labels` that are too few or many, equal, or in characters that the font lacks.
    """
    if labels and len(labels) != len(defaults):
        raise input_error(
            "`labels`",
            ", ".join(labels),
            f"{counted(len(labels), 'label')} for {counted(len(defaults), 'RESULT')}; give one for each",
        )
    for i, label in enumerate(labels):
        check_text(label, "`labels`")
        if not label.strip() or label in labels[:i]:
            raise input_error("`labels`", repr(label), "is repeated or empty; give each RESULT a different name")
    several = len(defaults) > 1 or bool(labels)
    matrices = {name for some in curvatures for name in some}
    return [
        ", ".join([label] * several + [name] * (len(matrices) > 1 or not several))
        for label, some in zip(labels or defaults, curvatures, strict=True)
        for name in some
    ]


def default_labels(files: Sequence[Path]) -> list[str]:
    """The paths without the parts that all have in common at either end, as long as they stay different."""
    parts = [Path(os.path.realpath(file)).with_suffix("").parts for file in files]
    while len(files) > 1 and all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    while len(files) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    found = ["/".join(p) for p in parts]
    if len(set(found)) < len(found):  # x.json beside x.txt
        found = [str(file) for file in files]
    return [settable(label) for label in found]


def settable(text: str) -> str:
    """`text` from a file or path, quoted, with dollars escaped, and `?` for each character that the font lacks."""
    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    return re.sub(r"(?<!\\)\$", r"\\$", "".join(c if ord(c) in known else "?" for c in quoted(text)))


def all_settable(record: T) -> T:
    """The record with `settable` applied to every text in it."""
    return with_texts(record, settable)


def check_text(text: str, option: str) -> None:
    """Raise SpectraError where the font lacks a character, or text between dollar signs is not valid mathtext."""
    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    if missing := [c for c in text if ord(c) not in known and c != "\n"]:
        raise input_error(option, text, f"the font {FONT} has no character {missing[0]!a}; use other characters")
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        way_out = r"the text between dollar signs is not valid mathematics; write \$ for a dollar sign"
        raise input_error(option, text, way_out) from None
