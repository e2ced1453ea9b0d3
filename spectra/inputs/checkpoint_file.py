"""Read untrusted files of weights without running anything in them.

Torch reads its own with `weights_only=True`. What usually lies beside the weights (hyper-parameters, paths, NumPy
numbers) is not rebuilt at all: an inert stand-in takes its place. An index (`*.index.json`, as Hugging Face writes)
names the shards that lie beside it, and nothing elsewhere. Of a folder that part is read which is the weights.
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
from spectra.inputs.checkpoint_folder import ADAPTER_CONFIG, METADATA, inside, is_checkpoint, parts, sha256, together
from spectra.inputs.distributed_checkpoint import Code, read_distributed
from spectra.inputs.foreign import RESAVE, folders, formats
from spectra.inputs.pickles import fault
from spectra.inputs.safetensors_file import Damaged, read_safetensors
from spectra.inputs.spec import SHORT, input_error
from spectra.inputs.state_dict import some
from spectra.quoting import quoted

OPTION = "`checkpoint`"
HELD = 2**28  # bytes of a file that is read into memory whole; a larger one is watched for changes
# In a folder of weights: one shard of several, and what Hugging Face's Trainer writes beside them.
NO_WHOLE_MODEL = re.compile(r"-\d+-of-\d+\.|optim|scheduler|scaler|rng_state|training_args")


class Ignored:
    """A stand-in for whatever lies beside the weights, which does nothing with what it is given."""

    def __new__(cls, *_args: Any) -> "Ignored":
        return object.__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class NumPyArray(Ignored):
    """A stand-in for an array, of its own class because errors name the class."""


def _plain_dict(*_factory: Any) -> dict:
    return {}


# The real classes would be less safe: a forged state of numpy.dtype, for one, can make bytes into pointers.
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
NUMPY = [f"{module}.multiarray" for module in ("numpy.core", "numpy._core")]  # _core: NumPy 2
BESIDE_WEIGHTS = [
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool")),  # of a defaultdict
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),  # _local: Python 3.13
    *(f"{module}.scalar" for module in NUMPY),
    "numpy.dtype",
    "numpy.ndarray",
]
STAND_INS = [
    (_plain_dict, "collections.defaultdict"),
    *((NumPyArray, f"{module}._reconstruct") for module in NUMPY),
    *((Ignored, name) for name in BESIDE_WEIGHTS),
]
# Whose objects Lightning and Hydra leave in hyper-parameters and callbacks.
PACKAGES = (
    *("lightning.", "lightning_fabric.", "pytorch_lightning.", "torchmetrics.", "omegaconf."),
    *("datetime.", "enum.", "functools.", "typing."),
)


def read_checkpoint(path: str | Path) -> tuple[Any, str]:
    """Read a file or folder of weights, and return its content and its SHA-256.

    The content of a torch file is whatever was saved; that of safetensors and of an index maps names to tensors; that
    of a folder of torch.distributed.checkpoint is the saved mapping. The SHA-256 of several files is that of the lines
    `sha256sum INDEX SHARD ...` writes in their folder, shards sorted.

    Raises:
        SpectraError: the file or a shard cannot be read, holds code, or is no such file.
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
        raise input_error(OPTION, path, f"{reason}; check the path and the rights") from error


def weights_in(folder: Path) -> Path:
    """The file or folder to read where a folder is named. Raises SpectraError where that is not clear, and OSError."""
    found = inside(folder)
    if len(found) == 1 and found[0].name != ADAPTER_CONFIG:
        return found[0]
    if len(found) > 1:
        names = [str(path.relative_to(folder)) for path in found]
        raise input_error(OPTION, folder, f"it holds {some(names)}; name one of them, as {found[0]}")
    if text := folders(folder):
        raise input_error(OPTION, folder, text)
    raise input_error(OPTION, folder, f"it is a folder; {_way_in(folder)}")


def _read_folder(folder: Path) -> tuple[Any, str]:
    """A folder of torch.distributed.checkpoint."""
    try:
        return read_distributed(folder)
    except Code as error:
        text = f"its {METADATA} holds {error}, which could run code, so it was not run; save it again where it was made"
        raise input_error(OPTION, folder, text) from None
    except Damaged as error:
        raise input_error(OPTION, folder, f"it is cut off or damaged: {error}; copy or save it again") from None


def read_entries(path: str | Path) -> Any:
    """Read a file of torch's lazily, to look at what lies beside the weights.

    An archive is mapped into memory, so that numbers are read only where they are looked at; files of the old format
    are read whole.

    Raises:
        SpectraError: as `read_checkpoint` does.
    """
    file = Path(path)
    try:
        with open_regular(file) as opened:
            if zipfile.is_zipfile(opened):
                return _load(opened, os.fstat(opened.fileno()).st_size, mapped=file)
    except Exception:  # whatever it is, reading the whole file says it
        pass
    return read_checkpoint(path)[0]


def _way_in(folder: Path) -> str:
    """The advice which file of a folder to name: an index of shards, or a whole model."""
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
    """What is in one file, and the SHA-256 of the very bytes that it was read from: it is opened once."""
    with open_regular(file) as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            raise input_error(OPTION, file, "the file is empty; copy or save it again")
        try:
            found = _format_of(file).read(opened)
        except OSError:
            raise
        except Exception as error:
            # From None: torch's own message advises to trust the file.
            raise input_error(OPTION, file, _unreadable(opened, error)) from None
    if found is None:
        raise input_error(OPTION, file, "it was written to while it was read; wait until it is whole, and try again")
    return found


def _read_torch(opened: BufferedReader) -> tuple[Any, str] | None:
    """A file of torch.save and its SHA-256; None where it has changed meanwhile."""
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
    """One kind of file that holds weights."""

    suffixes: tuple[str, ...]
    read: Callable[[BufferedReader], tuple[Any, str] | None]  # its content and SHA-256; None where it changed meanwhile


FORMATS = (Format((".safetensors",), read_safetensors), Format((".pt", ".pth", ".ckpt", ".bin"), _read_torch))


def _format_of(file: Path) -> Format:
    """The format of a file by its suffix; a file of another suffix is taken for torch's."""
    return next((format for format in FORMATS if file.suffix in format.suffixes), FORMATS[-1])


def _load(held: IO[bytes], size: int, mapped: Path | None = None) -> Any:
    if text := fault(held, size):
        raise Damaged(text)
    with warnings.catch_warnings(action="ignore"), only_globals(STAND_INS):
        torch.serialization.add_safe_globals(_of_packages(held))
        held.seek(0)
        return torch.load(mapped or held, map_location="cpu", weights_only=True, mmap=mapped is not None)


@contextmanager
def only_globals(allowed: list[Any]) -> Iterator[None]:
    """Allow torch's reader these objects alone inside this context, in place of what packages have allowed it.

    Of two that go by one name, as a real collections.defaultdict that torch_geometric adds, either could win.
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
    """Stand-ins for the classes of known packages that the file names; their modules are not imported."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no zip file, or a damaged one: reading it will say so
        return []
    return [(Ignored, name) for name in named if name.startswith(PACKAGES)]


def _unreadable(file: IO[bytes], error: Exception) -> str:
    """The reason why the file was refused, in our own words."""
    file.seek(0)
    head = file.read(512)
    refused = f"which could run code, so it was not run; re-save its weights where it was made: {RESAVE}"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {found[1]}, {refused}"
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, {refused}; or give it as `model`"
    if isinstance(error, pickle.UnpicklingError) and head.startswith((b"PK", b"\x80")):
        return f"it holds more than tensors that torch.save wrote, {refused}"
    if head.isascii() and "".join(head.decode().split()).isprintable():
        return f"it is a text file, no checkpoint; name a file that {RESAVE} wrote"
    if isinstance(error, Damaged):
        return f"it is cut off or damaged: {error}; copy it again, or save it again with {RESAVE}"
    return f"it is cut off, damaged, or no checkpoint; copy it again, or save it again with {RESAVE}"


def _read_index(index: Path) -> tuple[dict[str, Tensor], str]:
    """All that an index names, from the shards beside it."""
    written = read_bounded(index, WRITTEN_BY_US)
    shards = _shards(index, written)
    if absent := [name for name in shards if not (index.parent / name).exists()]:
        raise input_error(OPTION, index, f"{some(absent)} missing beside it; copy all its shards into its folder")
    places = {name: shard for shard, names in shards.items() for name in names}
    twice: dict[str, str] = {}
    tensors, digests = {}, {index.name: hashlib.sha256(written).hexdigest()}
    for shard, names in shards.items():
        content, digests[shard] = _read_tensors(index.parent / shard)
        held = content if isinstance(content, dict) else {}
        if absent := [name for name in names if name not in held]:
            text = f"{some(absent)} missing from its shard {shard}; copy the index and its shards again"
            raise input_error(OPTION, index, text)
        tensors.update((name, held[name]) for name in names)
        twice |= {name: shard for name in held if places.get(name, shard) != shard}
    for name, shard in twice.items():
        text = (
            f"{quoted(name, SHORT)} is in its shard {shard}, and by the index in {places[name]}; copy all of it again"
        )
        raise input_error(OPTION, index, text)
    return tensors, together(digests)


def digest_of(path: Path) -> str:
    """The SHA-256 that a result of a checkpoint lists. Raises OSError, and SpectraError where an index is none."""
    if path.suffix == ".json" and path.name != ADAPTER_CONFIG:
        _shards(path, read_bounded(path, WRITTEN_BY_US))
    if not (files := parts(path)):
        weights_in(path)
    if len(files) == 1:
        return sha256(files[0])
    return together({file.name: sha256(file) for file in files})


def _shards(index: Path, written: bytes) -> dict[str, list[str]]:
    """The file names of the shards, sorted, each with the names of its tensors."""
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
    """A JSON object. Raises ValueError where a name comes twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is listed twice")
        found[name] = value
    return found
