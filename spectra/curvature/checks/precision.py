"""Check that a device and a dtype support products in lower precision."""

from __future__ import annotations

import torch

from spectra.arguments import require_choice
from spectra.defaults import IEEE, PRECISIONS
from spectra.errors import SpectraError
from spectra.wording import dtype_name

FIRST_WITH_TF32 = (8, 0)  # compute capability of CUDA's devices


def refuse_precision(precision: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise SpectraError where vectors of this dtype on this device have no products in this precision."""
    require_choice("precision", precision, PRECISIONS)
    if precision == IEEE:
        return
    if dtype != torch.float32:
        kind = dtype_name(dtype)
        raise SpectraError(
            f"`precision` {precision}: applies to float32 only, not to {kind}; use ieee, or `dtype` float32"
        )
    if precision == "tf32" and not has_tf32(device):
        raise SpectraError(f"`precision` tf32: the device {device} does not support TF32; use bf16, or ieee")


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in TF32, as NVIDIA's do since Ampere."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) >= FIRST_WITH_TF32
