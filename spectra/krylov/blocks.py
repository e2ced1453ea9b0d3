"""How many vectors to multiply at once: they share part of the work of a product, and memory limits their number."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.memory import memory_share
from spectra.operator import Shaped, SymmetricOperator, mesh_of
from spectra.vectors import on_device, shard_sizes

EACH = 3  # vectors in memory for each column of a product: the input, its product, and its part of the result
WIDEST = 16  # columns; each then has a sixteenth of the shared work, and more columns would save little


def fitting_vectors(operator: Shaped) -> int:
    """The number of vectors (n,), sharded if the operator's are, that fit a method's share of memory."""
    return memory_share(operator.device) // vector_bytes(operator)


def vector_bytes(operator: Shaped) -> int:
    """The bytes of a vector (n,), or of its largest shard."""
    most = max(shard_sizes(mesh_of(operator), operator.shape[0]))
    return max(most * torch.finfo(operator.dtype).bits // 8, 1)


def products(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    """Compute the products A u (k, n) of rows u (k, n), which may be in host memory, in blocks that fit memory."""
    width, images = columns(fitting_vectors(operator), EACH), []
    for first in range(0, len(rows), width):
        some = on_device(rows[first : first + width], operator.device)
        images.append(on_device((operator @ some.T).T, rows.device))
        del some
    return torch.cat(images)


def columns(vectors: int, each: int) -> int:
    """The number of columns of one product, at least 1, if `vectors` fit memory and a column takes `each` of them."""
    return min(WIDEST, max(1, vectors // each))
