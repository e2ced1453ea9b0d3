"""How much memory a device has, and the share of it that graphs or a basis may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.25  # each, for graphs and for a basis; the rest is for the data and whoever else is there


def memory_share(device: torch.device) -> int:
    """Bytes: a share of all memory, not of what is free, so that two runs are alike."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # what a container or a Slurm job may use
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return int(SHARE * total)
