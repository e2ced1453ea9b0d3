"""How much memory a graph keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def count_kept_bytes() -> Iterator[dict[int, int]]:
    """Sizes of the storages that graphs made inside save for backward, by address."""
    sizes: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor, tensor._version

    def unpack(packed):
        tensor, version = packed
        if tensor._version != version:  # with hooks, autograd leaves this check to them
            raise RuntimeError("a tensor needed for the derivative has been changed in place since it was computed")
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield sizes


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
