"""The number of vectors that go through one product: they share part of its work, and memory bounds the number."""

from __future__ import annotations

import torch

from spectra.memory import memory_share
from spectra.operator import Shaped, mesh_of
from spectra.vectors import shard_sizes

WIDEST = 16  # columns; what they share is then a sixteenth each, and more of them would save next to nothing


def fitting_vectors(operator: Shaped) -> int:
    """The number of vectors (n,) that a method may hold: a share of the device's memory, or of several devices'."""
    return memory_share(operator.device) // vector_bytes(operator)


def vector_bytes(operator: Shaped) -> int:
    """The bytes of a vector (n,), or of the largest part of it that a process holds."""
    most = max(shard_sizes(mesh_of(operator), operator.shape[0]))
    return max(most * torch.finfo(operator.dtype).bits // 8, 1)


def columns(vectors: int, each: int) -> int:
    """The number of columns of one product, at least one, where `vectors` may be held and a column takes `each`
    of them.
    """
    return min(WIDEST, max(1, vectors // each))
