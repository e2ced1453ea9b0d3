"""The layer that computes logits in chunks of tokens, and one such chunk of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from spectra.problem.batch import Batch


@dataclass(frozen=True)
class Head:
    """The name of the linear layer that computes the logits, and the number of tokens in a chunk."""

    name: str
    chunk: int

    def layer(self, model: nn.Module) -> nn.Linear:
        """The layer in a model."""
        found = model.get_submodule(self.name)
        assert isinstance(found, nn.Linear)
        return found


@dataclass(frozen=True)
class Tokens(Batch):
    """A chunk of the tokens of a batch: each token is an example, and a row of the output."""

    whole: Batch
    count: int  # rows of the whole batch
    cut: slice
    shared: dict[Any, Any] = field(compare=False, repr=False)  # values that the chunks of a batch share
