"""Random numbers that belong to an example: a function of seed, index, position and sample alone.

So the labels of fisher-mc do not depend on batches, their order, the number of processes or the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectra.devices import device_of_vectors
from spectra.random_numbers import in_unit_interval, mix


def uniforms(seed: int, indices: Tensor, rows: int, sample: int) -> Callable[[int], Tensor]:
    """Return the function `uniform(j)`, which gives draw j: float64 numbers (rows,) in (0, 1).

    Rows are the positions of the examples with these indices, rows / len(indices) for each.
    """
    indices = indices.to(device_of_vectors(indices.device))
    positions = torch.arange(rows // len(indices), device=indices.device)
    key = mix(mix(torch.full_like(indices, seed)) ^ indices)
    key = mix(key[:, None] ^ mix(positions + (1 << 32))).reshape(-1)

    def uniform(draw: int) -> Tensor:
        return in_unit_interval(mix(key ^ mix(torch.full_like(key, (sample << 40) + draw))))

    return uniform
