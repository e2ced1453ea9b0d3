"""Tensors that autograd in forward mode makes for zeros and keeps without memory, in the code that watches operations.

A model or loss that uses torch.func.jvp, jacfwd or hessian inside has them. PyTorch 2.14 ends the process where a
TorchDispatchMode passes one on; without a mode they are as good as others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def is_zero_tensor(value: Any) -> bool:
    """Whether a value is a tensor of zeros without memory."""
    return isinstance(value, Tensor) and value._is_zerotensor()


def with_memory(tree: Any) -> Any:
    """The arguments of an operation, with ordinary tensors in place of those without memory."""
    if not any(map(is_zero_tensor, pytree.tree_leaves(tree))):
        return tree
    return pytree.tree_map(
        lambda x: torch.zeros(x.shape, dtype=x.dtype, device=x.device) if is_zero_tensor(x) else x, tree
    )


class WithMemory(TorchDispatchMode):
    """A context in which operations get ordinary tensors in place of those without memory."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use imports torch.compile, for a second and more

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        arguments, keywords = with_memory((arguments, keywords or {}))
        return function(*arguments, **keywords)
