"""The `checkpoint` option: load all weights in an untrusted file into a model, or leave the model unchanged."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectra.inputs.adapter import load_adapter, stored_values
from spectra.inputs.checkpoint_file import OPTION, RESAVE, read_checkpoint
from spectra.inputs.checkpoint_folder import adapter_of
from spectra.inputs.foreign_formats import ADAPTED, ADAPTER, is_adapter, quantised
from spectra.inputs.spec import SHORT, input_error
from spectra.inputs.state_dict import (
    Match,
    ModelKeys,
    differences,
    is_state_dict,
    matches,
    some,
    state_dicts,
    tensors_of,
    versions,
)
from spectra.quoting import quoted
from spectra.wording import dtype_name

KEY_OPTION = "`checkpoint_key`"


def load_checkpoint(
    model: nn.Module, path: str | Path, key: str | None = None, *, alone: bool = True
) -> dict[str, Any]:
    """Load the weights in `path` into `model`, in place and strictly, or leave it unchanged and raise.

    A PEFT adapter is added to the model (`spectra.inputs.adapter.load_adapter`).

    Args:
        model: the model.
        path: the file or folder.
        key: selects one of several sets of weights: the dotted key of a state dict in the file, a prefix of its
            names, or both joined: `model`, `ema_model`, `state_dict.ema_model`.
        alone: whether an adapter freezes the parameters of its base model.

    Returns:
        A mapping with these entries. `path`: as given. `key`: of the state dict in the file; None for a bare one.
        `prefix`: removed from the names in the file, or None. `added`: prefix added to them, or None. `sha256`: of the
        file; for an index, of the lines that `sha256sum INDEX SHARD ...` writes in its folder, shards sorted.
        `tensors`: the number of tensors loaded. `ignored`: sorted names in the state dict outside the prefix. `dtypes`:
        sorted, of floating tensors in the file. `adapter` and `adapter_parameters`: the kind of an adapter and the
        number of its parameters; None for other weights.

    Raises:
        SpectraError: the file cannot be read, holds code, holds no state dict or several, differs from the model in
            keys, shapes or kind of number, or holds values that are not finite.
    """
    if adapter := adapter_of(Path(path)):
        if key is not None:
            raise input_error(KEY_OPTION, key, f"{path} is an adapter, which has no keys; leave {KEY_OPTION} out")
        return load_adapter(model, *adapter, alone) | {"path": str(path)}
    content, digest = read_checkpoint(path)
    states, wanted = _state_dicts(content, path), ModelKeys.of(model)
    match = _choose(states, wanted, path, key)
    stored = states[match.key]
    if is_adapter(match.names) and not is_adapter(wanted.names):
        whole = any("base_layer" in name.split(".") for name in match.names)
        raise input_error(OPTION, path, f"it is {ADAPTED if whole else ADAPTER}")
    state = OrderedDict((name, stored[written]) for written, name in match.names.items())
    if strange := quantised(name for name in state if name not in wanted.names):
        text = f"its weights are quantised ({some(strange[:1])}); name the original weights"
        raise input_error(OPTION, path, f"{text}, or save them dequantised, as floating-point numbers")
    if (known := versions(stored, match, wanted)) is not None:
        setattr(state, "_metadata", known)  # noqa: B010, as Module.state_dict does
    _load(model, state, path)
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return {
        "path": str(path),
        "key": match.key,
        "prefix": match.prefix or None,
        "added": match.added or None,
        "sha256": digest,
        "tensors": len(tensors),
        "ignored": sorted(stored.keys() - match.names.keys()),
        "dtypes": sorted({_kind(value) for value in tensors if value.is_floating_point() or value.is_complex()}),
        "adapter": None,
        "adapter_parameters": None,
    }


def read_parameters(path: str | Path, shapes: Mapping[str, Sequence[int]], key: str | None = None) -> dict[str, Tensor]:
    """Read the parameters with these names and shapes from `path`, in the order of `shapes`, without a model.

    Raises SpectraError as `load_checkpoint` does, for these parameters only.
    """
    if adapter := adapter_of(Path(path)):
        return _of_shapes(stored_values(read_checkpoint(adapter[1])[0], shapes), shapes, path)
    content, _ = read_checkpoint(path)
    states = _state_dicts(content, path)
    match = _choose(states, ModelKeys(shapes, {name: i for i, name in enumerate(shapes)}, ()), path, key)
    held = {own: states[match.key][written] for written, own in match.names.items()}
    return _of_shapes(held, shapes, path)


def _of_shapes(held: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], path: str | Path) -> dict[str, Tensor]:
    for name, shape in shapes.items():
        if not isinstance(held.get(name), Tensor) or tuple(held[name].shape) != tuple(shape):
            text = (
                f"parameter {quoted(name, SHORT)} of shape {tuple(shape)} is missing; name a checkpoint of this model"
            )
            raise input_error(OPTION, path, text)
    return {name: held[name] for name in shapes}


def _state_dicts(content: Any, path: str | Path) -> dict[str | None, Mapping]:
    """Return the state dicts in a file by their dotted keys, None for a bare one."""
    if not isinstance(content, Mapping):
        text = f"it holds an object of type {type(content).__name__}, not a state dict; save one with {RESAVE}"
        raise input_error(OPTION, path, text)
    found: dict[str | None, Mapping] = {None: content} if is_state_dict(content) else dict(state_dicts(content))
    if not found:
        holds = some([f"{name} ({type(value).__name__})" for name, value in content.items()]) or "nothing"
        raise input_error(OPTION, path, f"it has no state dict, it holds {holds}; save one with {RESAVE}")
    return found


def _choose(states: Mapping[str | None, Mapping], wanted: ModelKeys, path: str | Path, key: str | None) -> Match:
    """Choose the best match of the file with the model. Raises SpectraError where it is not unique."""
    names = {where: _named(where, state, key) for where, state in states.items()}
    found = [match for where, under in names.items() if under for match in matches(where, under, wanted)]
    if not found:
        there = [match.where for where, state in states.items() for match in matches(where, state, wanted)]
        way_out = f"choose from {some(there)}" if any(there) else f"leave {KEY_OPTION} out"
        raise input_error(KEY_OPTION, key, f"{path} has no names under this key; {way_out}")
    most = max(match.share for match in found)
    best = [match for match in found if match.share == most]
    if len(found) == 1 or (len(best) == 1 and most > 0.5):
        return best[0]
    several = some([match.where for match in (best if most > 0.5 else found)])
    kind = "several state dicts in it fit the model" if most > 0.5 else "none of its state dicts fits the model"
    raise input_error(OPTION, path, f"{kind}: {several}; choose one with {KEY_OPTION}")


def _named(where: str | None, state: Mapping, key: str | None) -> list[str]:
    """Return the names of a state dict under a key, which may be that of the state dict and a prefix of names."""
    start = f"{where}." if where else ""
    return [name for name in state if key is None or f"{start}{name}".startswith(f"{key}.")]


def _load(model: nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    """Load all of `state` into `model`, or raise and leave the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    text = "interrupted"
    try:
        text = _uncopyable(state, before) or _try_loading(model, state, before)
    finally:
        if text:
            _restore(model, before)
    if text:
        raise input_error(OPTION, path, text)


def _restore(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in before:
                value.copy_(before[name])


def _uncopyable(state: Mapping[str, Any], built: Mapping[str, Tensor]) -> str | None:
    """Describe the first tensor that torch cannot copy, or could copy only by changing its values; None if all can."""
    for name, value in state.items():
        if name not in built or not isinstance(value, Tensor):
            continue
        integers = built[name].is_floating_point() and not (value.is_floating_point() or value.is_complex())
        if integers:
            text = "perhaps quantised; save the weights dequantised, as floating-point numbers"
        elif value.is_complex() and not built[name].is_complex():
            text = "complex; check `model` and its options"
        elif value.layout is not torch.strided or value.is_meta or value.is_nested:
            kind = "nested" if value.is_nested else value.layout
            text = f"{value.device.type} and {kind}; save dense tensors that hold values"
        else:
            continue
        return f"{quoted(name, SHORT)} is {_kind(built[name])} in the model, {_kind(value)} in the checkpoint, {text}"
    return None


def _kind(value: Tensor) -> str:
    return dtype_name(value.dtype)


def _try_loading(model: nn.Module, state: Mapping[str, Any], before: dict[str, Tensor]) -> str | None:
    """Load the weights, and return a description of what is wrong with them, or None.

    Torch compares the keys, since hooks of a layer may rename old ones.
    """
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:
        wanted = model.state_dict().keys()
        missing, unexpected = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
        last = " ".join(str(error).split("\n")[-1].split())  # torch's first line only says that it failed
        text = differences(before, state, missing, unexpected) or f"loading failed with {type(error).__name__}: {last}"
        return f"{text}; check `model` and its options"
    tied = _tied(model, state)
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        return f"{differences(before, state, missing, unexpected)}; check `model` and its options"
    for name, value in model.state_dict().items():
        if name in before and not _as_finite(value, before[name]):
            shown = quoted(name, SHORT)
            return f"{shown} holds values that are not finite; use an earlier checkpoint"
    for one, two in tied.items():
        if one in state and not torch.equal(state[one].to(before[one]), state[two].to(before[one])):
            both = f"{quoted(one, SHORT)} and {quoted(two, SHORT)}"
            return f"{both} differ in the checkpoint, but are one tied tensor in the model; check `model`"
    return None


def _as_finite(loaded: Tensor, built: Tensor) -> bool:
    """Whether `loaded` is finite wherever `built` is: a buffer may hold -inf by design (causal masks)."""
    floating = loaded.is_floating_point() or loaded.is_complex()
    return not floating or bool((loaded.isfinite() | ~built.isfinite()).all())


def _tied(model: nn.Module, state: Mapping[str, Any]) -> dict[str, str]:
    """Map names in the model to the other name under which `state` has the tied tensor (safetensors keeps only one)."""
    named = tensors_of(model)
    stored = {tensor: name for name, tensor in named.items() if name in state}
    return {name: stored[tensor] for name, tensor in named.items() if stored.get(tensor, name) != name}
