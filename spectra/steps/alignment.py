"""The share of a direction in the leading eigenvectors, with bounds from residuals and spectral gaps.

    share_j  =  |U_j d|^2 / |d|^2,    U_j the first j eigenvectors by |eigenvalue|,    j / n for a random direction

The theorem of Davis and Kahan (1970) bounds the sine of the angle between the computed and the true eigenspace by |R|_F
over the gap after it. The angle between d and the eigenspace changes by no more than that. If residuals resolve no gap
after j, the share lies between those of the nearest j with a resolved gap, since it grows with j.

Gur-Ari, Roberts, Dyer 2018, *Gradient descent happens in a tiny subspace*; Song, Ahn, Yun 2024, *Does SGD really happen
in tiny subspaces?*
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectra.krylov.results import Eigenpairs
from spectra.operator import SymmetricOperator, placed
from spectra.spectrum.subspaces import davis_kahan_bound
from spectra.vectors import sum_shards
from spectra.wording import outline


@dataclass(frozen=True)
class Alignment:
    """The share of a direction in the leading j eigenvectors, for each j from 1 to k; the rest of it is in the bulk."""

    share: np.ndarray  # (k,), for the computed eigenvectors
    lower: np.ndarray  # (k,), bounds of the share for the true eigenvectors
    upper: np.ndarray  # (k,)

    __repr__ = outline


def alignment(operator: SymmetricOperator, pairs: Eigenpairs, k: int, direction: Tensor) -> Alignment:
    """The shares of a direction in the leading eigenvectors of a matrix, up to k of them.

    Args:
        operator: the matrix; its vectors are sharded like those of the pairs.
        pairs: the eigenpairs by falling |eigenvalue|; the gap after the last one is unknown unless there are n.
        k: the largest number of eigenvectors.
        direction: d (n,), not zero, whole on every process.
    """
    k, n = min(k, len(pairs.vectors)), len(direction)
    along = sum_shards(torch.matmul, pairs.vectors, placed(direction, operator, pairs.vectors.device))
    parts = along.double().square().cpu().numpy()[:k] / direction.double().square().sum().item()
    share = np.minimum(np.cumsum(parts), 1.0)
    values, residuals = pairs.values.abs().numpy(), pairs.residuals.numpy()
    turns = np.array([angle_bound(values, residuals, j, n) for j in range(1, k + 1)])
    angles = np.arccos(np.sqrt(share))
    lower = np.square(np.cos(np.minimum(angles + turns, math.pi / 2)))
    upper = np.square(np.cos(np.maximum(angles - turns, 0.0)))
    return Alignment(share, np.maximum.accumulate(lower), np.minimum.accumulate(upper[::-1])[::-1])


def angle_bound(values: np.ndarray, residuals: np.ndarray, j: int, n: int) -> float:
    """A bound of the largest angle between the computed and the true leading j-dimensional eigenspace, at most pi/2."""
    if j == n:
        return 0.0
    bound = davis_kahan_bound(values, residuals, j) if j < len(values) else math.inf
    return math.asin(bound) if bound < 1 else math.pi / 2
