"""Replace zero tensors of forward-mode autograd, which have no memory, by ordinary ones, for our TorchDispatchModes.

A model or loss that uses torch.func.jvp, jacfwd or hessian makes them. PyTorch 2.14 crashes where a TorchDispatchMode
passes one on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def is_zero_tensor(value: Any) -> bool:
    """Whether a value is a tensor of zeros without memory."""
    return isinstance(value, Tensor) and value._is_zerotensor()


def has_zero_tensor(values: Iterable[Any]) -> bool:
    """Whether a tensor without memory is among the arguments of an operation."""
    return any(has_zero_tensor(value) if isinstance(value, list | tuple) else is_zero_tensor(value) for value in values)


def with_memory(arguments: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of an operation, with ordinary tensors in place of those without memory."""
    if not (has_zero_tensor(arguments) or has_zero_tensor(keywords.values())):
        return arguments, keywords
    return pytree.tree_map(
        lambda x: torch.zeros(x.shape, dtype=x.dtype, device=x.device) if is_zero_tensor(x) else x,
        (arguments, keywords),
    )
