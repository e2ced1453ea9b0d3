"""Read safetensors from an open file: the length of the header (8 bytes), a JSON header, and the data.

Unlike the safetensors library, this does not map the file into memory: if a mapped file is truncated meanwhile, the
process dies with SIGBUS. The sizes in the header are compared with the file before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from io import BufferedReader
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectra.quoting import quoted

LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
CHUNK = 2**24
KINDS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Damaged(ValueError):
    """A file contradicts its own header or metadata; the message says how."""


class TensorInfo(NamedTuple):
    """The dtype and shape of a tensor, and its place in the data."""

    kind: torch.dtype
    shape: list[int]
    start: int  # byte offset in the data
    end: int


def read_safetensors(file: BufferedReader) -> tuple[dict[str, Tensor], str]:
    """Read all tensors, as views of one buffer, and the SHA-256 of the bytes that they were read from.

    Raises Damaged where the file holds less than its header promises, or has no such header.
    """
    size = os.fstat(file.fileno()).st_size
    digest, length = hashlib.sha256(), int.from_bytes(start := file.read(8), "little")
    if len(start) < 8 or length > min(LONGEST_HEADER, size - 8):
        raise Damaged(f"its header declares {length:,} bytes, but the file holds {size:,}")
    digest.update(start)
    digest.update(header := file.read(length))
    places = _places(header, size - 8 - length)
    numbers = torch.empty(size - 8 - length, dtype=torch.uint8)
    view, done = memoryview(numbers.numpy()), 0
    while done < len(view):
        count = file.readinto(view[done : done + CHUNK])
        if not count:
            raise Damaged("it was cut short while it was read")
        digest.update(view[done : done + count])
        done += count
    return {name: _tensor(numbers, place) for name, place in places.items()}, digest.hexdigest()


def _places(header: bytes, size: int) -> dict[str, TensorInfo]:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise Damaged("its header is not valid JSON") from error
    if not isinstance(content, dict):
        raise Damaged("its header names no tensors")
    content.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in content.items()}
    if (promised := max((place.end for place in places.values()), default=0)) != size:
        raise Damaged(f"its header declares {promised:,} bytes of tensors, but the file holds {size:,}")
    return places


def _place(name: str, entry: Any) -> TensorInfo:
    try:
        kind, shape, (start, end) = KINDS.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in [*shape, start, end])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"its header is wrong at {quoted(name, 60)}") from error
    if kind is None:
        raise Damaged(
            f"{quoted(name, 60)} has an unknown dtype {quoted(entry['dtype'], 20)}, perhaps because it is quantised"
        )
    if not (whole and start <= end and end - start == math.prod(shape) * kind.itemsize):
        raise Damaged(f"its header is wrong at {quoted(name, 60)}")
    return TensorInfo(kind, shape, start, end)


def _tensor(numbers: Tensor, place: TensorInfo) -> Tensor:
    held = numbers[place.start : place.end]
    if place.start % place.kind.itemsize:  # a view has to be aligned in memory
        held = held.clone()
    return held.view(place.kind).view(place.shape)
