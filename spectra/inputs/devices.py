"""Choose the device and dtype of a problem, and move tensors there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectra.devices import WITHOUT_FLOAT64
from spectra.errors import ArgumentError, SpectraError, describe
from spectra.inputs.python_objects import device_and_dtype
from spectra.problem.batch import Batch
from spectra.problem.model_inputs import map_tensors
from spectra.wording import dtype_name

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device with a name: auto, cpu, cuda, cuda:1, mps, or another name of PyTorch.

    cuda is the current CUDA device. auto is cuda where it is available, else cpu; it never chooses mps, which has no
    float64. Raises SpectraError where the device is not available.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"`device` {name}: is not available ({describe(error)}); use cpu, or auto") from error
    if device.type == "cuda":
        return choose_cuda_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SpectraError(f"`device` {name}: torch finds no Apple GPU here; use `device` cpu, or auto")
    try:
        return torch.empty(0, device=device).device
    except Exception as error:
        raise ArgumentError(f"`device` {name}: is not available ({describe(error)}); use cpu, or auto") from error


def choose_cuda_device(device: torch.device) -> torch.device:
    """Return a CUDA device with its index. Raises SpectraError where it does not exist."""
    if not torch.cuda.is_available():
        raise SpectraError(f"`device` {device}: torch finds no CUDA device here; use `device` cpu, or auto")
    if device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.index >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise SpectraError(f"`device` {device}: torch finds no such device; use `device` {there}, or cpu")
    return device


def recorded_device(device: torch.device, requested: str | torch.device | None = None) -> str:
    """Name a device for a record, with its index if that was typed or is not 0."""
    return str(device) if device.index or ":" in str(requested) else device.type


def choose_own_device(model: str | nn.Module, device: str | torch.device | None) -> torch.device:
    """Return the device of a problem: the requested one, else that of a module, else auto. Raises SpectraError."""
    if device is None and isinstance(model, nn.Module):
        return device_and_dtype(model)[0]
    return choose_device("auto" if device is None else device)


def choose_device_and_dtype(
    model: str | nn.Module, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of a problem: as requested, else those of a module, else auto and float32.

    Raises SpectraError where they are not available.
    """
    place = choose_own_device(model, device), choose_dtype(model, dtype)
    if place[0].type in WITHOUT_FLOAT64 and place[1] == torch.float64:
        raise SpectraError(
            f"`dtype` float64: device {place[0].type} has no float64; use `dtype` float32, or `device` cpu"
        )
    return place


def choose_dtype(model: str | nn.Module, dtype: str | torch.dtype | None) -> torch.dtype:
    """Return the dtype of a problem: the requested one, else that of a module, else float32. Raises SpectraError."""
    if dtype is None and isinstance(model, nn.Module):
        own = device_and_dtype(model)[1]
        if own in (torch.bfloat16, torch.float16):
            return torch.float32
        if own not in DTYPES.values():
            text = f"its parameters are {own}, too imprecise for eigenvalues; give `dtype` float32, to use a copy"
            raise SpectraError(f"`model`: {text}")
        return own
    return torch.float32 if dtype is None else named_dtype(dtype)


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype with a name. Raises ArgumentError unless it is float32 or float64."""
    name = dtype_name(dtype)
    if name not in DTYPES:
        raise ArgumentError(f"`dtype` {dtype}: it is not supported; choose from {', '.join(DTYPES)}")
    return DTYPES[name]


def cast_tensors(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move the tensors of a tree to `device`, and cast floating ones to `dtype`, complex ones to the same precision.

    Integers and booleans keep their dtype.
    """

    def moved(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else dtype.to_complex() if tensor.is_complex() else None
        return tensor.to(device=device, dtype=kind)

    return map_tensors(moved, tree)


def batch_to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move a batch to `device`, and cast its floating and complex tensors to the precision of `dtype`."""
    inputs, targets = cast_tensors((batch.inputs, batch.targets), device, dtype)
    return Batch(inputs, targets, batch.indices.to(device))
