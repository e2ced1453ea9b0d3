"""Chunks of tokens: the layer whose logits are made chunk by chunk, and the part of a batch that a chunk is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from spectra.problem.batch import Batch


@dataclass(frozen=True)
class Head:
    """The linear layer that makes the logits, by name, and the number of tokens of a chunk."""

    name: str
    chunk: int

    def layer(self, model: nn.Module) -> nn.Linear:
        """The layer."""
        found = model.get_submodule(self.name)
        assert isinstance(found, nn.Linear)
        return found


@dataclass(frozen=True)
class Tokens(Batch):
    """Some of the tokens of a batch: each row of the output is one of its examples."""

    whole: Batch
    count: int  # of the rows of the whole batch
    cut: slice
    shared: dict[Any, Any] = field(compare=False, repr=False)  # what the chunks of a batch have made for each other
