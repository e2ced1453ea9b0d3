"""Read untrusted files of weights without running anything in them.

Torch files are read with `weights_only=True`. Other objects that are often saved with weights (hyper-parameters, paths,
NumPy numbers) are replaced by inert stand-ins. An index (`*.index.json`, as Hugging Face writes it) may name only
shards in its own folder. In a folder, the files of weights are found by their names.
"""

import hashlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from spectra.errors import describe
from spectra.files import WRITTEN_BY_US, open_regular, read_bounded
from spectra.inputs.checkpoint_folder import (
    ADAPTER_CONFIG,
    METADATA,
    inside,
    is_checkpoint,
    parts,
    sha256,
    sha256_of_parts,
)
from spectra.inputs.distributed_checkpoint import UnexpectedObject, read_distributed
from spectra.inputs.foreign_formats import RESAVE, folders, formats
from spectra.inputs.pickles import find_defect
from spectra.inputs.safetensors_file import Damaged, read_safetensors
from spectra.inputs.spec import SHORT, input_error
from spectra.inputs.state_dict import some
from spectra.quoting import quoted

OPTION = "`checkpoint`"
WEIGHTS_ONLY = "save only its weights"  # the way out of a file that could run code
HELD = 2**28  # bytes of a file that is read into memory whole; a larger one is watched for changes
# Files in a folder of weights that are not a whole model: shards, and other files of Hugging Face's Trainer.
NO_WHOLE_MODEL = re.compile(r"-\d+-of-\d+\.|optim|scheduler|scaler|rng_state|training_args")


class DiscardedObject:
    """A stand-in for an object saved with the weights, which ignores its arguments and state."""

    def __new__(cls, *_args: Any) -> "DiscardedObject":
        return object.__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class NumPyArray(DiscardedObject):
    """A stand-in for an array, a class of its own because messages name the class."""


def _plain_dict(*_factory: Any) -> dict:
    return {}


# The real classes are less safe: a forged state of numpy.dtype, for example, can turn bytes into pointers.
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
NUMPY = [f"{module}.multiarray" for module in ("numpy.core", "numpy._core")]  # _core: NumPy 2
BESIDE_WEIGHTS = [
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool")),  # factories of a defaultdict
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),  # _local: Python 3.13
    *(f"{module}.scalar" for module in NUMPY),
    "numpy.dtype",
    "numpy.ndarray",
]
STAND_INS = [
    (_plain_dict, "collections.defaultdict"),
    *((NumPyArray, f"{module}._reconstruct") for module in NUMPY),
    *((DiscardedObject, name) for name in BESIDE_WEIGHTS),
]
# Packages with objects that Lightning and Hydra save in hyper-parameters and callbacks.
PACKAGES = (
    *("lightning.", "lightning_fabric.", "pytorch_lightning.", "torchmetrics.", "omegaconf."),
    *("datetime.", "enum.", "functools.", "typing."),
)


def read_checkpoint(path: str | Path) -> tuple[Any, str]:
    """Read a file or folder of weights, and return its content and its SHA-256.

    The content is the saved object for a torch file, a mapping from names to tensors for safetensors and an index, and
    the saved mapping for a folder of torch.distributed.checkpoint. The SHA-256 of several files is that of the lines
    that `sha256sum INDEX SHARD ...` writes in their folder, shards sorted.

    Raises:
        SpectraError: the file or a shard cannot be read, holds code, or has another format.
    """
    file = Path(path)
    try:
        if file.is_dir():
            file = weights_in(file)
        if file.is_dir():
            return _read_folder(file)
        if text := formats(file):
            raise input_error(OPTION, path, text)
        return _read_index(file) if file.suffix == ".json" else _read_tensors(file)
    except FileNotFoundError:
        raise input_error(OPTION, path, "no such file; check the path") from None
    except OSError as error:
        reason = error.strerror or describe(error)
        raise input_error(OPTION, path, f"{reason}; check the path and its permissions") from error


def weights_in(folder: Path) -> Path:
    """Find the file or folder of weights in a named folder. Raises SpectraError where it is not unique, and OSError."""
    found = inside(folder)
    if len(found) == 1 and found[0].name != ADAPTER_CONFIG:
        return found[0]
    if len(found) > 1:
        names = [str(path.relative_to(folder)) for path in found]
        raise input_error(OPTION, folder, f"it holds {some(names)}; name one of them, such as {found[0]}")
    if text := folders(folder):
        raise input_error(OPTION, folder, text)
    raise input_error(OPTION, folder, f"it is a folder; {_way_in(folder)}")


def _read_folder(folder: Path) -> tuple[Any, str]:
    """Read a folder of torch.distributed.checkpoint. Raises SpectraError, and OSError."""
    try:
        return read_distributed(folder)
    except UnexpectedObject as error:
        text = f"its {METADATA} holds {error}, which could run code, so it was not run; save it again"
        raise input_error(OPTION, folder, text) from None
    except Damaged as error:
        raise input_error(OPTION, folder, f"it is cut off or damaged: {error}; copy or save it again") from None


def read_entries(path: str | Path) -> Any:
    """Read a torch file lazily, to look at other entries than the weights.

    An archive is mapped into memory, so that tensors are read only when they are used. Files of the old format are read
    completely.

    Raises:
        SpectraError: as `read_checkpoint` does.
    """
    file = Path(path)
    try:
        with open_regular(file) as opened:
            if zipfile.is_zipfile(opened):
                return _load(opened, os.fstat(opened.fileno()).st_size, mapped=file)
    except Exception:  # reading the whole file reports it
        pass
    return read_checkpoint(path)[0]


def _way_in(folder: Path) -> str:
    """Say which file in a folder to name: an index of shards, or a whole model."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    suffixes = tuple(suffix for format in FORMATS for suffix in format.suffixes)
    weights = [name for name in names if name.endswith(suffixes) and not NO_WHOLE_MODEL.search(name)]
    fitting = [name for name in names if name.endswith(".index.json")] + weights
    if len(fitting) == 1:
        return f"name the file in it: {folder / fitting[0]}"
    if fitting:
        return f"name one of the files in it: {some(fitting)}"
    below = sorted(path.name for path in folder.iterdir() if is_checkpoint(path))
    return f"name one of the folders in it: {some(below)}" if below else "name a file of weights"


def _read_tensors(file: Path) -> tuple[Any, str]:
    """Read one file, and return its content and the SHA-256 of the same bytes; it is opened only once."""
    with open_regular(file) as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise input_error(OPTION, file, "the file is empty; copy or save it again")
        try:
            found = _format_of(file).read(opened)
        except OSError:
            raise
        except Exception as error:
            # `from None`, because torch's own message advises the user to trust the file.
            raise input_error(OPTION, file, _unreadable(opened, error)) from None
    if found is None:
        raise input_error(OPTION, file, "it changed while it was read; wait until it is complete, and try again")
    return found


def _read_torch(opened: BufferedReader) -> tuple[Any, str] | None:
    """Read a file of torch.save and its SHA-256; None where the file has changed meanwhile."""
    before = os.fstat(opened.fileno())
    held = io.BytesIO(opened.read()) if before.st_size <= HELD else opened
    content = _load(held, before.st_size)
    held.seek(0)
    digest = hashlib.file_digest(held, "sha256").hexdigest()
    after = os.fstat(opened.fileno())
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    return None if held is opened and changed else (content, digest)


@dataclass(frozen=True)
class Format:
    """A file format of weights."""

    suffixes: tuple[str, ...]
    read: Callable[[BufferedReader], tuple[Any, str] | None]  # content and SHA-256; None where it changed meanwhile


FORMATS = (Format((".safetensors",), read_safetensors), Format((".pt", ".pth", ".ckpt", ".bin"), _read_torch))


def _format_of(file: Path) -> Format:
    """Return the format of a file from its suffix; any other suffix is read as a torch file."""
    return next((format for format in FORMATS if file.suffix in format.suffixes), FORMATS[-1])


def _load(held: IO[bytes], size: int, mapped: Path | None = None) -> Any:
    if text := find_defect(held, size):
        raise Damaged(text)
    with warnings.catch_warnings(action="ignore"), only_globals(STAND_INS):
        torch.serialization.add_safe_globals(_of_packages(held))
        held.seek(0)
        return torch.load(mapped or held, map_location="cpu", weights_only=True, mmap=mapped is not None)


@contextmanager
def only_globals(allowed: list[Any]) -> Iterator[None]:
    """Allow torch's reader only these objects inside this context, whatever other packages have allowed it.

    If two objects had the same name, such as the collections.defaultdict that torch_geometric adds, either could win.
    """
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _of_packages(file: IO[bytes]) -> list[Any]:
    """Return stand-ins for the classes of known packages that the file names; their modules are not imported."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not a zip file, or a damaged one, which reading it reports
        return []
    return [(DiscardedObject, name) for name in named if name.startswith(PACKAGES)]


def _unreadable(file: IO[bytes], error: Exception) -> str:
    """Say why the file was refused, and what to do."""
    file.seek(0)
    head = file.read(512)
    refused = f"which could run code, so it was not run; {WEIGHTS_ONLY}, where it was made: {RESAVE}"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {found[1]}, {refused}"
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, {refused}; or give it as `model`"
    if isinstance(error, pickle.UnpicklingError) and head.startswith((b"PK", b"\x80")):
        return f"it holds more than tensors that torch.save wrote, {refused}"
    if head.isascii() and "".join(head.decode().split()).isprintable():
        return f"it is a text file, not a checkpoint; name a file that {RESAVE} wrote"
    if isinstance(error, Damaged):
        return f"it is cut off or damaged: {error}; copy it again, or save it again with {RESAVE}"
    return f"it is cut off, damaged, or not a checkpoint; copy it again, or save it again with {RESAVE}"


def _read_index(index: Path) -> tuple[dict[str, Tensor], str]:
    """Read all tensors that an index names from the shards in its folder."""
    written = read_bounded(index, WRITTEN_BY_US)
    shards = _shards(index, written)
    if absent := [name for name in shards if not (index.parent / name).exists()]:
        raise input_error(OPTION, index, f"its shards {some(absent)} are missing; copy all shards into its folder")
    places = {name: shard for shard, names in shards.items() for name in names}
    twice: dict[str, str] = {}
    tensors, digests = {}, {index.name: hashlib.sha256(written).hexdigest()}
    for shard, names in shards.items():
        content, digests[shard] = _read_tensors(index.parent / shard)
        held = content if isinstance(content, dict) else {}
        if absent := [name for name in names if name not in held]:
            text = f"its shard {shard} lacks {some(absent)}; copy the index and its shards again"
            raise input_error(OPTION, index, text)
        tensors.update((name, held[name]) for name in names)
        twice |= {name: shard for name in held if places.get(name, shard) != shard}
    for name, shard in twice.items():
        text = f"{quoted(name, SHORT)} is in shard {shard}, but the index says {places[name]}; copy all files again"
        raise input_error(OPTION, index, text)
    return tensors, sha256_of_parts(digests)


def digest_of(path: Path) -> str:
    """Compute the SHA-256 of a checkpoint as results list it. Raises OSError, and SpectraError for a wrong index."""
    if path.suffix == ".json" and path.name != ADAPTER_CONFIG:
        _shards(path, read_bounded(path, WRITTEN_BY_US))
    if not (files := parts(path)):
        weights_in(path)
    if len(files) == 1:
        return sha256(files[0])
    return sha256_of_parts({file.name: sha256(file) for file in files})


def _shards(index: Path, written: bytes) -> dict[str, list[str]]:
    """Return the sorted file names of the shards in an index, each with the names of its tensors."""
    try:
        content = json.loads(written, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise input_error(OPTION, index, f"it is not valid JSON ({describe(error)}); copy it again") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not (isinstance(places, dict) and places and all(isinstance(shard, str) for shard in places.values())):
        raise input_error(
            OPTION, index, f"it is not an index of shards (it has no weight_map); {_way_in(index.parent)}"
        )
    shards: dict[str, list[str]] = {}
    for name, shard in sorted(places.items(), key=lambda place: place[1]):
        if shard in ("", ".", "..") or set(shard) & set("/\\:") or not shard.isprintable():
            text = f"its shard {shard!r} is not a file in its folder, so it was not read; name plain file names"
            raise input_error(OPTION, index, text)
        shards.setdefault(shard, []).append(name)
    return shards


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object. Raises ValueError where a name comes twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} comes twice")
        found[name] = value
    return found
