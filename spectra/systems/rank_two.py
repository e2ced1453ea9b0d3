"""The symmetric matrix of rank two that agrees with a Hessian along one vector.

    A = (z v' + v z' - (v'z / |v|^2) v v') / |v|^2        A v = z,  A = A'

For z = H v it is H - P H P, with P the projection onto the complement of v: all of H that has to do with v, and nothing
else (Pearlmutter 1994, on weight perturbation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.errors import ArgumentError
from spectra.vectors import norm
from spectra.wording import outline


@dataclass(frozen=True)
class RankTwo:
    """The symmetric operator of rank two that maps `vector` v (n,) to `image` z (n,)."""

    vector: Tensor
    image: Tensor

    __repr__ = outline

    def __post_init__(self):
        if self.vector.ndim != 1 or self.vector.shape != self.image.shape:
            shapes = f"{tuple(self.vector.shape)} and {tuple(self.image.shape)}"
            raise ArgumentError(f"`vector` and `image` of shapes {shapes}: give two vectors (n,) of one length")
        if not self.vector.any():
            raise ArgumentError("`vector` is zero: give one with an entry that is not")

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n)."""
        return torch.Size((len(self.vector), len(self.vector)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its vectors."""
        return self.vector.dtype

    @property
    def device(self) -> torch.device:
        """The device of its vectors."""
        return self.vector.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The products (n,) or (n, k) with vectors of that shape."""
        length = norm(self.vector)
        v, z = self.vector / length, self.image / length
        along, across = v @ vectors, z @ vectors
        return torch.stack([z, v]).T @ torch.stack([along, across - (v @ z) * along])
