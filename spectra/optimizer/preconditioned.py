"""The matrix P^-1/2 A P^-1/2 for a positive definite P, usually diagonal, as an operator around A.

It has the eigenvalues of P^-1 A. Its trace and density are those of the curvature in the coordinates P^1/2 x, in which
the optimizer's step is a step of gradient descent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectra.operator import Wrapper, find_on, refuse_other_dtype
from spectra.vectors import map_shards, sum_shards
from spectra.wording import outline


@dataclass
class Preconditioned(Wrapper):
    """The matrix sign R A R + diag(shift) with R = diag(root), or R = root.

    The vectors `root` and `shift` (n,) have the operator's dtype, and are sharded like its vectors. A `root` that is an
    operator (n, n) is symmetric, and may multiply vectors of another dtype. If A is itself an estimate, the errors
    reported are those of R A R. To count products, put `Counting` around this operator, not inside.
    """

    root: Any
    shift: Tensor | None = None  # None: zero
    sign: float = 1.0

    __repr__ = outline

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        product = self.rooted(self.operator @ self.rooted(vectors)) * self.sign
        if self.shift is None:
            return product
        return map_shards(_with_diagonal, product, vectors, self.shift)

    def rooted(self, vectors: Tensor) -> Tensor:
        """R v for vectors (n,) or (n, k)."""
        if isinstance(self.root, Tensor) and self.root.ndim == 1:
            return map_shards(_times, vectors, self.root)
        given = map_shards(lambda part: part.to(self.root.device, self.root.dtype), vectors)
        return map_shards(lambda part: part.to(vectors.device, vectors.dtype), self.root @ given)

    @property
    def asymmetry(self) -> str | None:
        """The likely cause of asymmetric products in single precision, and the way out."""
        if self.dtype == torch.float64:
            return None
        return "some entries of P are so small that P^-1/2 magnifies the rounding of products; give `dtype` float64"

    @property
    def standard_errors(self) -> Callable[[Tensor], Tensor] | None:
        """The standard errors of quotients u'RARu, if the operator provides its own."""
        if (inner := find_on("standard_errors", self.operator)) is None:
            return None

        def errors(vectors: Tensor) -> Tensor:
            rooted = self.rooted(vectors)
            squares = sum_shards(lambda part: part.double().square().sum(dim=0), rooted)
            return squares * inner(rooted / squares.sqrt().to(rooted.dtype)).to(squares)

        return errors

    @property
    def trace_error(self) -> Callable[[], float] | None:
        """The standard error of the trace, which is unknown (nan) if the operator is an estimate."""
        return None if find_on("trace_error", self.operator) is None else lambda: math.nan

    def diagonal_sum(self) -> None:
        """None: the trace differs from the operator's, and is unknown without products."""


def _times(part: Tensor, diagonal: Tensor) -> Tensor:
    return part * (diagonal if part.ndim == 1 else diagonal[:, None])


def _with_diagonal(product: Tensor, part: Tensor, diagonal: Tensor) -> Tensor:
    return torch.add(product, _times(part, diagonal))
