"""Refuse parameters that have no real second derivative: complex and sparse ones, and those of inference mode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from spectra.errors import SpectraError


def refuse_unsuitable_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise SpectraError where a parameter is complex, sparse, or made in inference mode."""
    for name, p in parameters.items():
        if p.is_complex():
            raise SpectraError(
                f"--model: its parameter {name} is complex ({p.dtype}), not real; store it as "
                "torch.view_as_real(parameter), and let forward take torch.view_as_complex of that"
            )
        if p.layout is not torch.strided:
            raise SpectraError(
                f"--model: its parameter {name} is sparse ({p.layout}); store its values, and let forward make the "
                "matrix of them by torch.sparse_coo_tensor(indices, values, size)"
            )
        if p.is_inference():
            raise SpectraError(
                f"--model: its parameter {name} was made under torch.inference_mode(), so it has no derivative; build "
                "the model outside of inference mode"
            )
