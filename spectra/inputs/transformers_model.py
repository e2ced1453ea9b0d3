"""Build models of the package transformers from a folder (`transformers:CLASS?path=FOLDER`) or from options.

A folder is untrusted data, as a checkpoint is. Its config.json is read as JSON, its weights by `read_checkpoint`, and
both are passed to transformers. Code in the folder (`auto_map`) is never imported, and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from spectra.errors import SpectraError, describe
from spectra.files import WRITTEN_BY_US, read_bounded
from spectra.inputs.checkpoint_file import read_checkpoint
from spectra.inputs.sources import Built
from spectra.inputs.spec import input_error, suggest
from spectra.inputs.state_dict import some
from spectra.inputs.weights_only import weights_only
from spectra.quoting import foreign, quoted
from spectra.wording import counted, dtype_name

OPTION = "`model`"
PREFIX = "transformers:"
INSTALL = "the package transformers is not installed; install it with pip install transformers"
DOWNLOAD = "models are not downloaded here: run `hf download {} --local-dir FOLDER`, and write {}?path=FOLDER"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")
DIGITS = 12
ATTENTION = ("eager", "sdpa")  # the others have no second derivative, or are downloaded
# Entries of a config.json that would run, download or rearrange something while the model is built.
LEFT_OUT = {"auto_map", "attn_implementation", "experts_implementation", "fusion_config", "distributed_config"}


def make(name: str, options: dict[str, Any]) -> Built:
    """Build a model of transformers with the weights of a local folder, or with random weights.

    Args:
        name: `transformers:CLASS`, where CLASS is an `Auto...` class or an architecture.
        options: `path`, the folder; the others are values of the configuration. For an `Auto...` class without a
            folder, `model_type` is the name of the architecture, such as `gpt2`.

    Returns:
        The model, and notes on its weights.

    Raises:
        SpectraError: no such class, folder or value, or the weights do not fit the class.
    """
    options = dict(options)
    with quiet(name), weights_only():  # timm architectures read files that a configuration may name
        kind = _class(name)
        if "trust_remote_code" in options:
            text = "code in a folder of weights is not run; name its class as file.py:Class"
            raise input_error(OPTION, f"{name}?trust_remote_code", text)
        path = options.pop("path", None)
        folder = None if path is None else _folder(name, str(path))
        config: Any = None
        try:
            config = _configuration(name, kind, folder, options)
            if folder and (file := _weights(name, folder)):
                return _loaded(name, kind, config, file)
            model = kind.from_config(config, dtype=torch.float32) if _is_auto(kind) else kind(config)
        except SpectraError:
            raise
        except Exception as error:
            text = f"building it failed with {describe(error)}; check what follows '?'"
            if _is_auto(kind) and "Unrecognized configuration class" in str(error):
                auto = foreign(name.removeprefix(PREFIX))
                text = f"{auto} has no class for model_type {foreign(config.model_type)}; write another one"
                if config.architectures:
                    saved = some([str(one) for one in config.architectures])
                    text = f"its weights are of {saved}; write that class in place of {auto}"
            if isinstance(error, UnpicklingError):  # torch advises to trust the file
                text = f"its {CONFIG} names a file that holds more than weights, which could run code; take that out"
            raise input_error(OPTION, name, text) from error
    return Built(model, [f"weights are random, from the seed: {foreign(folder)} holds none"] if folder else [])


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Disable progress bars, messages, warnings and downloads of transformers inside this context.

    Raises SpectraError where transformers is not installed.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            from huggingface_hub import constants
            from transformers.utils import logging
        except ImportError as error:
            raise input_error(OPTION, name, INSTALL) from error
        level, bars, offline = logging.get_verbosity(), logging.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE
        try:
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            constants.HF_HUB_OFFLINE = True
            yield
        finally:
            constants.HF_HUB_OFFLINE = offline
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _class(name: str) -> Any:
    import transformers

    short = name.removeprefix(PREFIX)
    found = getattr(transformers, short, None) if short.isidentifier() else None
    if _is_auto(found) or (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return found
    if os.path.isdir(short):
        raise input_error(OPTION, name, folder_advice(short))
    if "/" in short or (found is None and short.islower()):
        raise input_error(OPTION, name, DOWNLOAD.format(foreign(short), f"{PREFIX}AutoModel"))
    known = [one for one in dir(transformers) if one.startswith("AutoModel") or "For" in one or one.endswith("Model")]
    raise input_error(OPTION, name, f"transformers has no model {foreign(short)}; {suggest(short, known)}")


def folder_advice(path: str) -> str:
    """Say how to write a folder that is given as a model, with the class that its configuration names."""
    try:
        saved = json.loads(read_bounded(Path(path, CONFIG), WRITTEN_BY_US))["architectures"][0]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return f"it is a folder; if transformers wrote it, write {PREFIX}AutoModel?path={quoted(path)}"
    return f"it is a folder; write {PREFIX}{quoted(saved)}?path={quoted(path)}"


def _is_auto(kind: Any) -> bool:
    """Whether a class is one of the `AutoModel...` classes, which choose the architecture from the configuration."""
    return isinstance(kind, type) and hasattr(kind, "_model_mapping") and hasattr(kind, "from_config")


def _folder(name: str, path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        kind = "it is a file" if folder.is_file() else "there is no such folder here"
        raise input_error(OPTION, f"{name}?path={path}", f"{kind}; {DOWNLOAD.format(foreign(path), name)}")
    if (folder / "adapter_config.json").exists() and not (folder / CONFIG).exists():
        text = "it is a PEFT adapter; name the folder of its base model as path, and the adapter as `checkpoint`"
        raise input_error(OPTION, f"{name}?path={path}", text)
    return folder


def _configuration(name: str, kind: Any, folder: Path | None, options: dict[str, Any]) -> Any:
    """Make the configuration from the folder's, changed by the options, or from the options only."""
    content = _content(name, folder) if folder else {}
    attention = options.pop("attn_implementation", None)
    if attention not in (None, *ATTENTION):
        text = f"cannot be differentiated twice; choose {' or '.join(ATTENTION)}"
        raise input_error(OPTION, f"{name}?attn_implementation={attention}", text)
    made_by = _config_class(name, kind, content or options)
    if folder:
        config = made_by.from_dict(_plain(content))
        _check_names(name, config, options)
        for key, value in options.items():
            setattr(config, key, value)
    else:
        options = {key: value for key, value in options.items() if key != "model_type"}
        _check_names(name, made_by, options)
        config = made_by(**options)
    for part in _parts(config):
        part.use_cache = False
    if attention:
        config._attn_implementation = attention
    if hasattr(config, "_experts_implementation"):  # since 5.0
        config._experts_implementation = "eager"  # the default, grouped_mm, takes no float64
    return config


def _content(name: str, folder: Path) -> dict[str, Any]:
    """Read config.json."""
    try:
        content = json.loads(read_bounded(folder / CONFIG, WRITTEN_BY_US))
    except FileNotFoundError:
        text = f"it has no {CONFIG}; name a folder that model.save_pretrained(folder) wrote"
        raise input_error(OPTION, f"{name}?path={folder}", text) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or describe(error)
        raise input_error(OPTION, folder / CONFIG, f"{reason}; copy it again") from error
    if not isinstance(content, dict):
        raise input_error(OPTION, folder / CONFIG, "it is not a configuration; copy it again")
    if "quantization_config" in content:
        text = "its weights are quantised, and integers have no derivative; name the model from before quantisation"
        raise input_error(OPTION, f"{name}?path={folder}", text)
    return content


def _plain(content: Any) -> Any:
    """Remove the entries of a configuration that would run, download or rearrange something."""
    if isinstance(content, dict):
        if content.keys() == {"__float__"}:  # how transformers writes inf and nan
            return float(content["__float__"])
        return {k: _plain(v) for k, v in content.items() if not (str(k).startswith("_") or k in LEFT_OUT)}
    return [_plain(item) for item in content] if isinstance(content, list) else content


def _config_class(name: str, kind: Any, content: Mapping[str, Any]) -> Any:
    """Return the class of the configuration: that of the architecture, or the one that `model_type` names."""
    from transformers import CONFIG_MAPPING

    model_type = content.get("model_type")
    if not _is_auto(kind):
        own = kind.config_class
        if own is None:
            raise input_error(OPTION, name, "it is an abstract base class; name an architecture, or an Auto class")
        if model_type not in (None, own.model_type):
            saved = some([str(one) for one in content.get("architectures") or [model_type]])
            text = f"its model_type is {own.model_type}, but the weights are of {saved}; name that class"
            raise input_error(OPTION, name, text)
        return own
    if model_type is None:
        text = "the architecture is missing; write ?model_type=gpt2 (or another one), or ?path=FOLDER"
        raise input_error(OPTION, name, text)
    if model_type not in CONFIG_MAPPING:
        way_out = suggest(str(model_type), CONFIG_MAPPING.keys())
        if "auto_map" in content:
            way_out = "the code in the folder is not run; name its class as file.py:Class"
        raise input_error(OPTION, name, f"transformers has no model_type {foreign(model_type)}; {way_out}")
    return CONFIG_MAPPING[model_type]


def _check_names(name: str, config: Any, options: Mapping[str, Any]) -> None:
    """Raise SpectraError for an option that the configuration, or its class, does not have."""
    if isinstance(config, type):
        try:
            config = config()
        except Exception:  # a configuration composed of others has no default
            return
    known = {*config.to_dict(), *config.attribute_map, "num_labels", "return_dict"}
    for key in options:
        if key not in known or key.startswith("_") or key in LEFT_OUT:
            raise input_error(OPTION, f"{name}?{key}", f"its configuration has no {key}; {suggest(key, known)}")


def _parts(config: Any) -> Iterator[Any]:
    """Yield a configuration, and the configurations nested in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, type(config).__mro__[-2]) and hasattr(value, "to_dict"):
            yield from _parts(value)


def _weights(name: str, folder: Path) -> Path | None:
    """Find the file of weights in a folder, or the index of its shards; None where the folder has no weights."""
    for file in WEIGHTS:
        if (folder / file).exists():
            return folder / file
    others = sorted(file.name for file in folder.iterdir() if file.name.endswith(OTHER_WEIGHTS))
    if others:
        text = f"it holds {some(others)}, but none of {', '.join(WEIGHTS)}; save the model with save_pretrained(folder)"
        raise input_error(OPTION, f"{name}?path={folder}", text)
    return None


def _loaded(name: str, kind: Any, config: Any, file: Path) -> Built:
    """Build the model with the weights of a file. Raises SpectraError where a parameter is missing from the file."""
    state, digest = _state(file)
    stored = {value.dtype for value in state.values() if value.is_floating_point()}
    if any(dtype.itemsize < 2 for dtype in stored):
        raise input_error(OPTION, file, "its weights are quantised; name the model from before quantisation")
    if _is_auto(kind):
        with torch.device("meta"):
            kind = type(kind.from_config(config))
    model, loading_info = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float64 if torch.float64 in stored else torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # _refuse_random reports them
        local_files_only=True,
    )
    _refuse_random(name, file, model, loading_info, getattr(config, "architectures", None))
    kinds = ", ".join(sorted(dtype_name(dtype) for dtype in stored))
    notes = [f"weights are those of {foreign(file)} ({kinds}; SHA-256 {digest[:DIGITS]}...)"]
    if unused := sorted(map(str, loading_info["unexpected_keys"])):
        notes.append(f"{counted(len(unused), 'tensor')} of {foreign(file)} not used: {some(unused)}")
    return Built(model, notes)


def _state(file: Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors in a file or its shards, and the SHA-256."""
    try:
        content, digest = read_checkpoint(file)
    except SpectraError as error:
        raise SpectraError(str(error).replace("`checkpoint`", OPTION, 1)) from error
    if not (isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())):
        raise input_error(OPTION, file, "it is not a state dict; save the model with model.save_pretrained(folder)")
    return dict(content), digest


def _refuse_random(name: str, file: Path, model: nn.Module, loading_info: Mapping[str, Any], saved: Any) -> None:
    """Raise SpectraError where weights are missing from the file, or have other shapes: they would be random."""
    mismatched = sorted(loading_info["mismatched_keys"])
    shapes = [f"{key} {tuple(there)} instead of {tuple(here)}" for key, there, here in mismatched]
    missing = sorted(map(str, loading_info["missing_keys"]))
    if not (shapes or missing):
        return
    wrong = f"{some(shapes)} in" if shapes else f"{some(missing)} missing from"
    own = type(model).__name__
    way_out = "check what follows '?'"
    if isinstance(saved, list) and saved and own not in saved and not shapes:
        way_out = f"it was saved from {some([str(one) for one in saved])}; name that class"
    raise input_error(OPTION, name, f"{wrong} {foreign(file)}, so these weights would be random; {way_out}")
