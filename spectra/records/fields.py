"""Convert dataclasses to JSON and back.

JSON has no nan and no infinity; both are written as null. When it is read, null becomes None if the field allows it,
otherwise nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from spectra.wording import outlined

Vector = Annotated[np.ndarray, 1]  # read as float64 from JSON
Matrix = Annotated[np.ndarray, 2]
T = TypeVar("T")
LARGEST = int(np.finfo(np.float64).max)


class MissingKey(AttributeError):
    """Raised for a key that is missing in the file that was read; its text is the key."""


class WrongType(ValueError):
    """Raised for a key with a value of the wrong type."""

    def __init__(self, key: str, expected: str):
        super().__init__(f"{key}: expected {expected}")
        self.key = key
        self.expected = expected


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=False, field_specifiers=(field,))
def stored(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass that is stored in files."""
    return dataclass(frozen=True, eq=False, kw_only=True, repr=False)(cls)


@stored
class Stored:
    """The base class of dataclasses that are stored in files, with one key per field.

    If the file lacks a key, the field has its default; without a default it is missing, and reading it raises
    `MissingKey`. So results of older versions can be read, apart from the fields that they lack.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            for slot in layout(type(self)):
                if slot.name == name:
                    raise MissingKey(slot.key or name)
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={outlined(value)}' for name, value in vars(self).items())})"

    @classmethod
    def known(cls, **values: Any) -> Self:
        """Make an instance with only these fields."""
        unknown = values.keys() - {slot.name for slot in layout(cls)}
        if unknown:
            raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
        made = object.__new__(cls)
        vars(made).update(values)
        return made

    def changed(self, **values: Any) -> Self:
        """A copy with new values for these fields; other fields may be missing."""
        return type(self).known(**vars(self) | values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, except that numbers may still be nan or infinite; missing fields are left out."""
        return encode(self)

    def missing(self) -> Iterator[str]:
        """Iterate over the keys of missing fields without a default, here and in nested dataclasses."""
        for slot in layout(type(self)):
            if slot.key and slot.required and slot.name not in vars(self):
                yield slot.key
            for part in parts(vars(self).get(slot.name)):
                yield from part.missing()


def parts(value: Any) -> list[Stored]:
    """The stored dataclasses in a field's value: the value itself, or those in a list."""
    return [part for part in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(part, Stored)]


class Slot(NamedTuple):
    """How a field is stored in files."""

    name: str
    key: str | None  # in JSON; None: only in the NPZ file
    kind: Any
    required: bool  # whether there is no default
    default: Any  # a value, or MISSING
    factory: Any  # a function that makes the default, or MISSING
    omitted: Callable[[Any], bool]  # whether an instance leaves out the key
    optional: bool  # whether the key is ever left out
    of: tuple[str, ...]  # the commands that write it; empty: all
    array: str | None  # first part of the name in the NPZ file
    rest: bool  # a dict of all further keys
    null: float  # the number that null stands for


def written(
    key: str | None = "",
    *,
    array: str | None = None,
    omitted: Callable[[Any], bool] | None = None,
    null: float = math.nan,
    rest: bool = False,
    last: bool = False,
    of: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The `metadata` of a dataclass's field that is not simply written under its own name.

    Args:
        key: the key in JSON; None for an array that is only in the NPZ file.
        array: write the array to the NPZ file too, under this name followed by that of the matrix.
        omitted: given the instance, returns whether the key is left out.
        null: the number that null stands for.
        rest: the field is a dict of all keys that belong to no other field.
        of: the commands that write it; empty: all.
        last: write it after the fields of subclasses.
    """
    return {"key": key, "array": array, "omitted": omitted, "null": null, "rest": rest, "last": last, "of": of}


@cache
def layout(cls: type) -> tuple[Slot, ...]:
    """The fields of a dataclass, in the order in which they are written."""
    hints, slots = get_type_hints(cls, include_extras=True), []
    for f in sorted(fields(cls), key=lambda f: f.metadata.get("last", False)):
        key, about = f.metadata.get("key", ""), f.metadata
        slots.append(
            Slot(
                name=f.name,
                key=f.name if key == "" else key,
                kind=hints[f.name],
                required=f.default is MISSING and f.default_factory is MISSING,
                default=f.default,
                factory=f.default_factory,
                omitted=about.get("omitted") or (lambda _: False),
                optional=bool(about.get("omitted")),
                of=about.get("of", ()),
                array=about.get("array"),
                rest=about.get("rest", False),
                null=about.get("null", math.nan),
            )
        )
    return tuple(slots)


def key_of(value: Any, name: str) -> str:
    """The key under which a field is written."""
    return next(slot.key or name for slot in layout(type(value)) if slot.name == name)


def encode(value: Any) -> Any:
    """Convert a value to JSON values; numbers that are not finite are kept."""
    if is_dataclass(value):
        tree: dict[str, Any] = {}
        for slot in layout(type(value)):
            if slot.key is None or slot.name not in vars(value) or slot.omitted(value):
                continue
            held = encode(vars(value)[slot.name])
            tree |= held if slot.rest else {slot.key: held}
        return tree
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value


def decode(kind: Any, tree: Any, key: str, null: float = math.nan) -> Any:
    """Convert a JSON value back to this type, the inverse of `encode`. Raises WrongType."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return tree
    if origin in (Union, UnionType):
        if tree is None and NoneType in inner:
            return None
        if {int, float} <= {*inner} and is_number(tree):
            return tree
        return decode(next(one for one in inner if one is not NoneType), tree, key, null)
    if origin is Annotated:
        return numbers(tree, inner[1], key)
    if isinstance(kind, type) and is_dataclass(kind):
        return decode_fields(kind, tree, key)
    if origin in (list, tuple):
        wanted = "a list"
        if isinstance(tree, list) and (origin is list or inner[-1] is ... or len(tree) == len(inner)):
            return origin(decode(inner[0], item, key) for item in tree)
    elif origin is dict:
        wanted = "an object"
        if isinstance(tree, dict):
            return {name: decode(inner[1], item, key) for name, item in tree.items()}
    elif kind is float:
        wanted = "a number"
        if tree is None:
            return null
        if is_number(tree) and abs(tree) <= LARGEST:
            return float(tree)
    else:
        wanted = {str: "text", bool: "true or false", int: "a whole number"}[kind]
        if type(tree) is kind:
            return tree
    raise WrongType(key, wanted)


def decode_fields(cls: type[T], tree: Any, key: str) -> T:
    """Make a dataclass from the keys in `tree`. Raises WrongType."""
    if not isinstance(tree, dict):
        raise WrongType(key, "an object")
    made, slots = object.__new__(cls), layout(cls)
    known = {slot.key for slot in slots if not slot.rest}
    for slot in slots:
        if slot.rest:
            vars(made)[slot.name] = {name: item for name, item in tree.items() if name not in known}
        elif slot.key is not None and slot.key in tree:
            vars(made)[slot.name] = decode(slot.kind, tree[slot.key], slot.key, slot.null)
        elif slot.factory is not MISSING:
            vars(made)[slot.name] = slot.factory()
    return made


def numbers(tree: Any, dimensions: int, key: str) -> np.ndarray:
    """Convert nested lists of numbers to a float64 array, with nan for null. Raises WrongType."""
    try:
        if are_numbers(tree, dimensions):
            array = np.array(tree, dtype=np.float64)
            return array if array.ndim == dimensions else array.reshape((len(tree), *(0,) * (dimensions - 1)))
    except (ValueError, OverflowError):  # rows of several lengths; too large for float64
        pass
    raise WrongType(key, "numbers" if dimensions == 1 else "rows of numbers of equal length")


def are_numbers(tree: Any, dimensions: int) -> bool:
    """Whether a JSON value is nested lists of numbers and nulls, with this many dimensions."""
    if not isinstance(tree, list):
        return False
    if dimensions == 1:
        return all(item is None or is_number(item) for item in tree)
    return all(are_numbers(item, dimensions - 1) for item in tree)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, and not true or false."""
    return type(value) in (int, float)
