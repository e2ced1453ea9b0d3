"""Random numbers that are functions of a key and an index: the same on every device, in any order, in any parts.

Random vectors are drawn in two steps. A CPU generator, made of the seed and of the purpose (`krylov/streams.py`) or
given by the caller, yields one key of 63 bits for each vector, in the order of drawing. The entries follow from (key,
index) alone: number i of a key is `mix(key + i * GOLDEN)`, the i-th output of SplitMix64 (Steele, Lea, Flood 2014)
started at the key, a counter-based generator as in Salmon, Moraes, Dror, Shaw (2011). So each process computes its own
shard, on its own device, and only the keys depend on what was drawn before.

These integers, and the signs made of them, are equal bit for bit everywhere. Normal numbers are made of them in
float64 and rounded to the dtype asked for, so they are equal up to the rounding of a device's log, sin and cos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Integers = TypeVar("Integers", Tensor, np.ndarray)
Draw = Callable[[Sequence[int], range, torch.device], Tensor]

CPU = torch.device("cpu")
SMALL = 1 << 15  # entries that are drawn on the CPU in less time than a GPU takes to start the kernels
CHUNKS = {"cpu": 1 << 15, "cuda": 1 << 22}  # entries at a time: intermediates fit into the cache, or take some 0.1 GB


def draw_keys(generator: torch.Generator, count: int) -> list[int]:
    """Draw the keys of `count` vectors by a CPU generator; two draws give the same keys as one of both counts."""
    return torch.randint((1 << 63) - 1, (count,), generator=generator, device=CPU).tolist()


def normal_rows(keys: Sequence[int], part: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal rows (k, m), one for each key: the entries `part` of vectors of any length."""
    return _by_chunks(_normals, 2, keys, part, dtype, device)


def sign_rows(keys: Sequence[int], part: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows (k, m) of independent signs, one for each key: the entries `part` of vectors of any length."""
    return _by_chunks(_signs, 64, keys, part, dtype, device)


def normal_like(tensor: Tensor, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal numbers in a tensor's shape, on its device and in its dtype or the one given."""
    keys = draw_keys(generator, 1)
    return normal_rows(keys, slice(0, tensor.numel()), dtype or tensor.dtype, tensor.device).view(tensor.shape)


def _by_chunks(
    draw: Draw, group: int, keys: Sequence[int], part: slice, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Make rows in chunks by `draw(keys, indices, device)`, with indices that begin and end at multiples of `group`."""
    begin, end = part.start // group * group, -(-part.stop // group) * group
    entries = len(keys) * (end - begin)
    place = device if device.type in CHUNKS and entries > SMALL else CPU
    chunk = CHUNKS[place.type]
    if entries <= chunk:
        made = draw(keys, range(begin, end), place)
        return made[:, part.start - begin : part.stop - begin].to(device, dtype).contiguous()
    rows = torch.empty(len(keys), part.stop - part.start, dtype=dtype, device=place)
    together = max(1, chunk // (end - begin))
    for top in range(0, len(keys), together):
        for first in range(begin, end, chunk):
            last = min(first + chunk, end)
            made = draw(keys[top : top + together], range(first, last), place)
            left, right = max(first, part.start), min(last, part.stop)
            rows[top : top + together, left - part.start : right - part.start] = made[:, left - first : right - first]
    return rows.to(device)


def _normals(keys: Sequence[int], indices: range, device: torch.device) -> Tensor:
    """Pairs of normal numbers in float64, by the transformation of Box and Muller (1958)."""
    pairs = integers(indices[::2], device) + integers(range(2), device)[:, None]
    first, second = in_unit_interval(words(keys, pairs[:, None]))
    radius, angle = first.log_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
    return torch.stack([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=2).flatten(1)


def _signs(keys: Sequence[int], indices: range, device: torch.device) -> Tensor:
    """The 64 bits of each word as signs."""
    drawn = words(keys, integers(range(indices.start // 64, indices.stop // 64), device))
    bits = drawn[:, :, None] >> integers(range(64), device) & 1
    return as_tensor(2 * bits - 1).flatten(1)


def words(keys: Sequence[int], indices: Any) -> Any:
    """The random integers (..., k, m) of each key and index (..., 1, m), as int64."""
    if isinstance(indices, np.ndarray):
        own = np.array(keys, dtype=np.int64)
    else:
        own = torch.tensor(keys, dtype=torch.int64, device=indices.device)
    return mix(indices * GOLDEN + own[:, None])


def integers(values: range, device: torch.device) -> Any:
    """Integers as int64 (m,): on the CPU a NumPy array, whose operations take half the time where it is small."""
    if device.type == "cpu":
        return np.arange(values.start, values.stop, values.step)
    return torch.arange(values.start, values.stop, values.step, device=device)


def as_tensor(x: Any) -> Tensor:
    """An array as a tensor on the CPU, whatever device is torch's default; a tensor as it is."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def in_unit_interval(x: Any) -> Tensor:
    """The first 53 bits of random integers as float64 numbers in (0, 1)."""
    return (as_tensor(shift(x, 11)).double() + 0.5) * 2.0**-53


def mix(x: Integers) -> Integers:
    """SplitMix64's next output after state x, on int64, whose arithmetic wraps as that of unsigned integers does."""
    x = x + GOLDEN
    x = (x ^ shift(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ shift(x, 31)


def shift(x: Integers, bits: int) -> Integers:
    """Logical shift right; int64's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return x - (1 << 64) if x >= 1 << 63 else x


GOLDEN = signed(0x9E3779B97F4A7C15)
