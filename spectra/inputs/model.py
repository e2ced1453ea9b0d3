"""The `model` option: build a network from its name, with the weights that a seed gives it."""

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
from spectra.inputs.chance import seeded
from spectra.inputs.origin import names_file
from spectra.inputs.registers import MODELS
from spectra.inputs.sources import Built, Source, forms, half_notes, is_place, source_of
from spectra.inputs.spec import call, input_error, parse_spec, resolve, suggest
from spectra.inputs.weights_alone import weights_alone

OPTION = "`model`"
TORCHVISION = "torchvision:"
LIGHTNING = ".load_from_checkpoint"
Module = TypeVar("Module", bound=nn.Module)


def of(prefix: str) -> Callable[[str], bool]:
    """Whether a name begins with the prefix, as a function of the name."""
    return lambda name: name.startswith(prefix)


def build_model(spec: str, seed: int) -> nn.Module:
    """The model that `spec` names, as `build` makes it, without the notes."""
    return build(spec, seed).model


def build(spec: str, seed: int) -> Built:
    """The model that `spec` names, built from `seed`, with notes; global generators are left as they were.

    It is in the mode in which it was made: `eval()` of its own may merge weights, which have to be loaded first.

    Args:
        spec: `torchvision:resnet18?num_classes=10`, `timm:NAME?num_classes=10`, `transformers:CLASS?path=FOLDER`, a
            file of torch.export or TorchScript, `path/to/file.py:callable`, `package.module:callable`, or a name that
            an installed package adds (`spectra.models`); what follows the `?` becomes keyword arguments. A name of a
            module itself is used as it is.

    Raises:
        SpectraError: no such name, building it failed, or what came out is no `nn.Module`.
    """
    name, options = parse_spec(spec, OPTION)
    with seeded(seed):
        if (source := source_of(SOURCES, name)) is None:
            raise input_error(OPTION, name, f"it names no model; {_way_out(name)}")
        made = source.make(name, options)
    model, notes = (made.model, made.notes) if isinstance(made, Built) else (made, ())
    if not isinstance(model, nn.Module):
        came = type(model).__name__
        raise input_error(OPTION, name, f"it returned an object of type {came}; expected a torch.nn.Module")
    model = uncompiled(model)
    refuse_unmade(model, name)
    outside_inference_mode(model)
    return Built(model, [*notes, *half_notes(p.dtype for p in model.parameters())])


def refuse_unmade(model: nn.Module, name: str) -> None:
    """Raise SpectraError where parameters or buffers have no shapes or no values yet."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        text = "its lazy layers have no shapes yet; run one batch through it before returning it"
        raise input_error(OPTION, name, text)
    if any(tensor.is_meta for tensor in tensors):
        raise input_error(OPTION, name, "it is on the meta device, without values; build it on the CPU")


def outside_inference_mode(model: nn.Module) -> None:
    """Put ordinary tensors in place of those made under torch.inference_mode(), which have no derivatives."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: list[dict[str, Any]] = [vars(module)[kind] for kind in ("_parameters", "_buffers")]
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor.is_inference():
                    if id(tensor) not in made:
                        copy = tensor.clone()
                        parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if parameter else copy
                    table[name] = made[id(tensor)]


def renormalise_embeddings(model: nn.Module) -> list[str]:
    """Shorten rows of embeddings to their `max_norm`, as their forward passes do in place; a note for each embedding.

    From then on they are plain embeddings: at that point the loss has derivatives, and forward passes write to nothing.
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
            notes.append(f"{kind}: {changed} of {len(weight)} rows are shortened to max_norm={limit:g}, all then fixed")
    return notes


def uncompiled(model: nn.Module) -> nn.Module:
    """The model without torch.compile, whole or of parts: compiled graphs have no second derivative.

    Parameters have the names that they had before.
    """
    for module in list(model.modules()):
        if module._compiled_call_impl:  # what module.compile() leaves
            module._compiled_call_impl = None
        for name, child in module._modules.items():
            # What torch.compile(module) makes has it; the type of that is in a module slow to import.
            module._modules[name] = getattr(child, "_orig_mod", child)
    return getattr(model, "_orig_mod", model)


def cast(module: Module, device: torch.device | None, dtype: torch.dtype | None) -> Module:
    """The module on the device, floating tensors in the dtype, complex ones in that of the same precision.

    Module.to(dtype) would drop their imaginary parts (rotary embeddings are such buffers). None leaves as it is.
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
            with weights_alone() if name.endswith(LIGHTNING) else nullcontext():
                return call(found, name, options, OPTION)
        except SpectraError as error:
            if isinstance(error.__cause__, UnpicklingError):  # torch advises to trust the file
                text = "it reads a file that holds more than weights, which could run code; give that as `checkpoint`"
                raise input_error(OPTION, name, text) from error
            raise
    if options:
        raise input_error(OPTION, name, "it is a finished module and takes no options; leave out what follows '?'")
    return found


def pretrained_weights(spec: str) -> Any:
    """The torchvision weights that `spec` asks for by `weights=`, a member of their enum, or None.

    Raises:
        SpectraError: no such model, or it has no such weights.
    """
    return _weights(*parse_spec(spec, OPTION))


def _weights(name: str, options: dict[str, Any]) -> Any:
    if not name.startswith(TORCHVISION):
        return None
    from torchvision import models

    short, asked = _known(name), options.get("weights")
    if "pretrained" in options:
        raise input_error(OPTION, f"{name}?pretrained", "torchvision asks for weights by name; write weights=DEFAULT")
    if asked is None:
        return None
    weights = models.get_model_weights(short)
    try:
        return weights.verify(asked)
    except (KeyError, TypeError) as error:
        text = f"{short} has no weights {asked!r}; {suggest(str(asked), weights.__members__)}"
        raise input_error(OPTION, f"{name}?weights={asked}", text) from error


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    short, weights = _known(name), _weights(name, options)
    try:
        with warnings.catch_warnings(action="ignore"):  # such as GoogLeNet's, on its initial weights
            return models.get_model(short, **({**options, "weights": weights} if weights else options))
    except Exception as error:
        hint = "check what follows '?'"
        if weights or isinstance(error, OSError):  # detection and segmentation fetch a backbone unasked
            fetched = "check weights=" if weights else "write ?weights_backbone=none"
            hint = f"{fetched}; where weights cannot be fetched, give the file as `checkpoint`"
        raise input_error(OPTION, name, f"building it failed with {describe(error)}; {hint}") from error


def _known(name: str) -> str:
    """The name of a model without its prefix."""
    from torchvision import models

    short = name.removeprefix(TORCHVISION)
    if short not in models.list_models():
        text = f"torchvision has no model {short!r}; {suggest(short, models.list_models())}"
        raise input_error(OPTION, name, text)
    return short


def _file(name: str, options: dict[str, Any]) -> nn.Module:
    if os.path.isdir(name):
        raise input_error(OPTION, name, transformers_model.told_of_folder(name))
    if not (Path(name).suffix or os.path.exists(name)):
        raise input_error(OPTION, name, f"it names no model; {_way_out(name)}")
    return programs.make(name, options)


def _way_out(name: str) -> str:
    """What to write in place of a name of no model: `torchvision:` before it, where torchvision has that name."""
    with suppress(ImportError):
        from torchvision import models

        if name.lower() in models.list_models():
            return f"did you mean {TORCHVISION}{name.lower()}?"
    return f"write {forms(SOURCES)}"


SOURCES = (
    Source("torchvision:NAME", of(TORCHVISION), _torchvision),
    Source("transformers:CLASS?path=FOLDER", of(transformers_model.PREFIX), transformers_model.make),
    Source("timm:NAME", of(timm_model.PREFIX), timm_model.make),
    Source("path/to/file.py:callable or package.module:callable", is_place, _of_place),
    Source("a name that an installed package adds", MODELS.__contains__, _added),
    Source("a file of torch.export or TorchScript", names_file, _file),
)
