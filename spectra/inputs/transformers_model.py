"""Models of the package transformers: `transformers:CLASS?path=FOLDER`, or of a configuration made of the options.

A folder is data, as a checkpoint is: its config.json is read as JSON, its weights by `read_checkpoint`, and
transformers gets both ready made. Code that lies in it (`auto_map`) is never imported, and nothing is downloaded.
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
from spectra.inputs.weights_alone import weights_alone
from spectra.quoting import foreign, quoted
from spectra.wording import counted

OPTION = "`model`"
PREFIX = "transformers:"
INSTALL = 'the package transformers is not installed; install it with pip install "loss-spectra[transformers]"'
DOWNLOAD = "models are not downloaded: fetch it with `hf download {} --local-dir FOLDER`, and write {}?path=FOLDER"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")
DIGITS = 12
ATTENTION = ("eager", "sdpa")  # the others have no second derivative, or are fetched
# Of a config.json: what would run, fetch or rearrange something while the model is made.
LEFT_OUT = {"auto_map", "attn_implementation", "experts_implementation", "fusion_config", "distributed_config"}


def make(name: str, options: dict[str, Any]) -> Built:
    """The model of a class of transformers, with the weights of a local folder or as its configuration draws them.

    Args:
        name: `transformers:CLASS`, an `Auto...` class or an architecture.
        options: `path`, the folder; the others are values of the configuration. For an `Auto...` class without a
            folder, `model_type` is the architecture's name, as `gpt2`.

    Raises:
        SpectraError: no such class, folder or value, or weights that are not those of the class.
    """
    options = dict(options)
    with quiet(name), weights_alone():  # an architecture of timm reads files that a configuration may name
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
                saved = some([str(one) for one in config.architectures or [config.model_type]])
                text = f"its weights are of {saved}; write that class in place of {foreign(name.removeprefix(PREFIX))}"
            if isinstance(error, UnpicklingError):  # torch advises to trust the file
                text = f"its {CONFIG} names a file that holds more than weights, which could run code; take that out"
            raise input_error(OPTION, name, text) from error
    return Built(model, [f"weights are drawn by the seed: {foreign(folder)} holds none"] if folder else [])


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """A context without progress bars, messages, warnings and downloads of transformers. Raises SpectraError where it
    is not installed.
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
        raise input_error(OPTION, name, told_of_folder(short))
    if "/" in short or (found is None and short.islower()):
        raise input_error(OPTION, name, DOWNLOAD.format(foreign(short), f"{PREFIX}AutoModel"))
    known = [one for one in dir(transformers) if one.startswith("AutoModel") or "For" in one or one.endswith("Model")]
    raise input_error(OPTION, name, f"transformers has no model {foreign(short)}; {suggest(short, known)}")


def told_of_folder(path: str) -> str:
    """What a folder is that is given as a model, and how to write it: with the class that its configuration names."""
    try:
        saved = json.loads(read_bounded(Path(path, CONFIG), WRITTEN_BY_US))["architectures"][0]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return f"it is a folder; if transformers wrote it, write {PREFIX}AutoModel?path={quoted(path)}"
    return f"it is a folder; write {PREFIX}{quoted(saved)}?path={quoted(path)}"


def _is_auto(kind: Any) -> bool:
    """Whether it is one of the `AutoModel...` classes, which choose the architecture by the configuration."""
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
    """The configuration that the folder holds and the options change, or that the options make."""
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
    """What config.json holds."""
    try:
        content = json.loads(read_bounded(folder / CONFIG, WRITTEN_BY_US))
    except FileNotFoundError:
        text = f"there is no {CONFIG} in it; name a folder that model.save_pretrained(folder) wrote"
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
    """The configuration without what would run, fetch or rearrange something."""
    if isinstance(content, dict):
        if content.keys() == {"__float__"}:  # as transformers writes what JSON has no word for
            return float(content["__float__"])
        return {k: _plain(v) for k, v in content.items() if not (str(k).startswith("_") or k in LEFT_OUT)}
    return [_plain(item) for item in content] if isinstance(content, list) else content


def _config_class(name: str, kind: Any, content: Mapping[str, Any]) -> Any:
    """The class of the configuration, by `model_type`, or that of the architecture."""
    from transformers import CONFIG_MAPPING

    model_type = content.get("model_type")
    if not _is_auto(kind):
        own = kind.config_class
        if own is None:
            raise input_error(OPTION, name, "it is a base class; name an architecture, or an Auto class")
        if model_type not in (None, own.model_type):
            saved = some([str(one) for one in content.get("architectures") or [model_type]])
            raise input_error(OPTION, name, f"it is of model_type {own.model_type}, but the weights are of {saved}")
        return own
    if model_type is None:
        text = "which architecture is not said; write model_type=gpt2 or the like, or path=FOLDER"
        raise input_error(OPTION, name, text)
    if model_type not in CONFIG_MAPPING:
        way_out = suggest(str(model_type), CONFIG_MAPPING.keys())
        if "auto_map" in content:
            way_out = "its code in the folder is not run; name its class as file.py:Class"
        raise input_error(OPTION, name, f"transformers has no model_type {foreign(model_type)}; {way_out}")
    return CONFIG_MAPPING[model_type]


def _check_names(name: str, config: Any, options: Mapping[str, Any]) -> None:
    """Raise SpectraError for an option that the configuration, or its class, does not know."""
    if isinstance(config, type):
        try:
            config = config()
        except Exception:  # one that is made of others has no default
            return
    known = {*config.to_dict(), *config.attribute_map, "num_labels", "return_dict"}
    for key in options:
        if key not in known or key.startswith("_") or key in LEFT_OUT:
            raise input_error(OPTION, f"{name}?{key}", f"its configuration has no {key}; {suggest(key, known)}")


def _parts(config: Any) -> Iterator[Any]:
    """A configuration, and those in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, type(config).__mro__[-2]) and hasattr(value, "to_dict"):
            yield from _parts(value)


def _weights(name: str, folder: Path) -> Path | None:
    """The file of the weights in a folder, or the index of its shards; None where there are no weights at all."""
    for file in WEIGHTS:
        if (folder / file).exists():
            return folder / file
    others = sorted(file.name for file in folder.iterdir() if file.name.endswith(OTHER_WEIGHTS))
    if others:
        text = f"its weights have to be in {', '.join(WEIGHTS)}, and it holds {some(others)}; save them so"
        raise input_error(OPTION, f"{name}?path={folder}", text)
    return None


def _loaded(name: str, kind: Any, config: Any, file: Path) -> Built:
    """The model with the weights of a file; all of its parameters are in there, or a SpectraError names the others."""
    state, digest = _state(file)
    stored = {value.dtype for value in state.values() if value.is_floating_point()}
    if any(dtype.itemsize < 2 for dtype in stored):
        raise input_error(OPTION, file, "its weights are quantised; name the model from before quantisation")
    if _is_auto(kind):
        with torch.device("meta"):
            kind = type(kind.from_config(config))
    model, told = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float64 if torch.float64 in stored else torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told instead
        local_files_only=True,
    )
    _refuse_random(name, file, model, told, getattr(config, "architectures", None))
    kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
    notes = [f"weights are those of {foreign(file)} ({kinds}; SHA-256 {digest[:DIGITS]}...)"]
    if unused := sorted(map(str, told["unexpected_keys"])):
        notes.append(f"{counted(len(unused), 'tensor')} of {foreign(file)} not used: {some(unused)}")
    return Built(model, notes)


def _state(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file or its shards, and the SHA-256."""
    try:
        content, digest = read_checkpoint(file)
    except SpectraError as error:
        raise SpectraError(str(error).replace("`checkpoint`", OPTION, 1)) from error
    if not (isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())):
        raise input_error(OPTION, file, "it is not a state dict; save the model with model.save_pretrained(folder)")
    return dict(content), digest


def _refuse_random(name: str, file: Path, model: nn.Module, told: Mapping[str, Any], saved: Any) -> None:
    """Raise SpectraError where weights are not in the file, or of other shapes: they would be random."""
    shapes = [f"{key} {tuple(there)} instead of {tuple(here)}" for key, there, here in sorted(told["mismatched_keys"])]
    missing = sorted(map(str, told["missing_keys"]))
    if not (shapes or missing):
        return
    wrong = f"{some(shapes)} in" if shapes else f"{some(missing)} missing from"
    own = type(model).__name__
    way_out = "check what follows '?'"
    if isinstance(saved, list) and saved and own not in saved and not shapes:
        way_out = f"it was saved from {some([str(one) for one in saved])}; name that class"
    raise input_error(OPTION, name, f"{wrong} {foreign(file)}, which would be random; {way_out}")
