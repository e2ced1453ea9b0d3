"""Sum inner products of rows in float64, tile by tile."""

from __future__ import annotations

from itertools import combinations_with_replacement

from torch import Tensor

from spectra.devices import in_float64

TILE = 256  # rows of either side at a time, the fastest of 128 to 1024; tiles below the diagonal are mirrored
COLUMNS = 2048  # columns that are converted to float64 at a time


def add_gram(total: Tensor, slopes: Tensor, inputs: Tensor | None = None) -> None:
    """Add to `total`, in place, the inner products of rows of `slopes`, times those of `inputs` if they are given."""
    tiles = [slice(first, first + TILE) for first in range(0, len(total), TILE)]
    for i, j in combinations_with_replacement(tiles, 2):
        products = inner(slopes[i], slopes[j])
        if inputs is not None:
            products *= inner(inputs[i], inputs[j])
        total[i, j] += products
        if i != j:
            total[j, i] += products.T


def inner(left: Tensor, right: Tensor) -> Tensor:
    """left right' in float64, some columns at a time."""
    (first, second), *others = zip(left.split(COLUMNS, dim=1), right.split(COLUMNS, dim=1), strict=True)
    total = in_float64(first) @ in_float64(second).T
    for a, b in others:
        total.addmm_(in_float64(a), in_float64(b).T)
    return total
