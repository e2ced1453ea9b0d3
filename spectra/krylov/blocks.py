"""How many vectors go through one product: what they share is done once, and memory bounds the rest."""

from __future__ import annotations

import torch

from spectra.memory import memory_share
from spectra.operator import Shaped, mesh_of
from spectra.vectors import shard_sizes

WIDEST = 16  # columns; what they share is then a sixteenth each, and more of them would save next to nothing


def fitting_vectors(operator: Shaped) -> int:
    """Vectors (n,) that a method may hold: a share of the device's memory, or of several devices'."""
    most = max(shard_sizes(mesh_of(operator), operator.shape[0]))
    bytes_each = most * torch.finfo(operator.dtype).bits // 8
    return memory_share(operator.device) // max(bytes_each, 1)


def columns(vectors: int, each: int) -> int:
    """Columns of one product, where so many vectors may be held and a column takes `each` of them: at least one."""
    return min(WIDEST, max(1, vectors // each))
