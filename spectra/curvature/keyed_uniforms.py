"""Random numbers that belong to an example: a function of seed, index, position and sample alone.

So the labels of fisher-mc do not depend on batches, their order, the number of processes or the device. The generator
is counter-based, as in Salmon, Moraes, Dror, Shaw (2011), with the mixing function of SplitMix64 (Steele, Lea, Flood
2014).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectra.devices import device_of_vectors


def uniforms(seed: int, indices: Tensor, rows: int, sample: int) -> Callable[[int], Tensor]:
    """`uniform(j)`: float64 (rows,) in (0, 1); rows are the examples `indices`, each with rows / len positions."""
    indices = indices.to(device_of_vectors(indices.device))
    positions = torch.arange(rows // len(indices), device=indices.device)
    key = mix(mix(torch.full_like(indices, seed)) ^ indices)
    key = mix(key[:, None] ^ mix(positions + (1 << 32))).reshape(-1)

    def uniform(draw: int) -> Tensor:
        bits = mix(key ^ mix(torch.full_like(key, (sample << 40) + draw)))
        return (shift(bits, 11).double() + 0.5) * 2.0**-53

    return uniform


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose arithmetic wraps as that of unsigned integers does."""
    x = x + signed(0x9E3779B97F4A7C15)
    x = (x ^ shift(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ shift(x, 31)


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; int64's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return x - (1 << 64) if x >= 1 << 63 else x
