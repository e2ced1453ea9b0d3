"""The JSON Schema of all records, made from their types; `python -m spectra.records.schema` writes schema.json."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from spectra.records.drawn import PlotRecord, ReportRecord
from spectra.records.fields import layout
from spectra.records.files import SCHEMA
from spectra.records.record import RESULTS, Record
from spectra.records.sweep import Evolution, SweepStatus

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = Path(__file__).with_name("schema.json")
NUMBER = {"type": ["number", "null"]}  # null: not finite
SIMPLE = {str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}, float: NUMBER, Any: {}}
Tree = dict[str, Any]


def schema(strict: bool = False) -> Tree:
    """The schema, with a definition for the record of each command and for each type inside of records.

    Args:
        strict: allow no further keys, such as those that a newer version may write.
    """
    types: Tree = {}
    records = {command: of_record(command, types, strict) for command in RESULTS}
    for cls in (PlotRecord, ReportRecord, Evolution, SweepStatus):
        command = next(slot.default for slot in layout(cls) if slot.name == "command")
        records[command] = of_class(cls, types, strict) | {"description": description(cls)}
        fix(records[command], command)
    return {
        "$schema": DIALECT,
        "title": "Results of spectra, as JSON",
        "anyOf": [{"$ref": f"#/$defs/{command}"} for command in records],
        "$defs": records | dict(sorted(types.items())),
    }


def description(kind: type) -> str:
    """A type's docstring without the list of its attributes in Python."""
    return (kind.__doc__ or "").partition("\n\n    Attributes:")[0]


def of_record(command: str, types: Tree, strict: bool) -> Tree:
    """The schema of a `Record` of this command."""
    skip = {slot.key for slot in layout(Record) if slot.of and command not in slot.of}
    found = of_class(Record, types, strict)
    found["properties"] = {key: kind for key, kind in found["properties"].items() if key not in skip}
    found["properties"]["results"] = {"type": "array", "items": of_type(RESULTS[command], types, strict)}
    fix(found, command)
    return {"description": f"What `spectra {command}` writes."} | found


def fix(found: Tree, command: str) -> None:
    """Fix the values of the keys `schema` and `command`."""
    found["properties"] |= {"schema": {"const": SCHEMA}, "command": {"const": command}}


def of_class(cls: type, types: Tree, strict: bool) -> Tree:
    """The schema of a dataclass: an object with its keys."""
    slots = [slot for slot in layout(cls) if slot.key]
    always = getattr(cls, "ALWAYS", None)
    found: Tree = {
        "type": "object",
        "properties": {slot.key: of_type(slot.kind, types, strict) for slot in slots if not slot.rest},
        "required": [
            slot.key for slot in slots if not slot.rest and (slot.key in always if always else not slot.optional)
        ],
    }
    if either := getattr(cls, "EITHER", None):
        found["anyOf"] = [{"required": list(keys)} for keys in either]
    if strict and not any(slot.rest for slot in slots):
        found["additionalProperties"] = False
    return found


def of_type(kind: Any, types: Tree, strict: bool) -> Tree:
    """The schema of a field of this type; dataclasses are defined in `types`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin is Annotated:
        return nested(NUMBER, inner[1])
    if origin in (Union, UnionType):
        found = [of_type(one, types, strict) for one in inner if one is not NoneType]
        if {int, float} <= {*inner}:
            found = [{"type": "number"}]
        if NoneType not in inner:
            return found[0]
        (one,) = found
        return one if one in (NUMBER, {}) else {"anyOf": [one, {"type": "null"}]}
    if origin in (list, tuple):
        return nested(of_type(inner[0], types, strict), 1)
    if origin is dict:
        return {"type": "object", "additionalProperties": of_type(inner[1], types, strict)}
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise TypeError(f"no JSON for {kind}")
    if kind.__name__ not in types:
        types[kind.__name__] = {}  # for a type that contains itself
        types[kind.__name__] = {"description": description(kind)} | of_class(kind, types, strict)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def nested(inner: Tree, dimensions: int) -> Tree:
    """The schema of arrays nested to this depth."""
    for _ in range(dimensions):
        inner = {"type": "array", "items": inner}
    return inner


def text() -> str:
    """The content of schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
