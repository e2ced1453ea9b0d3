"""Make the tensors that a model is called with: new ones, so that nothing it does to them reaches the data.

A model that asks for gradients by its inputs sets `requires_grad` on them; one that preprocesses in place writes to
them. The first needs another tensor of the same memory, the second a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def detached_inputs(inputs: Any, copies: bool) -> Any:
    """The inputs as new tensors, detached: on the same memory, or as copies."""
    return map_tensors(lambda x: x.detach().clone() if copies else x.detach(), inputs)


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to every tensor of the inputs."""
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, inputs)


def versions(inputs: Any) -> list[int]:
    """Numbers that grow with each write to the tensors."""
    return [x._version for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
