"""Properties of devices: float64, the name, random generators, and the current CUDA device.

A device without float64, a Mac's mps, only makes products: vectors stay on the CPU, which shares its memory.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})


def device_of_vectors(device: torch.device) -> torch.device:
    """The device of the vectors that a matrix on `device` multiplies: `device`, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def in_float64(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64, and move it to the CPU if its device has no float64."""
    return tensor.to(device_of_vectors(tensor.device)).double()


def as_current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which a CUDA `device` is the current one, for streams, events and graphs; no change for others."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def name_of_device(device: torch.device) -> str:
    """The product name of a GPU, or the architecture of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, Metal" if device.type == "mps" else platform.machine()


def generator_states() -> dict[str, Any]:
    """The states of torch's global random generators; CUDA is not initialised for this."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Set torch's global random generators to `states`, which `generator_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
