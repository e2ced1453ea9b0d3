"""Attention as `torch.nn.attention.flex_attention` defines it, by plain operations that can be differentiated twice.

PyTorch's kernels have no second derivative, and on a CPU no derivative at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple,
    scale: float,
    kernel_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, H, L, Ev), and for each row the logarithm of its sum and its largest score, both in base 2."""
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    groups, size = query.shape[1] // key.shape[1], len(query)
    key, value = (x.repeat_interleave(groups, dim=1).expand(size, -1, -1, -1) for x in (key, value))
    scores = scale * (query.to(wide) @ key.to(wide).mT)

    places = [torch.arange(count, device=query.device) for count in scores.shape]
    with IndexByTensors():
        scores = at_each_place(score_mod, scores=1)(scores, *places)
        seen = at_each_place(block_mask[-1])(*places)
    scores = scores.to(wide).masked_fill(~seen, -math.inf)
    nothing = ~seen.any(dim=-1, keepdim=True)
    shares = scores.masked_fill(nothing, 0).softmax(dim=-1).masked_fill(nothing, 0)
    sums = scores.masked_fill(nothing, 0).logsumexp(dim=-1).masked_fill(nothing[..., 0], -math.inf)
    return shares.to(query.dtype) @ value, sums / math.log(2), scores.amax(dim=-1) / math.log(2)


def at_each_place(function: Callable[..., Tensor], scores: int = 0) -> Callable[..., Tensor]:
    """A function of single scores and places (b, h, q, k), for all of them at once."""
    for place in (3, 2, 1, 0):
        function = torch.vmap(function, (*[0] * scores, *[0 if i == place else None for i in range(4)]))
    return function


class IndexByTensors(TorchFunctionMode):
    """A context in which x[i, j] works for tensors i and j under vmap, which have no values in Python."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Replace `Tensor.__getitem__`."""
        if func is Tensor.__getitem__:
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if places and all(isinstance(place, Tensor) for place in places):
                return torch.ops.aten.index(args[0], places)
        return func(*args, **(kwargs or {}))
