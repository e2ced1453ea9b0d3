"""The loss that a model returns, as a function of the logits that it returns too, for losses that are not built in.

One module of the model computes the logits. A hook replaces its output by given logits, so that the model's loss is a
function of them, with a GGN and gradients of single examples, like a user's loss of (output, target).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from spectra.problem.model_loss import call, loss_in


@dataclass(frozen=True)
class OwnLoss:
    """The loss of a model as a function of its logits and of the batch."""

    model: nn.Module
    producer: str  # the name of the module whose output is the logits

    def __call__(self, logits: Tensor, batch: Any) -> Any:
        """The loss that the model returns for the batch with its logits replaced by these."""
        handle = self.model.get_submodule(self.producer).register_forward_hook(lambda *_: logits)
        try:
            return loss_in(call(self.model, batch))
        finally:
            handle.remove()


def producer_of(model: nn.Module, batch: Any, logits: Tensor) -> str | None:
    """The name of the last module whose output for a batch is equal to the logits; None if there is none."""
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
