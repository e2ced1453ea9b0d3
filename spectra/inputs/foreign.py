"""Recognise files and folders that hold weights in another way than state dicts, and say how to get a state dict."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from spectra.files import open_regular

RESAVE = 'torch.save(model.state_dict(), "weights.pt")'
DISTRIBUTED = (
    "a folder of torch.distributed.checkpoint; make one file of it with python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch {} weights.pt"
)
ADAPTER = (
    "a PEFT adapter, which holds no whole model; merge it where it was made, with model.merge_and_unload(), and save "
    f"that with {RESAVE}"
)
ADDED = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "ia3_l", "vera_lambda_b"}
BY_SUFFIX = {
    ".pt2": 'a program of torch.export; save its weights with torch.save(torch.export.load(file).state_dict, "w.pt")',
    ".npy": "a NumPy array; save tensors by their names in the model, with torch.save({name: tensor, ...}, file)",
    ".npz": "arrays of NumPy; make tensors of them, with torch.save({k: torch.from_numpy(v) for k, v in a.items()}, f)",
    ".gguf": f"a GGUF file, made for inference; take the weights that it was made from, and save them with {RESAVE}",
    ".onnx": f"an ONNX graph; take the model that it was made from, and save it with {RESAVE}",
    ".h5": f"an HDF5 file, as Keras writes them; load it into the PyTorch model, and save that with {RESAVE}",
    ".msgpack": f"a file of Flax; load it into the PyTorch model, and save that with {RESAVE}",
}


def formats(file: Path) -> str | None:
    """The kind of a file that is known to be no state dict, with the way out; else None.

    Raises OSError where it cannot be read.
    """
    if file.suffix == ".distcp" or file.name == ".metadata":
        return f"one part of {DISTRIBUTED.format(file.parent)}"
    suffix = file.suffix.lower()
    if suffix not in BY_SUFFIX and (kind := _archive(file)):
        suffix = kind
    return f"it is {BY_SUFFIX[suffix]}" if suffix in BY_SUFFIX else None


def folders(folder: Path) -> str | None:
    """The kind of a folder that is known to be no state dict, with the way out; else None."""
    held = {path.name for path in folder.iterdir()}
    if ".metadata" in held or any(name.endswith(".distcp") for name in held):
        return f"it is {DISTRIBUTED.format(folder)}"
    if "zero_to_fp32.py" in held or any(name.endswith(("_model_states.pt", "_optim_states.pt")) for name in held):
        return (
            "it is a folder of DeepSpeed, whose ranks hold a part each; make one file of it with python -m "
            f"deepspeed.utils.zero_to_fp32 {folder} OUT, and name that"
        )
    return f"it is {ADAPTER}" if "adapter_config.json" in held else None


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a state dict is that of a PEFT adapter, by the names that LoRA and similar methods add to layers."""
    return any(part in ADDED for name in names for part in str(name).split("."))


def _archive(file: Path) -> str | None:
    """The suffix that an archive should have, by what is in it."""
    with open_regular(file) as opened:
        if opened.read(4) == b"GGUF":
            return ".gguf"
        try:
            names = zipfile.ZipFile(opened).namelist()
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
            return None
    if names and all(name.endswith(".npy") for name in names):
        return ".npz"
    exported = ("serialized_exported_program.json", "archive_format", "models/model.json")
    return ".pt2" if any(name.endswith(exported) for name in names) else None
