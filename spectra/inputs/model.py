"""`--model`: a name becomes a network in eval mode, with the weights that a seed gives it."""

import warnings
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spectra.errors import describe
from spectra.inputs.chance import seeded
from spectra.inputs.spec import call, input_error, parse_spec, resolve, suggest

OPTION = "--model"


def build_model(spec: str, seed: int) -> nn.Module:
    """The model that `spec` names, built from `seed`, in eval mode; global generators are left as they were.

    Args:
        spec: `path/to/file.py:callable`, `package.module:callable` or `torchvision:resnet18?num_classes=10`;
            what follows the `?` becomes keyword arguments. A name of a module itself is used as it is.

    Raises:
        SpectraError: no such name, building it failed, or what came out is no `nn.Module`.
    """
    name, options = parse_spec(spec, OPTION)
    with seeded(seed):
        if name.startswith("torchvision:"):
            model = _torchvision(name, options)
        elif ":" in name or name.endswith(".py"):
            model = _user(name, options)
        else:
            forms = "path/to/file.py:callable, package.module:callable or torchvision:NAME"
            raise input_error(OPTION, name, f"it names no model; write {forms}")
    if not isinstance(model, nn.Module):
        came = type(model).__name__
        raise input_error(OPTION, name, f"it gave an object of type {came}; it has to return a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        text = "its lazy layers have no shapes yet; run one batch through it before returning it"
        raise input_error(OPTION, name, text)
    return model.eval()


def _user(name: str, options: dict[str, Any]) -> Any:
    found = resolve(name, OPTION)
    if not isinstance(found, nn.Module):
        return call(found, name, options, OPTION)
    if options:
        raise input_error(OPTION, name, "it is a finished module and takes no options; leave out what follows '?'")
    return found


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    short = name.removeprefix("torchvision:")
    if short not in models.list_models():
        text = f"torchvision has no model {short!r}; {suggest(short, models.list_models())}"
        raise input_error(OPTION, name, text)
    try:
        with warnings.catch_warnings(action="ignore"):  # such as GoogLeNet's, on its initial weights
            return models.get_model(short, **options)
    except Exception as error:
        hint = "check what follows '?'"
        if options.get("weights"):
            hint = "check weights=; where they cannot be fetched, leave it out and give the file as --checkpoint"
        raise input_error(OPTION, name, f"building it failed with {describe(error)}; {hint}") from error
