"""The Hessian of a Boltzmann machine's mean negative log likelihood: a difference of covariances of s_i s_j.

With D = sum of v_ij s_i s_j, the covariance of all pairs multiplies v as <(D - <D>) s_i s_j>. The Hessian is (free
covariance - mean clamped covariance) / T^2 (Pearlmutter 1994); without hidden units, the clamped covariance is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from spectra.operator import refuse_other_dtype
from spectra.wording import outline


class Covariance(Protocol):
    """The covariance (n, n) of the products s_i s_j of connected units, which multiplies vectors."""

    def times(self, vectors: Tensor) -> Tensor:
        """The products (n, k) with vectors (n, k)."""
        ...


@dataclass
class BoltzmannHessian:
    """The Hessian (n, n) of the mean negative log likelihood of a Boltzmann machine in its n weights.

    It is positive semidefinite without hidden units, and may be indefinite with them.
    """

    free: Covariance
    clamped: Covariance | None
    temperature: float
    point: Tensor  # (n,): the weights, which determine dtype and device of vectors
    notes: list[str] = field(default_factory=list)
    name: str = "hessian"

    __repr__ = outline

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n), with n the number of weights."""
        return torch.Size((len(self.point), len(self.point)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.point.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.point.device

    @torch.no_grad()  # also where weights require gradients
    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        product = self.free.times(columns)
        if self.clamped is not None:
            product = product - self.clamped.times(columns)
        return (product / self.temperature**2).view(vectors.shape)
