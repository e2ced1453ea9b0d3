"""Choose the tensor of a model's output that the loss is taken of, from dicts, tuples, dataclasses and nested ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from spectra.errors import SpectraError
from spectra.quoting import foreign

SHOWN = 8  # entries that an error message lists


def choose_output(output: Any, key: str | None = None) -> Tensor:
    """The output itself, the only tensor among its entries, or the entry that a dotted path such as `0.logits` names.

    A part of the path is a key, the name of an attribute, or an index (`0`, `-1`). Raises SpectraError.
    """
    if key is not None:
        return follow(output, key)
    if isinstance(output, Tensor):
        return output
    tensors = [value for value in entries(output).values() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    raise SpectraError(
        f"`model`: its output is of type {type(output).__name__}{contents(output)}, not one tensor; "
        "name one with `output`, or wrap the model to return one"
    )


def follow(output: Any, key: str) -> Tensor:
    """The tensor at a dotted path in the output. Raises SpectraError where there is none."""
    if isinstance(output, Tensor):
        raise SpectraError(f"`output` {foreign(key)}: the model's output is one tensor {shape(output)}; leave it out")
    value, path = output, "the model's output"
    for part in key.split("."):
        found = entries(value)
        if isinstance(value, Sequence) and part.removeprefix("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        elif part in found:
            value = found[part]
        else:
            text = f"has no entry {foreign(part)!r}{contents(value)}; name one that is there"
            raise SpectraError(f"`output` {foreign(key)}: {path} {text}")
        path = f"its entry {foreign(part)}"
    if not isinstance(value, Tensor):
        raise SpectraError(
            f"`output` {foreign(key)}: {path} is of type {type(value).__name__}{contents(value)}, not a tensor; name a "
            "tensor, with dots to go deeper"
        )
    return value


def entries(value: Any) -> dict[str, Any]:
    """What a container holds, by the names that a path may use; empty for a tensor and the like."""
    if isinstance(value, Tensor | str):
        return {}
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, Sequence):
        names = getattr(value, "_fields", map(str, range(len(value))))  # a named tuple has _fields
        return dict(zip(names, value, strict=True))
    names = getattr(type(value), "__dataclass_fields__", None) or getattr(value, "__dict__", {})
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


def contents(value: Any) -> str:
    """The entries of a container with their shapes, for an error message."""
    shown = [f"{foreign(name)} {shape(entry)}" for name, entry in entries(value).items()]
    more = ", ..." if len(shown) > SHOWN else ""
    return f" (it has {', '.join(shown[:SHOWN])}{more})" if shown else ""


def shape(value: Any) -> str:
    """The shape of a tensor, or the type of anything else, as text."""
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
