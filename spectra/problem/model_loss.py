"""The loss that a model computes itself: that of transformers' models, and Lightning's `training_step`.

The model is called with a batch: a mapping gives keywords, a tuple gives positional arguments. The loss is the value
that the model returns, its entry `loss`, or the first entry or the only number of a tuple.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.model_inputs import Structured
from spectra.problem.outputs import contents, entries

STEP = "training_step"  # of Lightning's modules
BEFORE_STEP = ("on_before_batch_transfer", "on_after_batch_transfer")  # hooks that may change a batch
RETURN_LOSS = "return_loss"  # an argument of CLIP and similar models of transformers
LOGGING = ("log", "log_dict", "print")  # methods that need a trainer


def returned_loss(model: nn.Module, batch: Any) -> Any:
    """The loss that the model returns for a batch. Raises SpectraError if it returns none."""
    return loss_in(call(model, batch))


@dataclass(frozen=True)
class ModelLoss(BatchLoss):
    """The model's own loss; see `returned_loss`."""

    function: Any = returned_loss
    name: str = "model"


def call(model: nn.Module, batch: Any) -> Any:
    """Call `training_step` on a batch if the model is a LightningModule, otherwise the model itself."""
    if not is_lightning(model):
        return forward(model, {RETURN_LOSS: True, **batch} if takes_return_loss(model, batch) else batch)
    with unlogged(model):
        for hook in filter(None, (getattr(model, name, None) for name in BEFORE_STEP)):
            batch = hook(batch, 0)
        step = getattr(model, STEP)
        return step(batch, 0) if takes_index(step) else step(batch)


def takes_return_loss(model: nn.Module, batch: Any) -> bool:
    """Whether a model has an argument `return_loss`, as CLIP has, which the batch does not set."""
    if not isinstance(batch, Mapping) or RETURN_LOSS in batch:
        return False
    try:
        return RETURN_LOSS in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # TorchScript and the like have no signature
        return False


def takes_index(step: Callable[..., Any]) -> bool:
    """Whether a training step takes the index of the batch as a second argument."""
    parameters = inspect.signature(step).parameters.values()
    return len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def forward(model: nn.Module, inputs: Any) -> Any:
    """The model's output for its inputs: a mapping gives keywords, a tuple positional arguments."""
    if isinstance(inputs, Structured):
        return inputs.call(model)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def unlogged(model: nn.Module) -> Iterator[None]:
    """Replace the logging methods of a LightningModule, which need a trainer, by no-ops inside this context."""
    had = {name: vars(model)[name] for name in LOGGING if name in vars(model)}
    vars(model).update(dict.fromkeys(LOGGING, ignored))
    try:
        yield
    finally:
        for name in LOGGING:
            vars(model).pop(name, None)
        vars(model).update(had)


def ignored(*_arguments: Any, **_keywords: Any) -> None:
    """Do nothing."""


def is_lightning(model: nn.Module) -> bool:
    """Whether the model is a LightningModule, by the name of its class, since Lightning is slow to import."""
    return any(kind.__name__ == "LightningModule" for kind in type(model).__mro__) and hasattr(model, STEP)


def loss_in(returned: Any) -> Any:
    """The loss in what a model returned: a tensor, or a mapping of parts. Raises SpectraError if there is none."""
    if isinstance(returned, Tensor):
        if returned.ndim < 2:
            return returned
    elif isinstance(returned, tuple | list) and not hasattr(returned, "_fields"):
        first = returned[0] if returned else None
        if isinstance(first, Tensor) and first.ndim < 2:
            return first
        numbers = [value for value in returned if isinstance(value, Tensor) and value.ndim == 0]
        if len(numbers) == 1:  # after the logits, as in nanoGPT
            return numbers[0]
    else:
        found = entries(returned)
        if isinstance(found.get("loss"), Tensor | Mapping):
            return found["loss"]
        if found and "loss" not in found and all(isinstance(v, Tensor) and v.ndim == 0 for v in found.values()):
            return found  # the parts of a sum, as torchvision's detectors return them
    came = f"{type(returned).__name__}{contents(returned)}"
    if isinstance(returned, Tensor):
        came = f"tensor of shape {tuple(returned.shape)}"
    raise SpectraError(
        f"`loss` model: the model returned a {came} without a loss; give it the inputs that its loss needs, such as "
        "labels, or choose another `loss`"
    )


def logits_in(returned: Any) -> Tensor | None:
    """The logits in the value that a model returned with its loss; None if there are none."""
    found = entries(returned).get("logits")
    if found is None and isinstance(returned, tuple | list) and len(returned) > 1:
        found = next((value for value in returned if isinstance(value, Tensor) and value.ndim > 1), returned[1])
    return found if isinstance(found, Tensor) and found.is_floating_point() else None
