"""Preconditioners that are given directly: a diagonal P, or an operator that multiplies by P^-1/2.

P.npz, P.safetensors    a diagonal P: a positive array for each parameter, under its name and of its shape
a mapping               the same in memory
(n,)                    the same in one vector, in the order of the problem's parameters
(n, n)                  P^-1/2 itself, for any symmetric positive definite P, as `spectra.as_operator` takes it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectra.errors import ArgumentError, SpectraError
from spectra.files import open_regular
from spectra.given_operator import as_operator
from spectra.inputs.checkpoint_folder import sha256
from spectra.inputs.safetensors_file import read_safetensors
from spectra.inputs.state_dict import some
from spectra.optimizer.momentum import Threshold
from spectra.optimizer.parameter_state import refusal
from spectra.optimizer.preconditioner import Preconditioner
from spectra.optimizer.state_dict import in_model
from spectra.product_checks import check_operator
from spectra.quoting import foreign

SUFFIXES = (".npz", ".safetensors")
WITHOUT = Threshold(reason="P was given without its optimizer")
POSITIVE = "P must be positive and finite"


def read_diagonal(path: Path) -> tuple[dict[str, Any], str]:
    """The arrays of a file by name, and its SHA-256. Raises SpectraError; no pickle is read."""
    try:
        with open_regular(path) as file:
            if path.suffix == ".safetensors":
                return read_safetensors(file)
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays}
        return found, sha256(path)
    except FileNotFoundError:
        raise refusal("no such file; check the path") from None
    except OSError as error:
        raise refusal(f"{error.strerror or 'it cannot be read'}; check the path") from error
    except Exception as error:  # NumPy's own message speaks of pickles
        kind = type(error).__name__
        text = f"it is damaged, or not a {path.suffix} file of numeric arrays ({kind}); save it again"
        raise refusal(text) from error


def from_arrays(arrays: Mapping, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Preconditioner:
    """The preconditioner of a diagonal P, given by names of parameters.

    Raises SpectraError if an array is missing or wrong.
    """
    written = [str(name) for name in arrays]
    (names,) = in_model([written], model)
    held = dict(zip(names, arrays.values(), strict=True))
    if missing := [name for name in parameters if name not in held]:
        text = f"it has no array for {some(missing)}, only for {some(written) or 'nothing'}"
        raise refusal(f"{text}; give one array per parameter, under its name")
    parts = [_part(foreign(name), held[name], p.shape) for name, p in parameters.items()]
    return from_diagonal(torch.cat(parts), matched="names")


def _part(name: str, array: Any, shape: torch.Size) -> Tensor:
    """The flat P of one parameter, in float64. Raises SpectraError."""
    try:
        part = torch.as_tensor(array).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise refusal(f"its P for {name} is of type {type(array).__name__}; give an array of numbers") from None
    if part.is_complex():
        raise refusal(f"its P for {name} is complex; {POSITIVE}")
    if part.shape != shape:
        text = f"its P for {name} has shape {tuple(part.shape)}, but the parameter has shape {tuple(shape)}"
        raise refusal(f"{text}; give that shape")
    part = part.double()
    if not (part.isfinite() & (part > 0)).all():
        raise refusal(f"its P for {name} is zero, negative or not finite somewhere; {POSITIVE}")
    return part.flatten()


def from_diagonal(diagonal: Tensor, matched: str | None = None) -> Preconditioner:
    """The preconditioner of a positive diagonal P (n,)."""
    return Preconditioner(None, diagonal.rsqrt(), None, None, WITHOUT, matched=matched)


def from_vector(diagonal: Any, size: int) -> Preconditioner:
    """The preconditioner of a diagonal P in one vector. Raises SpectraError if it is not of this size."""
    if len(diagonal) != size:
        raise refusal(f"its P has {len(diagonal):,} entries, but there are {size:,} parameters; give one per parameter")
    return from_diagonal(_part("all parameters", diagonal, torch.Size([size])))


def from_operator(root: Any, size: int) -> Preconditioner:
    """The preconditioner of an operator that multiplies by P^-1/2. Raises SpectraError if it is not symmetric."""
    try:
        found = as_operator(root, "optimizer")
        if found.shape[0] != size:
            rows = f"its P^-1/2 has {found.shape[0]:,} rows, but there are {size:,} parameters"
            raise refusal(f"{rows}; give one row per parameter")
        if not isinstance(found, Tensor):  # entries of a tensor have been checked
            check_operator(found)
    except ArgumentError as error:
        raise refusal(f"its P^-1/2: {str(error).removeprefix('`optimizer`').lstrip(': ')}") from error
    except SpectraError as error:
        if str(error).startswith("`optimizer`"):
            raise
        raise refusal(f"its P^-1/2: {error}") from error
    return Preconditioner(None, found, None, None, WITHOUT)
