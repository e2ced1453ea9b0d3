"""A hook of the site: it fills reference/results.md with every key of every result, its type and its meaning.

Keys and types come from the dataclasses of `spectra.records`. The meaning of a key comes from `Attributes` in the
docstring of its class, otherwise from fields.toml beside this file.
"""

import inspect
import re
import tomllib
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from spectra.records.drawn import PlotRecord, ReportRecord
from spectra.records.entry import Entry
from spectra.records.fields import Slot, layout
from spectra.records.record import RESULTS, Record
from spectra.records.sweep import Evolution, SweepStatus

PAGE, MARK = "reference/results.md", "<!-- results -->"
MEANINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
SIMPLE = {str: "text", bool: "true or false", int: "integer", float: "number", Any: "any"}
NUMBERS = {1: "list of numbers", 2: "rows of numbers", 3: "numbers, nested 3 deep"}
OTHERS = {"plot": PlotRecord, "report": ReportRecord, "sweep collect": Evolution, "sweep status": SweepStatus}


@cache
def attributes(cls: type) -> dict[str, str]:
    """The meanings of fields under `Attributes` in the docstring of a dataclass."""
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)*)", inspect.cleandoc(cls.__doc__ or "") + "\n", re.MULTILINE)
    told = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).rstrip(".") for name, text in told}


def meaning(cls: type, name: str) -> str:
    """The meaning of a field; an empty text if it is not documented."""
    for base in cls.__mro__:
        if is_dataclass(base) and name in inspect.get_annotations(base):
            return attributes(base).get(name) or MEANINGS.get(f"{base.__name__}.{name}") or MEANINGS.get(name, "")
    return ""


def type_of(kind: Any, wanted: list[type]) -> str:
    """The type of a field in words; dataclasses in it are links, and go to `wanted`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin is Annotated:
        return NUMBERS[inner[1]]
    if origin in (list, tuple):
        return f"list of {type_of(inner[0], wanted)}"
    if origin is dict:
        return f"object of {type_of(inner[1], wanted)}"
    if inner:
        parts = [type_of(one, wanted) for one in inner if one is not NoneType]
        return " or ".join(dict.fromkeys(parts + ["null"] * (NoneType in inner)))
    if kind not in wanted:
        wanted.append(kind)
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def row(cls: type, slot: Slot, wanted: list[type]) -> str:
    """The row of one field in a table."""
    array = f"`{slot.array}_CURVATURE`"
    text = sentence(in_json(meaning(cls, slot.name)))
    if not slot.key:
        return f"| {array} | array, only in the NPZ file | {text} |"
    text += f" In the NPZ file: {array}." if slot.array else ""
    return f"| `{slot.key}` | {type_of(slot.kind, wanted)} | {text} |"


def sentence(text: str) -> str:
    """The text without a leading article, with a capital letter at its beginning and a full stop at its end."""
    text = text.removeprefix("the ").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def in_json(text: str) -> str:
    """A meaning as a cell of a table, with the words of JSON in place of those of Python."""
    for python, json in {"None": "null", "True": "true", "False": "false"}.items():
        text = re.sub(rf"\b{python}\b", json, text)
    text = re.sub(r"\b(nan|infinite) if\b", "null if", text)
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"([*<\[\]_])", r"\\\1", part) for part in parts[::2]]  # code stays as it is
    return "`".join(parts)


def table(cls: type, slots: list[Slot], wanted: list[type]) -> str:
    rows = [row(cls, slot, wanted) for slot in slots if not slot.rest]
    return "\n".join(["| key | type | meaning |", "| --- | --- | --- |", *rows])


def summary(cls: type) -> str:
    """The first paragraph of the docstring of a dataclass."""
    return in_json(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " "))


def described() -> list[str]:
    """All results, as paragraphs of Markdown."""
    wanted: list[type] = []
    common = {slot.name for slot in layout(Entry)}
    found = [
        "## Every result",
        summary(Record),
        table(Record, [slot for slot in layout(Record) if not slot.of], wanted),
        "Every entry of `results` has the keys of its command, below, and those of all commands:",
        table(Entry, list(layout(Entry)), wanted),
    ]
    for command, cls in RESULTS.items():
        own = [slot for slot in layout(cls) if slot.name not in common]
        beside = [slot for slot in layout(Record) if command in slot.of]
        found += [f"## {command}", f"An entry of `results`. {summary(cls)}", table(cls, own, wanted)]
        found += ["Beside `results`:", table(Record, beside, wanted)] * bool(beside)
    for command, cls in OTHERS.items():
        found += [f"## {command}", summary(cls), table(cls, list(layout(cls)), wanted)]
    found.append("## Parts")
    for cls in wanted:  # which grows on the way
        found += [f"### {cls.__name__}", summary(cls), table(cls, list(layout(cls)), wanted)]
    return found


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != PAGE:
        return markdown
    assert MARK in markdown
    return markdown.replace(MARK, "\n\n".join(described()))
