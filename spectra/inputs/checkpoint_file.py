"""Files of weights that nobody vouches for, read without running anything in them.

Torch reads its own with `weights_only=True`. What usually lies beside the weights (hyper-parameters, paths, NumPy
numbers) is not rebuilt at all: an inert stand-in takes its place. An index (`*.index.json`, as Hugging Face writes)
names the shards that lie beside it, and nothing elsewhere.
"""

import hashlib
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectra.errors import describe
from spectra.inputs.spec import input_error
from spectra.inputs.state_dict import some

OPTION = "--checkpoint"
RESAVE = 'torch.save(model.state_dict(), "weights.pt")'
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
# In a folder of weights: one shard of several, and what Hugging Face's Trainer writes beside them.
NO_WHOLE_MODEL = re.compile(r"-\d+-of-\d+\.|optim|scheduler|scaler|rng_state|training_args")


class Ignored:
    """Stands in for whatever lies beside the weights, and does nothing with what it is given."""

    def __new__(cls, *_args: Any) -> "Ignored":
        return object.__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class NumPyArray(Ignored):
    """For an array, since its class is named in errors."""


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
    """What is in the file (torch: whatever was saved, safetensors and index: names to tensors), and its SHA-256.

    The SHA-256 of an index is that of the lines `sha256sum INDEX SHARD ...` writes in its folder, shards sorted.

    Raises:
        SpectraError: the file or a shard cannot be read, holds code, or is no such file.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise input_error(OPTION, path, f"it is a folder; {_way_in(file)}")
        if not file.is_file():
            raise input_error(OPTION, path, "no such file; check the path")
        if file.suffix == ".json":
            return _read_index(file)
        return _read_tensors(file), _sha256(file)
    except OSError as error:
        raise input_error(OPTION, path, f"{describe(error)}; check the path and the rights") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _way_in(folder: Path) -> str:
    """Which file in a folder to name: an index of shards, or a whole model."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    weights = [name for name in names if name.endswith(SUFFIXES) and not NO_WHOLE_MODEL.search(name)]
    fitting = [name for name in names if name.endswith(".index.json")] + weights
    if len(fitting) == 1:
        return f"name the file in it: {folder / fitting[0]}"
    return f"name one of the files in it: {some(fitting)}" if fitting else "name a file of weights"


def _read_tensors(file: Path) -> Any:
    if file.stat().st_size == 0:
        raise input_error(OPTION, file, "the file is empty; copy or save it again")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(STAND_INS + _of_packages(file)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # From None: torch's own message advises to trust the file.
        raise input_error(OPTION, file, _unreadable(file, error)) from None


def _of_packages(file: Path) -> list[tuple[type, str]]:
    """Stand-ins for the classes of known packages that the file names; their modules are not imported."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no zip file, or a damaged one: reading it will say so
        return []
    return [(Ignored, name) for name in named if name.startswith(PACKAGES)]


def _unreadable(file: Path, error: Exception) -> str:
    """Why torch or safetensors refused the file, in our own words."""
    with file.open("rb") as opened:
        head = opened.read(512)
    refused = f"which could run code, so it was not run; re-save its weights where it was made: {RESAVE}"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {found[1]}, {refused}"
    if "TorchScript" in str(error):
        return f"it is a TorchScript program, {refused}"
    if isinstance(error, pickle.UnpicklingError) and head.startswith((b"PK", b"\x80")):
        return f"it holds more than tensors that torch.save wrote, {refused}"
    if head.isascii() and "".join(head.decode().split()).isprintable():
        return f"it is a text file, no checkpoint; name a file that {RESAVE} wrote"
    return f"it is cut off, damaged, or no checkpoint; copy it again, or save it again with {RESAVE}"


def _read_index(index: Path) -> tuple[dict[str, Tensor], str]:
    """All that an index names, from the shards beside it."""
    shards = _shards(index)
    if absent := [name for name in shards if not (index.parent / name).is_file()]:
        raise input_error(OPTION, index, f"{some(absent)} missing beside it; copy all its shards into its folder")
    tensors = {}
    for shard, names in shards.items():
        content = _read_tensors(index.parent / shard)
        held = content if isinstance(content, dict) else {}
        if absent := [name for name in names if name not in held]:
            text = f"{some(absent)} missing from its shard {shard}; copy the index and its shards again"
            raise input_error(OPTION, index, text)
        tensors.update((name, held[name]) for name in names)
    return tensors, digest_of_index(index)


def digest_of_index(index: Path) -> str:
    """The SHA-256 that `read_checkpoint` gives. Raises OSError, and SpectraError where it is no index."""
    lines = [f"{_sha256(index.parent / name)}  {name}\n" for name in (index.name, *_shards(index))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shards(index: Path) -> dict[str, list[str]]:
    """File names of the shards, sorted, to the names of the tensors in each."""
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise input_error(OPTION, index, f"it is no JSON ({describe(error)}); copy it again") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not (isinstance(places, dict) and places and all(isinstance(shard, str) for shard in places.values())):
        raise input_error(OPTION, index, f"it is no index of shards, it has no weight_map; {_way_in(index.parent)}")
    shards: dict[str, list[str]] = {}
    for name, shard in sorted(places.items(), key=lambda place: place[1]):
        if shard in ("", ".", "..") or set(shard) & set("/\\:") or not shard.isprintable():
            text = f"its shard {shard!r} is no file beside it, so it was not read; name plain file names"
            raise input_error(OPTION, index, text)
        shards.setdefault(shard, []).append(name)
    return shards
