"""The number of vectors that go through one product: they share part of its work, and memory bounds the number."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.memory import memory_share
from spectra.operator import Shaped, SymmetricOperator, mesh_of
from spectra.vectors import on_device, shard_sizes

EACH = 3  # vectors that a column of a product takes: itself, its image, its part of the images
WIDEST = 16  # columns; what they share is then a sixteenth each, and more of them would save next to nothing


def fitting_vectors(operator: Shaped) -> int:
    """The number of vectors (n,) that a method may hold: a share of the device's memory, or of several devices'."""
    return memory_share(operator.device) // vector_bytes(operator)


def vector_bytes(operator: Shaped) -> int:
    """The bytes of a vector (n,), or of the largest part of it that a process holds."""
    most = max(shard_sizes(mesh_of(operator), operator.shape[0]))
    return max(most * torch.finfo(operator.dtype).bits // 8, 1)


def products(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    """The products A u (k, n) of rows (k, n), which may lie on the host: in blocks that fit memory."""
    width, images = columns(fitting_vectors(operator), EACH), []
    for first in range(0, len(rows), width):
        some = on_device(rows[first : first + width], operator.device)
        images.append(on_device((operator @ some.T).T, rows.device))
        del some
    return torch.cat(images)


def columns(vectors: int, each: int) -> int:
    """The number of columns of one product, at least one, where `vectors` may be held and a column takes `each`
    of them.
    """
    return min(WIDEST, max(1, vectors // each))
