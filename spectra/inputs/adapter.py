"""PEFT adapters: `adapter_config.json` and its weights, put on a base model with the package `peft`.

The configuration is untrusted. Only options on the place and size of an adapter are passed on. Options that name files,
modules or models, or change the base model in another way, are dropped or refused. The weights are read by our own
reader, and nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from spectra.errors import SpectraError, describe
from spectra.files import MEBIBYTE, read_bounded
from spectra.inputs.checkpoint_file import OPTION, read_checkpoint
from spectra.inputs.checkpoint_folder import sha256_of_parts
from spectra.inputs.foreign_formats import MERGE
from spectra.inputs.spec import SHORT, input_error
from spectra.inputs.state_dict import is_state_dict, some
from spectra.quoting import quoted
from spectra.wording import dtype_name

TYPES = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "HRA", "HIRA", "DELORA", "GRALORA", "LN_TUNING")
OURS = "base_model.model."  # what peft puts before the names in a file
NAME = "default"  # the adapter's name in names of parameters
PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "feedforward_modules")
PASSED = {
    *(*PLACES, "modules_to_save", "trainable_token_indices", "target_parameters", "ensure_weight_tying"),
    *("r", "rank_pattern", "alpha_pattern", "bias", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias"),
    *("lora_alpha", "alpha", "lora_dropout", "rank_dropout", "module_dropout", "hira_dropout", "rank_dropout_scale"),
    *("use_effective_conv2d", "decompose_both", "decompose_factor", "oft_block_size", "coft", "eps", "block_share"),
    *("use_cayley_neumann", "num_cayley_neumann_terms", "apply_GS", "delora_lambda", "gralora_k", "hybrid_r"),
    *("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
}
DROPPED = {  # names of models and packages, and options of training
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "velora_config", "runtime_config", "qalora_group_size", "init_lora_weights", "init_weights"),
    *("init_ia3_weights",),
}
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")  # initialisations that change the base model


def load_adapter(model: nn.Module, config: Path, weights: Path, alone: bool = True) -> dict[str, Any]:
    """Add an adapter to a model, in place. If that fails, the model may keep parts of the adapter.

    Args:
        model: the base model, with its own weights.
        config: the file `adapter_config.json`.
        weights: the file of the adapter's tensors.
        alone: whether to freeze the parameters of the base model.

    Returns:
        The fields of `load_checkpoint`, with the type of the adapter (such as LORA) and the number of its parameters.

    Raises:
        SpectraError: `peft` is not installed, the files cannot be read, or they do not fit the model.
    """
    kind, options, written = _configuration(config)
    state, digest = _weights(weights)
    if any(hasattr(module, "peft_config") for module in model.modules()):
        text = "it is a PEFT adapter, but `model` already has one; name the base model as `model`"
        raise input_error(OPTION, config.parent, text)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peft = _peft(config.parent, kind)
    try:
        with warnings.catch_warnings(action="ignore"):
            moved, prefix, added = _placed(state, peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind], model, weights)
            _put(peft, _configured(peft, kind, options, moved, config), model, moved, weights)
    except (SpectraError, KeyboardInterrupt):
        raise
    except Exception as error:
        text = f"adding it to the model failed with {describe(error)}; check `model`, or {MERGE}"
        raise input_error(OPTION, config.parent, text) from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _stored(name) not in moved:
            parameter.requires_grad_(False)  # such as the rank of AdaLoRA, which loses its freeze in a cast by peft
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not alone:
        _release(trained, model)
    tensors = list(state.values())
    return {
        "path": "",
        "key": None,
        "prefix": prefix or None,
        "added": added or None,
        "sha256": sha256_of_parts({config.name: written, weights.name: digest}),
        "tensors": len(tensors),
        "ignored": [],
        "dtypes": sorted({dtype_name(tensor.dtype) for tensor in tensors}),
        "adapter": kind,
        "adapter_parameters": size,
    }


def stored_values(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Map the names of an adapter's parameters in a model to their values in its file, None where they are missing.

    Names in the model may have a common prefix that the names in the file lack.
    """
    held = {name.removeprefix(OURS): value for name, value in content.items()}
    kept = {name: _stored(name) for name in names}
    parts = next(iter(kept.values()), "").split(".")
    for cut in range(len(parts)):
        start = "".join(f"{part}." for part in parts[:cut])
        if all(file.startswith(start) and file.removeprefix(start) in held for file in kept.values()):
            return {name: held[file.removeprefix(start)] for name, file in kept.items()}
    return dict.fromkeys(kept)


def _stored(name: str) -> str:
    """Return the name under which peft saves a parameter, without peft's prefix."""
    kept = ".".join(part for part in name.split(".") if part not in (NAME, "modules_to_save"))
    return kept.removesuffix(".weight") if "lora_magnitude_vector" in kept else kept  # no .weight for DoRA


def _peft(folder: Path, kind: str) -> Any:
    """Import peft. Raises SpectraError where it is missing, or lacks this type of adapter."""
    try:
        with warnings.catch_warnings(action="ignore"):
            import peft
            import peft.mapping
    except ImportError as error:
        text = f"it is a PEFT adapter, which needs peft ({describe(error)}); install it with: pip install peft"
        raise input_error(OPTION, folder, text) from error
    if kind not in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
        text = f"it is a PEFT adapter of type {kind}, which peft {peft.__version__} does not have; pip install -U peft"
        raise input_error(OPTION, folder, text)
    return peft


def _release(parameters: Iterable[nn.Parameter], model: nn.Module) -> None:
    """Make the base model's parameters require gradients again, except in layers that the adapter has replaced."""
    replaced = [module for module in model.modules() if type(module).__name__ == "ModulesToSaveWrapper"]
    unused = {id(p) for module in replaced for p in cast(nn.Module, module.original_module).parameters()}
    for parameter in parameters:
        parameter.requires_grad_(id(parameter) not in unused)


def _configuration(file: Path) -> tuple[str, dict[str, Any], str]:
    """Read the type of an adapter, the options to pass on, and the SHA-256 of the file."""
    try:
        content = json.loads(written := read_bounded(file, MEBIBYTE))
    except OSError as error:
        raise input_error(
            OPTION, file, f"{error.strerror or describe(error)}; check the path and its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise input_error(OPTION, file, f"it is not valid JSON ({describe(error)}); copy it again") from error
    kind = content.get("peft_type") if isinstance(content, dict) else None
    if kind not in TYPES:
        text = f"it is a PEFT adapter of type {quoted(kind, SHORT)}; supported are {', '.join(TYPES)}; {MERGE}"
        raise input_error(OPTION, file.parent, text)
    start = str(content.get("init_lora_weights")).lower()
    if start.startswith(CHANGE_BASE):
        text = f"its init_lora_weights={quoted(start, SHORT)} has changed the base model's weights; {MERGE}"
        raise input_error(OPTION, file.parent, text)
    unknown = [name for name, value in content.items() if value and name not in PASSED | DROPPED]
    if unknown:
        text = f"its configuration has the unknown option {some(unknown)}; {MERGE}"
        raise input_error(OPTION, file.parent, text)
    passed = {name: value for name, value in content.items() if name in PASSED}
    return kind, passed, hashlib.sha256(written).hexdigest()


def _configured(peft: Any, kind: str, options: dict[str, Any], names: Iterable[str], file: Path) -> Any:
    """Make the configuration of peft; options that its version lacks are left out if they are false or empty."""
    if isinstance(options.get("target_modules"), str):  # a regular expression may never end; exact names are safe
        places = sorted(_modules(names, peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind]))
        options = {name: value for name, value in options.items() if name not in PLACES} | {"target_modules": places}
    _refuse_costly(options, file)
    configuration = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = {field.name for field in fields(configuration)}
    if lacking := [name for name, value in options.items() if value and name not in known]:
        raise input_error(OPTION, file, f"peft has no option {some(lacking)} in this version; pip install -U peft")
    passed = {name: value for name, value in options.items() if name in known}
    return configuration(**passed, inference_mode=False)


def _refuse_costly(options: Mapping[str, Any], file: Path) -> None:
    """Raise SpectraError where an option may be a regular expression that never ends to match."""
    for text in _texts(options):
        if re.search(r"\)\s*[*+{]", text) or len(re.findall(r"[*+{]", text)) > 2:
            shown = quoted(text, SHORT)
            raise input_error(OPTION, file, f"its pattern {shown} may never finish matching; list the full names")


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)


def _weights(file: Path) -> tuple[dict[str, Tensor], str]:
    content, digest = read_checkpoint(file)
    if not is_state_dict(content) or not all(isinstance(value, Tensor) for value in content.values()):
        raise input_error(OPTION, file, f"it does not hold the state dict of an adapter; {MERGE}")
    return {name.removeprefix(OURS): value for name, value in content.items()}, digest


def _modules(names: Iterable[str], start: str) -> set[str]:
    """Return the modules that an adapter changes, from names of tensors: h.0.attn for h.0.attn.lora_A.weight."""
    return {name.rpartition(f".{start}")[0] for name in names if f".{start}" in name} - {""}


def _placed(
    state: Mapping[str, Tensor], start: str, model: nn.Module, file: Path
) -> tuple[dict[str, Tensor], str, str]:
    """Return the tensors by their names in the model, the prefix removed from the names, and the prefix added."""
    wanted, paths = sorted(_modules(state, start)), {name for name, _ in model.named_modules()}
    if not wanted or paths.issuperset(wanted):
        return dict(state), "", ""
    parts = wanted[0].split(".")
    removed = [".".join(parts[:cut]) + "." for cut in range(1, len(parts))]
    added = [path.removesuffix(wanted[0]) for path in paths if path.endswith(f".{wanted[0]}")]
    ways = [(prefix, "") for prefix in removed] + [("", prefix) for prefix in added]
    fitting = [
        (prefix, more)
        for prefix, more in ways
        if all(name.startswith(prefix) and more + name.removeprefix(prefix) in paths for name in wanted)
    ]
    if len(fitting) > 1:
        text = f"it fits several parts of the model: {some(sorted(more for _, more in fitting))}; name one as `model`"
        raise input_error(OPTION, file, text)
    if not fitting:
        absent = [name for name in wanted if name not in paths]
        text = f"it adapts {some(absent)}, which the model does not have; check `model` and its options"
        raise input_error(OPTION, file, text)
    prefix, more = fitting[0]
    return {more + name.removeprefix(prefix): value for name, value in state.items()}, prefix, more


def _put(peft: Any, configuration: Any, model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Add an adapter with its values to the model, and copy other saved weights into the base model."""
    own = dict(model.state_dict(keep_vars=True))
    peft.inject_adapter_in_model(configuration, model, NAME, low_cpu_mem_usage=True)
    kind = next(tensor.dtype for tensor in own.values() if tensor.is_floating_point())
    state = {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
    for name, value in state.items():
        if value.is_complex() or not value.isfinite().all():
            text = f"{quoted(name, SHORT)} holds values that are not finite; use an earlier checkpoint"
            raise input_error(OPTION, file, text)
    adapted = peft.get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    for name in sorted(state.keys() & own.keys() - adapted.keys()):  # such as embeddings, which peft saves whole
        if state[name].shape != own[name].shape:
            shapes = f"{tuple(own[name].shape)} in the model, {tuple(state[name].shape)} in the adapter"
            raise input_error(OPTION, file, f"{quoted(name, SHORT)} is {shapes}; check `model` and its options")
        with torch.no_grad():
            own[name].copy_(state.pop(name))
    try:
        found = peft.set_peft_model_state_dict(model, state, NAME, low_cpu_mem_usage=True)
    except KeyError as error:
        raise input_error(OPTION, file, f"missing {quoted(error.args[0], SHORT)}; copy it again") from error
    except RuntimeError as error:
        last = " ".join(str(error).split("\n")[-1].split())
        raise input_error(OPTION, file, f"{last}; check `model` and its options") from error
    if found.unexpected_keys:
        raise input_error(OPTION, file, f"unexpected {some(found.unexpected_keys)}; check `model` and its options")
    if empty := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise input_error(OPTION, file, f"missing {some(empty)}; check `model` and its options")
