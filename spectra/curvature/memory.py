"""How much memory there is, and how much a graph keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SHARE = 0.25  # of the device's memory, for graphs; the rest is for the data, the basis and whoever else is there


def graph_budget(device: torch.device) -> int:
    """Bytes that graphs may keep: a share of all memory, not of what is free, so that two runs are alike."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # what a container or a Slurm job may use
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return int(SHARE * total)


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
