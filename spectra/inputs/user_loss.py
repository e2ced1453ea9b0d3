"""A user's own loss: the arguments that its function takes, and the choice of one of its parts."""

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
        name: the name of the loss in messages.
        signature: `model` or `output`, the first parameter; None: it is read from the function.

    Raises:
        SpectraError: the signature is not valid.
    """
    if signature not in (None, *SIGNATURES):
        raise SpectraError(
            f"`loss` {name}: signature={signature!r} is not valid; {suggest(str(signature), SIGNATURES)}"
        )
    return signature == MODEL or (signature is None and first_parameter(function) == MODEL)


def first_parameter(function: Callable[..., Any]) -> str | None:
    """Return the name of a function's first parameter; None where it cannot be inspected or has no parameters."""
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):  # some built-ins have no signature
        return None
    return next(iter(parameters), None)


def part_of(loss: Loss, part: str | None) -> Loss:
    """Restrict a user's loss to one of its parts. Raises SpectraError for any other loss, which has no parts."""
    if part is None:
        return loss
    if not isinstance(loss, CustomLoss | BatchLoss):
        raise SpectraError(
            f"`loss_part` {quoted(part)}: `loss` {name_of(loss)} has no parts; name a loss that returns a mapping, as "
            "file.py:name"
        )
    return replace(loss, part=part)
