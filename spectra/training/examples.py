"""Convert the arguments `loss` and `batches` of `spectra.watch` to a loss and a list of batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectra.curvature.evaluation import cut_batches
from spectra.errors import SpectraError
from spectra.inputs.devices import batch_to_device
from spectra.inputs.examples import Data
from spectra.inputs.items import item_requirements
from spectra.inputs.loss import build_loss
from spectra.inputs.model_loss import recognise
from spectra.inputs.python_objects import device_and_dtype, own_data, own_loss
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import Loss
from spectra.problem.model_loss import ModelLoss

BATCH = 256  # examples in a forward pass; products choose their own batches


def examples_of(model: nn.Module, loss: Any, given: Any, seed: int) -> tuple[Any, list[Batch], str | None]:
    """Return the loss to watch, the batches of examples, and the path of the output if the model returns several.

    A loss object is not copied, since its tensors may change during training. Raises SpectraError.
    """
    place = device_and_dtype(model)
    loss = build_loss(loss, *place) if isinstance(loss, str) else loss
    objective = own_loss(loss, *place)
    batches = batches_of(model, objective, given, seed)
    if isinstance(objective, ModelLoss):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if ours := recognise(model, [batch_to_device(batch, *place) for batch in batches], trained):
            return ours.loss, ours.batches, ours.output
    return loss, batches, None


def batches_of(model: nn.Module, loss: Loss, given: Any, seed: int) -> list[Batch]:
    """Make batches of the examples: tensors are cut, and batches of a loader are kept. Raises SpectraError."""
    if isinstance(given, list) and given and all(isinstance(batch, Batch) for batch in given):
        return given
    whole = isinstance(loss, BatchLoss)  # it may compare examples
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Tensor) and not whole:
        return cut_batches(*given, torch.arange(len(given[1])), BATCH)
    try:
        examples = own_data(given, None, seed, None, item_requirements(loss, model))
    except SpectraError as error:
        raise SpectraError(str(error).replace("`data`", "`batches`")) from error
    return list(examples.cut(len(examples) if whole or not isinstance(examples, Data) else BATCH))
