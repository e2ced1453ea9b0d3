"""The loss that a model returns as a function of the logits that it returns beside it, where that is no loss of ours.

One module of the model makes the logits. While that is made to return other logits, the model's own loss is a function
of them, which has a GGN and gradients of single examples, as a user's loss of (output, target) has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from spectra.problem.model_loss import call, loss_in


@dataclass(frozen=True)
class OwnLoss:
    """The loss of a model, as a function of its logits and of the batch that it is called with."""

    model: nn.Module
    producer: str  # the name of the module whose output is the logits

    def __call__(self, logits: Tensor, batch: Any) -> Any:
        """The loss that the model returns for the batch, were these its logits."""
        handle = self.model.get_submodule(self.producer).register_forward_hook(lambda *_: logits)
        try:
            return loss_in(call(self.model, batch))
        finally:
            handle.remove()


def producer_of(model: nn.Module, batch: Any, logits: Tensor) -> str | None:
    """The name of the last module whose output for a batch is equal to the logits; None where there is none."""
    found: list[str] = []

    def note(name: str, _module: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.shape == logits.shape and output.equal(logits):
            found.append(name)

    handles = [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules()]
    try:
        call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None
