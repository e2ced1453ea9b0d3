"""Refuse parameters without a real second derivative: complex, sparse, or made in inference mode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from spectra.errors import SpectraError
from spectra.quoting import foreign


def refuse_unsuitable_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise SpectraError if a parameter is complex, sparse, or made in inference mode."""
    for given, p in parameters.items():
        name = foreign(given)
        if p.is_complex():
            raise SpectraError(
                f"`model`: its parameter {name} is complex ({p.dtype}), not real; store "
                "torch.view_as_real(parameter), and apply torch.view_as_complex to it in forward"
            )
        if p.layout is not torch.strided:
            raise SpectraError(
                f"`model`: its parameter {name} is sparse ({p.layout}); store its values, and build the matrix in "
                "forward with torch.sparse_coo_tensor(indices, values, size)"
            )
        if p.is_inference():
            raise SpectraError(
                f"`model`: its parameter {name} was made under torch.inference_mode(), so it has no derivative; build "
                "the model outside of inference mode"
            )
