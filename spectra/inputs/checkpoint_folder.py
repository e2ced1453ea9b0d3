"""Folders that hold a checkpoint: which of their files are the weights.

`inside` follows Hugging Face's names, those of its Trainer and of `save_pretrained`; `parts` are the files that the
SHA-256 of a checkpoint is made of. Nothing of a file is believed here, and no torch is loaded.
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
FSDP = "pytorch_model_fsdp*"  # the folder in a Trainer's that holds sharded weights
METADATA, SHARD = ".metadata", ".distcp"  # of torch.distributed.checkpoint
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TRAINER_STATE = "trainer_state.json"


def inside(folder: Path) -> list[Path]:
    """What a folder holds of weights by a known name: one path where that is clear, several where it is not.

    Each is a file of weights, an index of shards, the configuration of an adapter, or a folder of
    torch.distributed.checkpoint. Raises OSError.
    """
    held = {path.name for path in folder.iterdir()}
    found = [folder / name for name in (*WHOLE, ADAPTER_CONFIG) if name in held]
    if METADATA in held:
        found.append(folder)
    return found or [path for path in sorted(folder.glob(FSDP)) if (path / METADATA).is_file()]


def adapter_of(path: Path) -> tuple[Path, Path] | None:
    """The configuration and the weights of the PEFT adapter that a path names; else None.

    The path is the adapter's folder or one of these two files; a folder that holds whole weights too names none.
    """
    try:
        if path.is_dir():
            return _adapter_in(path) if inside(path) == [path / ADAPTER_CONFIG] else None
        return _adapter_in(path.parent, path.name) if path.name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) else None
    except OSError:  # whoever reads it says so
        return None


def _adapter_in(folder: Path, name: str = ADAPTER_CONFIG) -> tuple[Path, Path] | None:
    wanted = (name,) if name in ADAPTER_WEIGHTS else ADAPTER_WEIGHTS
    weights = [folder / known for known in wanted if (folder / known).exists()]
    return (folder / ADAPTER_CONFIG, weights[0]) if weights and (folder / ADAPTER_CONFIG).exists() else None


def parts(path: Path) -> list[Path]:
    """The files of which the SHA-256 of a checkpoint is made, the one that is read first at the head.

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
    """Whether a path is a folder of which one clear part is the weights."""
    try:
        return path.is_dir() and len(inside(path)) == 1
    except OSError:
        return False


def training_state(folder: Path) -> dict:
    """What Hugging Face's Trainer noted in its folder: `global_step`, `epoch`; empty where there is none."""
    try:
        content = json.loads(read_bounded(folder / TRAINER_STATE, WRITTEN_BY_US))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256(file: Path) -> str:
    """The SHA-256 of a regular file. Raises OSError."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def together(digests: Mapping[str, str]) -> str:
    """The SHA-256 of the lines that `sha256sum` writes of these files."""
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _shards(index: Path) -> list[Path]:
    """The files that an index names, none where it is no index: whoever reads it says so."""
    try:
        places = json.loads(read_bounded(index, WRITTEN_BY_US))["weight_map"].values()
        return [index.parent / Path(name).name for name in sorted(set(places))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
