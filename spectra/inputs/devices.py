"""The device and dtype of a problem, and tensors brought to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectra.devices import WITHOUT_FLOAT64
from spectra.errors import ArgumentError, SpectraError, describe
from spectra.inputs.given import device_and_dtype
from spectra.problem.batch import Batch
from spectra.problem.model_inputs import map_tensors

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name: auto, cpu, cuda, cuda:1, mps, or as PyTorch names it. Raises SpectraError where it is not
    there.

    cuda is the current card. auto is that, else the CPU: mps, which has no float64, is asked for by name.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"`device` {name}: is not available ({describe(error)}); use cpu, or auto") from error
    if device.type == "cuda":
        return choose_card(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SpectraError(f"`device` {name}: torch finds no Apple GPU here; use `device` cpu, or auto")
    try:
        return torch.empty(0, device=device).device
    except Exception as error:
        raise ArgumentError(f"`device` {name}: is not available ({describe(error)}); use cpu, or auto") from error


def choose_card(device: torch.device) -> torch.device:
    """The CUDA device, with its number. Raises SpectraError where there is none, or none of that number."""
    if not torch.cuda.is_available():
        raise SpectraError(f"`device` {device}: torch finds no CUDA device here; use `device` cpu, or auto")
    if device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.index >= (count := torch.cuda.device_count()):
        there = "is cuda:0" if count == 1 else f"are cuda:0 to cuda:{count - 1}"
        raise SpectraError(f"`device` {device}: torch finds no such device; there {there}, and `device` cpu")
    return device


def recorded_device(device: torch.device, asked: str | torch.device | None = None) -> str:
    """The device as a record names it: with its number where that was asked for, or is not the first."""
    return str(device) if device.index or ":" in str(asked) else device.type


def choose_own_device(model: str | nn.Module, device: str | torch.device | None) -> torch.device:
    """The device of a problem: the one asked for, else that of a module, else auto. Raises SpectraError."""
    if device is None and isinstance(model, nn.Module):
        return device_and_dtype(model)[0]
    return choose_device("auto" if device is None else device)


def choose_place(
    model: str | nn.Module, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a problem: those asked for, else those of a module, else auto and float32. Raises
    SpectraError.
    """
    place = choose_own_device(model, device), choose_dtype(model, dtype)
    if place[0].type in WITHOUT_FLOAT64 and place[1] == torch.float64:
        raise SpectraError(f"`dtype` float64: {place[0].type} has none; take `dtype` float32, or `device` cpu")
    return place


def choose_dtype(model: str | nn.Module, dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype of a problem: the one asked for, else that of a module, else float32. Raises SpectraError."""
    if dtype is None and isinstance(model, nn.Module):
        own = device_and_dtype(model)[1]
        if own in (torch.bfloat16, torch.float16):
            return torch.float32
        if own not in DTYPES.values():
            text = f"its parameters are {own}, too short for eigenvalues; give `dtype` float32, for a copy in that"
            raise SpectraError(f"`model`: {text}")
        return own
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ArgumentError(f"`dtype` {dtype}: is not one of {', '.join(DTYPES)}; choose one of them")
    return DTYPES[name]


def cast_tensors(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The tensors of a tree on the device, floating ones in the dtype, complex ones in that of the same precision;
    integers and booleans keep theirs.
    """

    def moved(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else dtype.to_complex() if tensor.is_complex() else None
        return tensor.to(device=device, dtype=kind)

    return map_tensors(moved, tree)


def brought(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the device, its real and complex numbers in the precision of the dtype."""
    inputs, targets = cast_tensors((batch.inputs, batch.targets), device, dtype)
    return Batch(inputs, targets, batch.indices.to(device))
