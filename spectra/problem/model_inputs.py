"""Make new tensors to call a model with, so that nothing it does to them changes the data.

A model may set `requires_grad` on its inputs, or write to them in place. The first needs a new tensor on the same
memory, the second a copy.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

DECODER = "decoder_input_ids"
BEYOND = "index out of range"  # PyTorch's words, of an embedding
BEYOND_EMBEDDING = "an index exceeds an embedding: check the token ids and the length of the sequences"


class Structured(ABC):
    """Inputs that are not a tree of tensors with one entry per example, such as graphs: a node of PyTorch's pytrees."""

    @property
    @abstractmethod
    def divisible(self) -> bool:
        """Whether they can be cut and joined."""

    @abstractmethod
    def whole(self) -> Any:
        """The object that is passed to a loss of (model, batch)."""

    @abstractmethod
    def call(self, model: nn.Module) -> Any:
        """The model's output for these inputs."""

    @abstractmethod
    def part(self, cut: slice | Tensor) -> Structured:
        """The inputs of some of the examples. Raises SpectraError if they cannot be cut."""

    @abstractmethod
    def kind(self) -> Any:
        """A key that is equal for inputs that can be joined."""

    @abstractmethod
    def joined(self, others: Sequence[Any]) -> Structured:
        """The inputs of these examples and others. Raises SpectraError if they cannot be joined."""


def divisible(x: Tensor) -> bool:
    """Whether a tensor can be cut into examples along its first dimension; sparse and nested tensors cannot."""
    return x.layout is torch.strided and not x.is_nested


def detached_inputs(inputs: Any, copies: bool) -> Any:
    """The inputs as new tensors, detached: on the same memory, or as copies."""
    return map_tensors(lambda x: x.detach().clone() if copies else x.detach(), inputs)


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to every tensor of the inputs."""
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, inputs)


def lacks_decoder_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a model of transformers is an encoder and a decoder, and its decoder is given no tokens."""
    try:
        names = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # of TorchScript and the like
        return False
    return DECODER in names and DECODER not in inputs


def versions(inputs: Any) -> list[int]:
    """The version counters of the tensors, which grow with each in-place write."""
    return [x._version for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
