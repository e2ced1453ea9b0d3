"""A user's own loss: which arguments its function takes, and which of its parts is taken alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from spectra.errors import SpectraError
from spectra.inputs.spec import suggest
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import CustomLoss, Loss, name_of
from spectra.quoting import quoted

MODEL = "model"  # the name of the first parameter of a function that takes (model, batch)
SIGNATURES = ("output", MODEL)


def takes_model(function: Callable[..., Any], name: str, signature: str | None = None) -> bool:
    """Whether a user's loss is a function of (model, batch).

    Args:
        function: the loss.
        name: the loss as messages call it.
        signature: `model` or `output`, which say what it takes; None: it takes (model, batch) where its first
            parameter is called model.

    Raises:
        SpectraError: there is no such signature.
    """
    if signature not in (None, *SIGNATURES):
        raise SpectraError(f"`loss` {name}: signature is {signature!r}; {suggest(str(signature), SIGNATURES)}")
    return signature == MODEL or (signature is None and first_parameter(function) == MODEL)


def first_parameter(function: Callable[..., Any]) -> str | None:
    """The name of a function's first parameter; None where it shows none."""
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):  # some built-ins have no signature
        return None
    return next(iter(parameters), None)


def part_of(loss: Loss, part: str | None) -> Loss:
    """The loss, of which one part is taken alone. Raises SpectraError where it is no user's loss."""
    if part is None:
        return loss
    if not isinstance(loss, CustomLoss | BatchLoss):
        raise SpectraError(
            f"`loss_part` {quoted(part)}: `loss` {name_of(loss)} has no parts; name a loss that returns a mapping, as "
            "file.py:name"
        )
    return replace(loss, part=part)
