"""The `model` option: build a network from its name, with weights drawn from a seed."""

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spectra.errors import SpectraError, describe
from spectra.inputs import programs, timm_model, transformers_model
from spectra.inputs.code_origin import names_file
from spectra.inputs.registers import MODELS
from spectra.inputs.seeding import seeded
from spectra.inputs.sources import Built, Source, forms, half_notes, is_place, source_of
from spectra.inputs.spec import call, input_error, parse_spec, resolve, suggest
from spectra.inputs.weights_only import weights_only

OPTION = "`model`"
TORCHVISION = "torchvision:"
LIGHTNING = ".load_from_checkpoint"
Module = TypeVar("Module", bound=nn.Module)


def starts_with(prefix: str) -> Callable[[str], bool]:
    """Return a function that says whether a name begins with `prefix`."""
    return lambda name: name.startswith(prefix)


def build_model(spec: str, seed: int) -> nn.Module:
    """Build the model that `spec` names, and return it without the notes of `build`."""
    return build(spec, seed).model


def build(spec: str, seed: int) -> Built:
    """Build the model that `spec` names, with random numbers drawn from `seed`.

    The global random generators are restored afterwards. The model keeps the mode (train or eval) in which it was made:
    its own `eval()` may merge weights, so weights have to be loaded first.

    Args:
        spec: `torchvision:resnet18?num_classes=10`, `timm:NAME?num_classes=10`, `transformers:CLASS?path=FOLDER`, a
            file of torch.export or TorchScript, `path/to/file.py:callable`, `package.module:callable`, or a name that
            an installed package adds (`spectra.models`); what follows the `?` becomes keyword arguments. If the name is
            that of an nn.Module object, the object is used as it is.

    Returns:
        The model, and notes on it for the record.

    Raises:
        SpectraError: no such name, building it failed, or the result is not an `nn.Module`.
    """
    name, options = parse_spec(spec, OPTION)
    with seeded(seed):
        if (source := source_of(SOURCES, name)) is None:
            raise unknown(name)
        made = source.make(name, options)
    model, notes = (made.model, made.notes) if isinstance(made, Built) else (made, ())
    if not isinstance(model, nn.Module):
        came = type(model).__name__
        raise input_error(OPTION, name, f"it returned an object of type {came}; expected a torch.nn.Module")
    model = uncompiled(model)
    refuse_uninitialised(model, name)
    outside_inference_mode(model)
    return Built(model, [*notes, *half_notes(p.dtype for p in model.parameters())])


def refuse_uninitialised(model: nn.Module, name: str) -> None:
    """Raise SpectraError where parameters or buffers have no shapes or no values yet."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        text = "its lazy layers have no shapes yet; run one batch through the model first"
        raise input_error(OPTION, name, text)
    if any(tensor.is_meta for tensor in tensors):
        raise input_error(OPTION, name, "it is on the meta device, without values; build it on the CPU")


def outside_inference_mode(model: nn.Module) -> None:
    """Replace tensors that were made under torch.inference_mode(), which have no derivatives, with ordinary copies."""
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        tables: list[dict[str, Any]] = [vars(module)[kind] for kind in ("_parameters", "_buffers")]
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor.is_inference():
                    if id(tensor) not in copies:
                        copy = tensor.clone()
                        parameter = isinstance(tensor, nn.Parameter)
                        copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if parameter else copy
                    table[name] = copies[id(tensor)]


def renormalise_embeddings(model: nn.Module) -> list[str]:
    """Apply the `max_norm` of embeddings to their rows once, switch it off, and return a note for each embedding.

    With `max_norm` on, every forward pass would change the weights in place, which has no derivative.
    """
    notes = []
    for name, module in model.named_modules():
        limit = getattr(module, "max_norm", None)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and limit is not None:
            weight, module.max_norm = module.weight.data, None
            shorter = torch.renorm(weight, module.norm_type, 0, limit)
            changed = int((shorter != weight).any(1).sum())
            weight.copy_(shorter)
            kind = f"{type(module).__name__} '{name}'"
            notes.append(
                f"{kind}: {changed} of {len(weight)} rows were cut to max_norm={limit:g}, then it was disabled"
            )
    return notes


def uncompiled(model: nn.Module) -> nn.Module:
    """Undo torch.compile on a model and on its submodules, since compiled graphs have no second derivative.

    Parameters get back the names that they had before compilation.
    """
    for module in list(model.modules()):
        if module._compiled_call_impl:  # what module.compile() leaves
            module._compiled_call_impl = None
        for name, child in module._modules.items():
            # Only the result of torch.compile(module) has this attribute; its class is slow to import.
            module._modules[name] = getattr(child, "_orig_mod", child)
    return getattr(model, "_orig_mod", model)


def cast(module: Module, device: torch.device | None, dtype: torch.dtype | None) -> Module:
    """Move a module to `device`, and cast its floating tensors to `dtype`, complex ones to the same precision.

    Module.to(dtype) would drop imaginary parts, such as those of rotary embeddings. None changes nothing.
    """

    def moved(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else dtype and dtype.to_complex() if tensor.is_complex() else None
        return tensor.to(device=device, dtype=kind)

    return module._apply(moved)


def _of_place(name: str, options: dict[str, Any]) -> Any:
    return _built(resolve(name, OPTION), name, options)


def _added(name: str, options: dict[str, Any]) -> Any:
    MODELS.warn_of_clash(name, OPTION)
    return _built(MODELS.load(name, OPTION), name, options)


def _built(found: Any, name: str, options: dict[str, Any]) -> Any:
    if not isinstance(found, nn.Module):
        try:
            with weights_only() if name.endswith(LIGHTNING) else nullcontext():
                return call(found, name, options, OPTION)
        except SpectraError as error:
            if isinstance(error.__cause__, UnpicklingError):  # torch advises to trust the file
                text = (
                    "it reads a file that holds more than weights, which could run code; give that file as `checkpoint`"
                )
                raise input_error(OPTION, name, text) from error
            raise
    if options:
        raise input_error(
            OPTION, name, "it is a module, not a function, so it takes no options; leave out what follows '?'"
        )
    return found


def pretrained_weights(spec: str) -> Any:
    """Return the torchvision weights (an enum member) that `weights=` in `spec` selects; None without it.

    Raises:
        SpectraError: no such model, or it has no such weights.
    """
    return _weights(*parse_spec(spec, OPTION))


def _weights(name: str, options: dict[str, Any]) -> Any:
    if not name.startswith(TORCHVISION):
        return None
    from torchvision import models

    short, requested = _known(name), options.get("weights")
    if "pretrained" in options:
        raise input_error(OPTION, f"{name}?pretrained", "torchvision selects weights by name; write weights=DEFAULT")
    if requested is None:
        return None
    weights = models.get_model_weights(short)
    try:
        return weights.verify(requested)
    except (KeyError, TypeError) as error:
        text = f"{short} has no weights {requested!r}; {suggest(str(requested), weights.__members__)}"
        raise input_error(OPTION, f"{name}?weights={requested}", text) from error


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    short, weights = _known(name), _weights(name, options)
    try:
        with warnings.catch_warnings(action="ignore"):  # such as GoogLeNet's, on its initial weights
            return models.get_model(short, **({**options, "weights": weights} if weights else options))
    except Exception as error:
        hint = "check what follows '?'"
        if weights or isinstance(error, OSError):  # detection and segmentation download a backbone by default
            way = "check weights=" if weights else "write ?weights_backbone=none"
            hint = f"{way}; if weights cannot be downloaded here, give the file as `checkpoint`"
        raise input_error(OPTION, name, f"building it failed with {describe(error)}; {hint}") from error


def _known(name: str) -> str:
    """Return the name of a torchvision model without its prefix. Raises SpectraError for an unknown name."""
    from torchvision import models

    short = name.removeprefix(TORCHVISION)
    if short not in models.list_models():
        text = f"torchvision has no model {short!r}; {suggest(short, models.list_models())}"
        raise input_error(OPTION, name, text)
    return short


def _file(name: str, options: dict[str, Any]) -> nn.Module:
    if os.path.isdir(name):
        raise input_error(OPTION, name, transformers_model.folder_advice(name))
    if not (Path(name).suffix or os.path.exists(name)):
        raise unknown(name)
    return programs.make(name, options)


def unknown(name: str) -> SpectraError:
    """Make the error for a name that has no known form, perhaps because a prefix is missing."""
    way_out = f"write {forms(SOURCES)}"
    with suppress(Exception):  # a torchvision of another torch raises RuntimeError
        from torchvision import models

        if name.lower() in models.list_models():
            way_out = f"did you mean {TORCHVISION}{name.lower()}?"
    return input_error(OPTION, name, f"it is not a known model; {way_out}")


SOURCES = (
    Source("torchvision:NAME", starts_with(TORCHVISION), _torchvision),
    Source("transformers:CLASS?path=FOLDER", starts_with(transformers_model.PREFIX), transformers_model.make),
    Source("timm:NAME", starts_with(timm_model.PREFIX), timm_model.make),
    Source("path/to/file.py:callable, package.module:callable", is_place, _of_place),
    Source("a name that an installed package adds", MODELS.__contains__, _added),
    Source("a saved program (torch.export, TorchScript)", names_file, _file),
)
