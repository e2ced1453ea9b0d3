"""The `loss` option: make a Loss from its name and options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from spectra.inputs.chance import seeded
from spectra.inputs.model import cast
from spectra.inputs.registers import LOSSES
from spectra.inputs.sources import is_place
from spectra.inputs.spec import call, check_options, input_error, parse_spec, resolve, suggest
from spectra.inputs.user_loss import MODEL, first_parameter, user_loss
from spectra.problem.losses import Loss

OPTION = "`loss`"
OWN = "name your own as file.py:function"
TRIED = {
    "reduction": "the loss is the mean over the data set, as PyTorch's; leave reduction out",
    "pos_weight": f"it takes no pos_weight; {OWN}, which may pass it to torch.nn.functional",
}


def build_loss(spec: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Loss:
    """The loss that `spec` names.

    Args:
        spec: `cross_entropy?label_smoothing=0.1&ignore_index=-1&weight=1,2,3&class_dim=-1`, `mse`, `bce_with_logits`,
            or `path/to/file.py:name` of a function of (output, target), or of (model, batch) where its first parameter
            is called model or `?signature=model` says so, an object that can be called so, or a class of such objects.
            What else follows the `?` goes to the function as keywords, or to the class. It returns values of the
            examples, or the batch's mean, or a mapping of such. Or a name that an installed package adds
            (`spectra.losses`).
        device, dtype: where a loss that is a torch.nn.Module is moved, floating tensors cast; None leaves it.

    Raises:
        SpectraError: no such loss, or it does not take these options.
    """
    name, options = parse_spec(spec, OPTION)
    if is_place(name):
        return _others(resolve(name, OPTION), name, options, device, dtype)
    if name not in LOSSES:
        raise input_error(OPTION, name, f"is no loss; {suggest(name, LOSSES)}, or {OWN}")
    LOSSES.warn_of_clash(name, OPTION)
    found = LOSSES.load(name, OPTION)
    if LOSSES.is_added(name):
        return _others(found, name, options, device, dtype)
    for key in options:
        if key in TRIED:
            raise input_error(OPTION, spec, TRIED[key])
    if name in READ:
        return found(**READ[name](spec, **options))
    if options:
        raise input_error(OPTION, spec, f"{name} takes no options; leave out ?{next(iter(options))}=, or {OWN}")
    return found()


def _others(
    found: Any, name: str, options: dict[str, Any], device: torch.device | None, dtype: torch.dtype | None
) -> Loss:
    """The loss that a user or a package has made: a function of (output, target), or an object of type `Loss`."""
    if inspect.isclass(found) and isinstance(found, Loss):  # a class has its methods
        with seeded(0):
            found, options = call(found, name, options, OPTION), {}
    if isinstance(found, Loss):
        return cast(found, device, dtype) if isinstance(found, nn.Module) else found
    signature = options.pop("signature", None) if is_place(name) else None
    function = _function(found, name, options, signature)
    if isinstance(function, nn.Module):
        function = cast(function, device, dtype)
    return user_loss(function, name, signature)


def _function(found: Any, name: str, options: dict[str, Any], signature: str | None) -> Callable[..., Any]:
    """A function of (output, target) or (model, batch), its options bound; of a class, an object made with them."""
    if options.get("reduction", "") is None:
        options = {**options, "reduction": "none"}  # a word that parse_spec reads as None
    if inspect.isclass(found):
        with seeded(0):
            found, options = call(found, name, options, OPTION), {}
    if not callable(found):
        came = type(found).__name__
        raise input_error(OPTION, name, f"expected a callable, got {came}; name a function of (output, target)")
    takes_model = signature == MODEL or first_parameter(found) == MODEL
    taken = ["model", "batch"] if takes_model else ["output", "target"]
    check_options(found.forward if isinstance(found, nn.Module) else found, name, options, OPTION, taken)
    if "sum" in (options.get("reduction"), getattr(found, "reduction", None)):
        raise input_error(OPTION, name, "reduction is sum, which would depend on the batches; make it none or mean")
    return partial(found, **options) if options else found


def _cross_entropy(
    spec: str, label_smoothing=0.0, ignore_index=-100, weight=None, class_dim=None, shift=False, **unknown
) -> dict[str, Any]:
    """The arguments of `CrossEntropy`, of what was typed."""
    if unknown:
        known = ("label_smoothing", "ignore_index", "weight", "class_dim", "shift")
        raise input_error(OPTION, spec, f"has no option {next(iter(unknown))}; {suggest(next(iter(unknown)), known)}")
    if not _is_number(label_smoothing) or not 0 <= label_smoothing <= 1:
        raise input_error(OPTION, spec, f"label_smoothing is {label_smoothing!r}; give a number from 0 to 1")
    if type(ignore_index) is not int or abs(ignore_index) >= 2**63:
        raise input_error(OPTION, spec, f"ignore_index is {ignore_index!r}; give an integer")
    if class_dim is not None and not (type(class_dim) is int and class_dim in (1, -1)):
        raise input_error(OPTION, spec, f"class_dim is {class_dim!r}; give 1, as PyTorch has it, or -1, the last")
    if type(shift) is not bool:
        raise input_error(OPTION, spec, f"shift is {shift!r}; give true or false")
    if weight is not None:
        valid = isinstance(weight, (tuple, list)) and all(_is_number(w) and w >= 0 for w in weight) and sum(weight) > 0
        if not valid:
            raise input_error(OPTION, spec, f"weight is {weight!r}; give one number >= 0 a class, as weight=1,0.5,2")
        weight = torch.tensor(weight, dtype=torch.float64)
    return {
        "class_weights": weight,
        "ignore_index": ignore_index,
        "label_smoothing": float(label_smoothing),
        "class_dim": class_dim,
        "shift": shift,
    }


READ = {"cross_entropy": _cross_entropy}  # options of losses of ours: those typed become arguments


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
