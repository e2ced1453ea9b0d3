"""Find the files of weights in a folder that holds a checkpoint.

`inside` follows the file names of Hugging Face's Trainer and `save_pretrained`; `parts` lists the files that the
SHA-256 of a checkpoint covers. Files are untrusted, and torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from spectra.files import WRITTEN_BY_US, open_regular, read_bounded

WHOLE = tuple(
    f"{stem}{ending}"
    for stem in ("model", "diffusion_pytorch_model", "pytorch_model")
    for suffix in (".safetensors", ".bin")
    for ending in (suffix, f"{suffix}.index.json")
)
FSDP = "pytorch_model_fsdp*"  # the folder of sharded weights in a folder of the Trainer
METADATA, SHARD = ".metadata", ".distcp"  # files of torch.distributed.checkpoint
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TRAINER_STATE = "trainer_state.json"


def inside(folder: Path) -> list[Path]:
    """List the weights with known names in a folder; there are several where it is not clear which to read.

    Each path is a file of weights, an index of shards, the configuration of an adapter, or a folder of
    torch.distributed.checkpoint. Raises OSError.
    """
    held = {path.name for path in folder.iterdir()}
    found = [folder / name for name in (*WHOLE, ADAPTER_CONFIG) if name in held]
    if METADATA in held:
        found.append(folder)
    return found or [path for path in sorted(folder.glob(FSDP)) if (path / METADATA).is_file()]


def adapter_of(path: Path) -> tuple[Path, Path] | None:
    """Return the configuration and the weights of the PEFT adapter at a path; None where it is not an adapter.

    The path is the adapter's folder, or one of these two files. A folder that also holds whole weights is not an
    adapter.
    """
    try:
        if path.is_dir():
            return _adapter_in(path) if inside(path) == [path / ADAPTER_CONFIG] else None
        return _adapter_in(path.parent, path.name) if path.name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) else None
    except OSError:  # reading it reports that
        return None


def _adapter_in(folder: Path, name: str = ADAPTER_CONFIG) -> tuple[Path, Path] | None:
    wanted = (name,) if name in ADAPTER_WEIGHTS else ADAPTER_WEIGHTS
    weights = [folder / known for known in wanted if (folder / known).exists()]
    return (folder / ADAPTER_CONFIG, weights[0]) if weights and (folder / ADAPTER_CONFIG).exists() else None


def parts(path: Path) -> list[Path]:
    """List the files that the SHA-256 of a checkpoint covers, beginning with the one that is read first.

    Raises OSError where a folder cannot be listed.
    """
    if adapter := adapter_of(path):
        return list(adapter)
    if path.is_dir():
        found = inside(path)
        if len(found) != 1:
            return []
        if found[0].is_dir():
            return [found[0] / METADATA, *sorted(found[0].glob(f"*{SHARD}"))]
        path = found[0]
    return [path, *_shards(path)] if path.suffix == ".json" else [path]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder in which the weights are found by their name, and are unique."""
    try:
        return path.is_dir() and len(inside(path)) == 1
    except OSError:
        return False


def training_state(folder: Path) -> dict:
    """Read the state that Hugging Face's Trainer saves in its folder (`global_step`, `epoch`); empty without one."""
    try:
        content = json.loads(read_bounded(folder / TRAINER_STATE, WRITTEN_BY_US))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256(file: Path) -> str:
    """Compute the SHA-256 of a regular file. Raises OSError."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_of_parts(digests: Mapping[str, str]) -> str:
    """Compute the SHA-256 of the lines that `sha256sum` writes for these files: names and their digests."""
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names; none where it is not an index, which reading it reports."""
    try:
        places = json.loads(read_bounded(index, WRITTEN_BY_US))["weight_map"].values()
        return [index.parent / Path(name).name for name in sorted(set(places))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
