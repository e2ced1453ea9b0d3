"""Recognise files and folders with weights that are not state dicts, and say how to make a state dict of them."""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Iterable
from pathlib import Path

from spectra.files import open_regular, read_bounded
from spectra.inputs.checkpoint_folder import ADAPTER_CONFIG, METADATA, SHARD
from spectra.quoting import quoted

RESAVE = 'torch.save(model.state_dict(), "weights.pt")'
MERGE = f"merge it where it was made, with model.merge_and_unload(), and save that with {RESAVE}"
ADAPTER = f"a PEFT adapter without its adapter_config.json or its weights; put both into one folder, or {MERGE}"
ADAPTED = (
    "of a model with a PEFT adapter; save the adapter with model.save_pretrained(DIR) and name DIR, or merge it "
    f"with model.merge_and_unload(), and save that with {RESAVE}"
)
ADDED = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "ia3_l", "vera_lambda_b"}
# Entries that GPTQ, AWQ, bitsandbytes, compressed-tensors and float8 add to a state dict.
QUANTISED = {"qweight", "qzeros", "g_idx", "SCB", "absmax", "quant_map", "quant_state", "weight_packed"}
QUANTISED |= {"weight_scale", "weight_scale_inv", "input_scale", "weight_zero_point"}
EXPORTED = ("serialized_exported_program.json", "archive_format", "models/model.json")  # in a file of torch.export
RANKS = "it is a checkpoint of DeepSpeed, in which each rank holds one part"
DEEPSPEED_SHARD = re.compile(r"^(bf16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt$")
BY_SUFFIX = {
    ".pt2": "a program of torch.export, which is code; give it as `model`, or save its weights with "
    'torch.save(torch.export.load(file).state_dict, "w.pt")',
    ".npy": "a NumPy array; save tensors by their names in the model, with torch.save({name: tensor, ...}, file)",
    ".npz": "a file of NumPy arrays; save tensors with torch.save({k: torch.from_numpy(v) for k, v in a.items()}, f)",
    ".gguf": f"a GGUF file, made for inference; take the original PyTorch weights, and save them with {RESAVE}",
    ".onnx": f"an ONNX graph; take the original PyTorch model, and save it with {RESAVE}",
    ".h5": f"an HDF5 file, perhaps from Keras; load it into the PyTorch model, and save that with {RESAVE}",
    ".keras": f"a Keras model; load it into the PyTorch model, and save that with {RESAVE}",
    "tar": "a tar archive, such as a .nemo file; unpack it, and name the file or folder of weights in it",
    ".msgpack": f"a Flax file; load it into the PyTorch model, and save that with {RESAVE}",
}


def formats(file: Path) -> str | None:
    """Describe a file of a known format that is not a state dict, and say what to do; None for any other file.

    Raises OSError where it cannot be read.
    """
    if file.suffix == SHARD or file.name == METADATA:
        complete = (file.parent / METADATA).exists()
        way_out = f"name the folder: {file.parent}" if complete else f"copy its folder again, with {METADATA}"
        return f"it is one part of a folder of torch.distributed.checkpoint; {way_out}"
    if DEEPSPEED_SHARD.search(file.name) and "zero_pp_rank" in file.name:
        return folders(file.parent)
    suffix = file.suffix.lower()
    if suffix not in BY_SUFFIX and (kind := _archive(file)):
        suffix = kind
    return f"it is {BY_SUFFIX[suffix]}" if suffix in BY_SUFFIX else None


def folders(folder: Path) -> str | None:
    """Describe a folder of a known format that is not a state dict, and say what to do; else None. Raises OSError."""
    held = {path.name for path in folder.iterdir()}
    if any(name.endswith(SHARD) for name in held):
        return f"it is a folder of torch.distributed.checkpoint without its {METADATA}; copy it whole"
    if text := _deepspeed(folder, held):
        return text
    if "latest_checkpointed_iteration.txt" in held or any(re.fullmatch(r"mp_rank_\d+(_\d+)*", name) for name in held):
        return (
            "it is a folder of Megatron-LM, in which each rank holds one part; convert it with Megatron's "
            "tools/checkpoint/convert.py, and name the result"
        )
    if held & {"_CHECKPOINT_METADATA", "manifest.ocdbt"}:
        return f"it is a checkpoint of Orbax (JAX); load it into the PyTorch model, and save that with {RESAVE}"
    if any(re.search(r"\.data-\d+-of-\d+$", name) for name in held):
        return f"it is a checkpoint of TensorFlow; load it into the PyTorch model, and save that with {RESAVE}"
    return f"it is {ADAPTER}" if ADAPTER_CONFIG in held else None


def _deepspeed(folder: Path, held: set[str]) -> str | None:
    """Say how to convert a DeepSpeed folder, or one of its steps, to one checkpoint; None for any other folder."""
    if any(DEEPSPEED_SHARD.search(name) for name in held):
        return _conversion(folder.parent, folder.name, held)
    below = {path.name: {file.name for file in path.iterdir()} for path in folder.iterdir() if path.is_dir()}
    steps = {step: names for step, names in below.items() if any(DEEPSPEED_SHARD.search(name) for name in names)}
    if not steps:
        text = f"{RANKS}; convert it to one checkpoint with {_command(folder)}, and name OUT"
        return text if "zero_to_fp32.py" in held else None
    try:
        tag = read_bounded(folder / "latest", 1000).decode().strip()
    except (OSError, ValueError):
        tag = ""
    if tag not in steps and len(steps) > 1:
        return f"{RANKS}; its file 'latest' names none of its steps; name one of the folders in it: {_some(steps)}"
    tag = tag if tag in steps else next(iter(steps))
    return _conversion(folder, tag, steps[tag])


def _some(names: Iterable[str]) -> str:
    return ", ".join(quoted(name, 60) for name in sorted(names)[:5])


def _conversion(folder: Path, tag: str, held: set[str]) -> str:
    """Say how to convert the ranks' files in `folder/tag` to one checkpoint."""
    if any(name.endswith("_optim_states.pt") for name in held):
        return f"{RANKS}; convert it to one checkpoint with {_command(folder, '-t', tag)}, and name OUT"
    whole = [name for name in sorted(held) if name.endswith("_model_states.pt")]
    if len(whole) == 1:  # without ZeRO, one rank holds the whole model
        return f"it is a folder of DeepSpeed; name the file in it: {folder / tag / whole[0]}"
    return f"{RANKS} of a tensor-parallel model; save the whole model where it was trained, with {RESAVE}"


def _command(folder: Path, *options: str) -> str:
    return shlex.join(["python", "-m", "deepspeed.utils.zero_to_fp32", str(folder), "OUT", *options])


def is_adapter(names: Iterable[str]) -> bool:
    """Whether names belong to a PEFT adapter, judged by the parts that LoRA and similar methods add to them."""
    return any(part in ADDED for name in names for part in str(name).split("."))


def quantised(names: Iterable[str]) -> list[str]:
    """Return the names that only quantised weights have."""
    return [name for name in names if not QUANTISED.isdisjoint(str(name).split("."))]


def _archive(file: Path) -> str | None:
    """Return the suffix of an archive's format, judged by its content; None where it is unknown."""
    with open_regular(file) as opened:
        head = opened.read(512)
        if head[:4] == b"GGUF":
            return ".gguf"
        if head[257:262] == b"ustar":
            return "tar"  # not .tar: torch's own files are often called .pth.tar
        try:
            names = zipfile.ZipFile(opened).namelist()
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
            return None
    if names and all(name.endswith(".npy") for name in names):
        return ".npz"
    return ".pt2" if any(name.endswith(EXPORTED) for name in names) else None
