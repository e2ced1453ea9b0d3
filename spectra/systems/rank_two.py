"""The symmetric matrix of rank two that agrees with a Hessian along one vector.

    A = (z v' + v z' - (v'z / |v|^2) v v') / |v|^2        A v = z,  A = A'

For z = H v it is H - P H P, with P the projection onto the complement of v: the part of H that involves v (Pearlmutter
1994, on weight perturbation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.errors import ArgumentError
from spectra.operator import refuse_other_dtype
from spectra.vectors import WITHIN, all_finite, norm, squares_overflow
from spectra.wording import outline


@dataclass(frozen=True)
class RankTwo:
    """The symmetric matrix of rank two that agrees with a Hessian H along one vector v, given v and z = H v.

    It maps v to z, and equals H - P H P, with P the projection onto the orthogonal complement of v (Pearlmutter 1994,
    on weight perturbation).

    Attributes:
        vector: v (n,), not zero.
        image: z = H v (n,), of the same dtype and device.

    Raises:
        ArgumentError: the vectors have a wrong shape, dtype or value.
    """

    vector: Tensor
    image: Tensor

    __repr__ = outline

    def __post_init__(self):
        for name, part in (("vector", self.vector), ("image", self.image)):
            if not isinstance(part, Tensor) or not part.is_floating_point():
                came = part.dtype if isinstance(part, Tensor) else type(part).__name__
                raise ArgumentError(f"`{name}` of {came}: give a floating-point tensor (n,)")
            if not all_finite(part):
                raise ArgumentError(f"`{name}` contains numbers that are not finite: give finite ones")
        if self.vector.ndim != 1 or self.vector.shape != self.image.shape:
            shapes = f"{tuple(self.vector.shape)} and {tuple(self.image.shape)}"
            raise ArgumentError(f"`vector` and `image` of shapes {shapes}: give two vectors (n,) of the same length")
        if not self.vector.any():
            raise ArgumentError("`vector` is zero: give a non-zero vector")
        if squares_overflow(self.vector):
            raise ArgumentError(f"`vector`: its norm is not {WITHIN}; scale it, and `image` too")
        if (self.image.dtype, self.image.device) != (self.vector.dtype, self.vector.device):
            wanted = f"{self.vector.dtype} on {self.vector.device}"
            raise ArgumentError(
                f"`image` of {self.image.dtype} on {self.image.device}: give it in {wanted}, like `vector`"
            )

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
        refuse_other_dtype(self, vectors)
        length = norm(self.vector)
        v, z = self.vector / length, self.image / length
        along, across = v @ vectors, z @ vectors
        return torch.stack([z, v]).T @ torch.stack([along, across - (v @ z) * along])
