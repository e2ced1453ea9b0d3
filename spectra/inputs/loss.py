"""The `loss` option: make a Loss from its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from spectra.inputs.loss_options import read_options
from spectra.inputs.model import cast
from spectra.inputs.registers import LOSSES
from spectra.inputs.seeding import seeded
from spectra.inputs.sources import is_place
from spectra.inputs.spec import call, check_options, input_error, parse_spec, resolve, suggest
from spectra.inputs.torch_losses import is_torchs, others, recognised
from spectra.inputs.user_loss import takes_model
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.densities import DensityLoss, SampledLoss, returns_distribution
from spectra.problem.losses import CustomLoss, Loss

OPTION = "`loss`"


def build_loss(spec: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Loss:
    """Make the loss that `spec` names.

    Args:
        spec: one of these forms:

            - a loss of PyTorch with its options: `cross_entropy?label_smoothing=0.1&ignore_index=-1&weight=1,2,3`,
              `huber?delta=0.5`, `mse?reduction=sum`;
            - `model`: the loss that the model returns;
            - `path/to/file.py:name`: a function of (output, target) that returns values of the examples, the batch's
              mean, or a mapping of such; a function of (model, batch), if its first parameter is called model or
              `?signature=model` is given; a function of (output) that returns the distribution of the targets; or a
              callable object or class of this kind. Other options become keyword arguments;
            - a name that an installed package adds (`spectra.losses`).
        device: the device to which a loss that is a torch.nn.Module is moved; None: it stays.
        dtype: the dtype to which its floating tensors are cast; None: their own.

    Raises:
        SpectraError: no such loss, or it does not take these options.
    """
    name, options = parse_spec(spec, OPTION)
    if is_place(name):
        return _from_object(resolve(name, OPTION), name, options, device, dtype)
    if name not in LOSSES:
        raise input_error(OPTION, name, f"it is not a known loss, and not file.py:name; {suggest(name, LOSSES)}")
    LOSSES.warn_of_clash(name, OPTION)
    found = LOSSES.load(name, OPTION)
    if LOSSES.is_added(name):
        return _from_object(found, name, options, device, dtype)
    return found(**read_options(found, spec, options))


def _from_object(
    found: Any, name: str, options: dict[str, Any], device: torch.device | None, dtype: torch.dtype | None
) -> Loss:
    """Make a loss of a user's or a package's object: a function of (output, target), or an object of type `Loss`."""
    if inspect.isclass(found) and isinstance(found, Loss):  # the class has the methods of the protocol
        with seeded(0):
            found, options = call(found, name, options, OPTION), {}
    if isinstance(found, Loss):
        return cast(found, device, dtype) if isinstance(found, nn.Module) else found
    signature = options.pop("signature", None) if is_place(name) else None
    return loss_of(_function(found, name, options, signature), name, device, dtype, signature)


def _function(found: Any, name: str, options: dict[str, Any], signature: str | None) -> Callable[..., Any]:
    """Bind options to a user's function, or make an object of a user's class with them."""
    if options.get("reduction", "") is None:
        options = {**options, "reduction": "none"}  # parse_spec reads the word none as None
    if inspect.isclass(found):
        with seeded(0):
            found, options = call(found, name, options, OPTION), {}
    if not callable(found):
        came = type(found).__name__
        raise input_error(OPTION, name, f"expected a callable, got {came}; name a function of (output, target)")
    if not is_torchs(found):  # losses of PyTorch may take several outputs and targets
        taken = ["output"] if returns_distribution(found) else ["output", "target"]
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
    """Convert a function or module of the user or of PyTorch to a Loss.

    A loss of PyTorch becomes ours, which knows its distribution, if there is one. A function of (output) returns the
    distribution of the targets, and becomes a DensityLoss. An object with a method `draw` becomes a DrawnLoss. A
    function of (model, batch), recognised by its first parameter `model` or by `signature="model"`, becomes a
    BatchLoss. Any other function becomes a CustomLoss.
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
    kind = SampledLoss if hasattr(bare, "draw") else DensityLoss if returns_distribution(bare) else CustomLoss
    return kind(function, name, reduction=reduction)
