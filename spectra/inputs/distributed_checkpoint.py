"""Read folders of torch.distributed.checkpoint: `.metadata`, and shards `*.distcp` of many tensors each.

Torch's own reader unpickles `.metadata` without restrictions, so a forged file could run code. Here the classes in that
pickle are replaced by stand-ins that do nothing. Each tensor in a shard is a file of torch.save, which torch reads with
`weights_only=True`. Entries that are not tensors, and the state of optimizers, are not read.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import pickletools
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectra.errors import describe
from spectra.files import WRITTEN_BY_US, open_regular, read_bounded
from spectra.inputs.checkpoint_folder import METADATA, SHARD, sha256_of_parts
from spectra.inputs.pickles import find_defect
from spectra.inputs.safetensors_file import Damaged
from spectra.quoting import quoted

SAVED_BY_TORCH = (
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("Metadata", "StorageMeta", "MetadataIndex")),
    *(f"torch.distributed.checkpoint.metadata.{name}StorageMetadata" for name in ("Tensor", "Bytes", "Chunk")),
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    *(f"torch.distributed.checkpoint.filesystem.{name}" for name in ("_StorageInfo", "_StoragePrefix")),
    "torch.serialization._get_layout",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
)
DEEPEST = 20  # parts of a tensor's path in the saved mapping


class UnexpectedObject(ValueError):
    """The metadata names an object that torch never writes there; the message is the object's name."""


class StandIn:
    """A stand-in for an object of the metadata: it keeps the state in the pickle, and runs nothing."""

    held: Any = None

    def __new__(cls, *_: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.held = state

    def __getitem__(self, name: str) -> Any:
        if not isinstance(self.held, dict) or name not in self.held:
            raise Damaged(f"its {METADATA} lacks {name}")
        return self.held[name]


class Unpickler(pickle.Unpickler):
    """Unpickler of `.metadata` that replaces each class that torch writes there by a stand-in."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the stand-in for a known class. Raises UnexpectedObject for any other object."""
        if (name := f"{module_name}.{global_name}") in SAVED_BY_TORCH:
            return StandIn
        if name == "torch.Size":
            return tuple
        if name == "collections.OrderedDict":
            return OrderedDict
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return None  # dtypes come from the tensors themselves
        raise UnexpectedObject(name)


class TensorChunk(NamedTuple):
    """One part of a tensor, and its place in a shard."""

    name: str  # of the tensor
    whole: tuple[int, ...]  # shape of the tensor
    offsets: tuple[int, ...]  # of the part in the tensor
    sizes: tuple[int, ...]  # shape of the part
    start: int  # in the shard, in bytes
    length: int  # in bytes


def read_distributed(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the saved mapping of names to tensors, nested as it was saved, and the SHA-256 of the folder's files.

    Raises OSError, UnexpectedObject where the metadata names code, and Damaged where the shards contradict it.
    """
    written = read_bounded(folder / METADATA, WRITTEN_BY_US)
    places, shards = _described(written)
    digests, made = {METADATA: hashlib.sha256(written).hexdigest()}, _Assembly()
    files = sorted(path.name for path in folder.glob(f"*{SHARD}"))
    if absent := sorted(shards.keys() - set(files)):
        raise Damaged(f"its shard {quoted(absent[0], 60)} is missing ({len(absent)} of {len(shards)}); copy all of it")
    made.most = sum((folder / name).stat().st_size for name in files)
    for name in files:
        with open_regular(folder / name) as opened:
            before = os.fstat(opened.fileno())
            for piece in sorted(shards.get(name, ()), key=lambda piece: piece.start):
                if piece.start + piece.length > before.st_size:
                    raise Damaged(f"{quoted(piece.name, 60)} is beyond the end of its shard {quoted(name, 60)}")
                made.add(piece, _tensor(opened, piece))
            opened.seek(0)
            digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
            after = os.fstat(opened.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise Damaged(f"{name} was written to while it was read")
    return _nested(made.whole(), places), sha256_of_parts(digests)


def _described(written: bytes) -> tuple[dict[str, tuple[str, ...]], dict[str, list[TensorChunk]]]:
    """Return the path of each tensor in the saved mapping, and the pieces in each shard."""
    try:
        metadata = _unpickled(written)
        tensors, stored = metadata["state_dict_metadata"], metadata["storage_data"]
        paths = metadata.held.get("planner_data") or {}
        infos = {(index["fqn"], _offset(index.held.get("offset"))): info for index, info in stored.items()}
        places, shards = {}, defaultdict(list)
        for name, entry in tensors.items():
            if not isinstance(entry.held, dict) or "chunks" not in entry.held:
                continue  # not a tensor
            place = tuple(map(str, paths.get(name, (name,))))
            if len(place) > DEEPEST or any("optim" in part.lower() for part in place[:-1]):
                continue
            places[name] = place
            for piece, file in _pieces(name, entry, infos):
                shards[file].append(piece)
    except (UnexpectedObject, Damaged):
        raise
    except Exception as error:
        raise Damaged(f"its {METADATA} has an unknown structure ({describe(error)})") from error
    return places, dict(shards)


def _unpickled(written: bytes) -> StandIn:
    if text := find_defect(io.BytesIO(written), len(written)):
        raise Damaged(text)
    for opcode, argument, _ in pickletools.genops(written):
        # CPython allocates as many entries as the largest index of a PUT.
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(written):
            raise Damaged(f"its {METADATA} numbers objects that it does not hold")
    found = Unpickler(io.BytesIO(written)).load()
    if not isinstance(found, StandIn):
        raise Damaged(f"its {METADATA} holds a {type(found).__name__}")
    return found


def _pieces(name: str, entry: StandIn, infos: dict) -> Iterator[tuple[TensorChunk, str]]:
    """Yield the pieces of one tensor, each with the name of its shard."""
    whole = _shape(entry["size"])
    for chunk in entry["chunks"]:
        offsets, sizes = _shape(chunk["offsets"]), _shape(chunk["sizes"])
        info = infos[name, offsets]
        if info.held.get("transform_descriptors"):
            raise Damaged("its shards are compressed; save it without extensions")
        file, (start, length) = info["relative_path"], _shape((info["offset"], info["length"]))
        if not isinstance(file, str) or not file.endswith(SHARD) or set(file) & set("/\\:") or not file.isprintable():
            raise Damaged(f"its shard {quoted(file, 60)} is not a file in its folder, so it was not read")
        inside = len(whole) == len(offsets) == len(sizes)
        if not (inside and all(o + s <= n for o, s, n in zip(offsets, sizes, whole, strict=True))):
            raise Damaged(f"a piece of {quoted(name, 60)} lies outside its shape")
        yield TensorChunk(name, whole, offsets, sizes, start, length), file


def _shape(numbers: Any) -> tuple[int, ...]:
    if not (isinstance(numbers, tuple | list) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)):
        raise Damaged(f"its {METADATA} holds an invalid shape")
    return tuple(numbers)


def _offset(numbers: Any) -> tuple[int, ...] | None:
    return None if numbers is None else _shape(numbers)


def _tensor(opened: BufferedReader, piece: TensorChunk) -> Tensor:
    """Read one piece of a tensor from its shard."""
    shown = quoted(piece.name, 60)
    opened.seek(piece.start)
    held = io.BytesIO(opened.read(piece.length))
    if text := find_defect(held, piece.length):
        raise Damaged(text)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(held, map_location="cpu", weights_only=True)
    except Exception:  # from None: torch's own message advises to trust the file
        raise Damaged(f"{shown} is not a tensor that torch.save wrote") from None
    if not isinstance(found, Tensor) or found.layout is not torch.strided or tuple(found.shape) != piece.sizes:
        raise Damaged(f"{shown} does not have shape {piece.sizes} in its shard")
    return found.detach()


class _Assembly:
    """Tensors assembled from their pieces, which may come in any order."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.covered: dict[str, Tensor] = {}  # masks of the entries read so far, for tensors in several pieces
        self.most = 0  # bytes of all shards

    def add(self, piece: TensorChunk, values: Tensor) -> None:
        if piece.sizes == piece.whole:
            self.tensors[piece.name] = values
            self.covered.pop(piece.name, None)
            return
        if piece.name not in self.tensors:
            if math.prod(piece.whole) * values.itemsize > self.most:
                raise Damaged(f"it declares {quoted(piece.name, 60)} of {piece.whole}, but its shards are smaller")
            self.tensors[piece.name] = torch.empty(piece.whole, dtype=values.dtype)
            self.covered[piece.name] = torch.zeros(piece.whole, dtype=torch.bool)
        place = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.sizes, strict=True))
        self.tensors[piece.name][place] = values
        if piece.name in self.covered:
            self.covered[piece.name][place] = True

    def whole(self) -> dict[str, Tensor]:
        """Return all tensors. Raises Damaged where a piece is missing."""
        for name, covered in self.covered.items():
            if not covered.all():
                raise Damaged(f"pieces of {quoted(name, 60)} are missing")
        return self.tensors


def _nested(tensors: dict[str, Tensor], places: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, place in places.items():
        if name not in tensors:
            raise Damaged(f"{quoted(name, 60)} has no pieces")
        inner = content
        for part in place[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise Damaged(f"{quoted(name, 60)} is nested inside a tensor")
        inner[place[-1]] = tensors[name]
    return content
