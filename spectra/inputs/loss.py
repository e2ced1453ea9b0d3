"""The `loss` option: make a Loss from its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from spectra.inputs.chance import seeded
from spectra.inputs.loss_options import read_options
from spectra.inputs.model import cast
from spectra.inputs.registers import LOSSES
from spectra.inputs.sources import is_place
from spectra.inputs.spec import call, check_options, input_error, parse_spec, resolve, suggest
from spectra.inputs.torch_losses import is_torchs, others, recognised
from spectra.inputs.user_loss import takes_model
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.densities import DensityLoss, DrawnLoss, names_density
from spectra.problem.losses import CustomLoss, Loss

OPTION = "`loss`"
OWN = "name your own as file.py:function"


def build_loss(spec: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Loss:
    """The loss that `spec` names.

    Args:
        spec: a loss of PyTorch's with its options, as `cross_entropy?label_smoothing=0.1&ignore_index=-1&weight=1,2,3`,
            `huber?delta=0.5`, `mse?reduction=sum`; `model`, the loss that the model returns;
            or `path/to/file.py:name` of a function of (output, target), or of (model, batch) where its first parameter
            is called model or `?signature=model` says so, an object that can be called so, or a class of such objects.
            What else follows the `?` goes to the function as keywords, or to the class. It returns values of the
            examples, or the batch's mean, or a mapping of such. A function of (output) alone returns the distribution
            of the targets. Or a name that an installed package adds (`spectra.losses`).
        device, dtype: where a loss that is a torch.nn.Module is moved, floating tensors cast; None leaves it.

    Raises:
        SpectraError: no such loss, or it does not take these options.
    """
    name, options = parse_spec(spec, OPTION)
    if is_place(name):
        return _others(resolve(name, OPTION), name, options, device, dtype)
    if name not in LOSSES:
        raise input_error(OPTION, name, f"is not a loss; {suggest(name, LOSSES)}, or {OWN}")
    LOSSES.warn_of_clash(name, OPTION)
    found = LOSSES.load(name, OPTION)
    if LOSSES.is_added(name):
        return _others(found, name, options, device, dtype)
    return found(**read_options(found, spec, options))


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
    return loss_of(_function(found, name, options, signature), name, device, dtype, signature)


def _function(found: Any, name: str, options: dict[str, Any], signature: str | None) -> Callable[..., Any]:
    """A user's function, its options bound; of a class, an object made with them."""
    if options.get("reduction", "") is None:
        options = {**options, "reduction": "none"}  # a word that parse_spec reads as None
    if inspect.isclass(found):
        with seeded(0):
            found, options = call(found, name, options, OPTION), {}
    if not callable(found):
        came = type(found).__name__
        raise input_error(OPTION, name, f"expected a callable, got {came}; name a function of (output, target)")
    if not is_torchs(found):  # which may take several outputs and targets
        taken = ["output"] if names_density(found) else ["output", "target"]
        if takes_model(found, name, signature):
            taken = ["model", "batch"]
        check_options(found.forward if isinstance(found, nn.Module) else found, name, options, OPTION, taken)
    return partial(found, **options) if options else found


def loss_of(
    function: Callable[..., Any],
    name: str,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    signature: str | None = None,
) -> Loss:
    """The loss that a function or module of a user's or of PyTorch's stands for.


    One of PyTorch's becomes ours where there is such a one, which knows its distribution. A function of the output
    alone returns the distribution of the targets, and an object may have a method `draw`. One of (model, batch) is a
    BatchLoss: its first parameter is called model, or `signature` is "model". Others are a CustomLoss.
    """
    if (ours := recognised(function)) is not None:
        return ours
    bare = function.func if isinstance(function, partial) else function
    options = function.keywords if isinstance(function, partial) else {}
    reduction = options.get("reduction", getattr(bare, "reduction", "mean"))
    reduction = "sum" if reduction == "sum" else "mean"
    if isinstance(bare, nn.Module):
        bare = cast(bare, device, dtype)
        function = partial(bare, **options) if options else bare
    if is_torchs(function):
        return others(function, name, reduction)
    if takes_model(bare, name, signature):
        return BatchLoss(function, name, reduction=reduction)
    kind = DrawnLoss if hasattr(bare, "draw") else DensityLoss if names_density(bare) else CustomLoss
    return kind(function, name, reduction=reduction)
