"""Comparison of eigenspaces, and whether the gap behind an eigenspace makes the comparison reliable.

Bases are orthonormal rows (k, n), as eigenvectors are saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import subspace_angles

LEAST_GAP = 0.05  # of an eigenvalue; with a smaller gap, an equally small change of the matrix may rotate the space


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the overlap (1/k) |U V'|_F^2 of two k-spaces: 1 if they are equal, 0 if orthogonal, k/n by chance.

    Gur-Ari, Roberts, Dyer 2018, *Gradient descent happens in a tiny subspace*.
    """
    return float(np.square(first @ second.T).sum() / len(first))


def principal_angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the principal angles (k,) between two k-spaces, in radians, rising (Björck, Golub 1973)."""
    return subspace_angles(first.T, second.T)[::-1]


def share_inside(basis: np.ndarray, vector: np.ndarray) -> float:
    """The share |U d|^2 / |d|^2 of a vector (n,) that lies in the space; k/n by chance, nan for the zero vector."""
    length = np.square(vector).sum()
    return float(np.square(basis @ vector).sum() / length) if length else math.nan


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of the angle between two vectors (n,); nan where one is zero."""
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / lengths) if lengths else math.nan


def relative_gap(values: np.ndarray, k: int) -> float:
    """The relative gap |lambda_k - lambda_(k+1)| / |lambda_k|, at most 1 (which opposite signs would exceed)."""
    last, following = values[k - 1], values[k]
    return float(min(abs(last - following) / abs(last), 1.0)) if last else 0.0


def widest_gap(spectra: Sequence[np.ndarray]) -> int | None:
    """The k that maximises the median of `relative_gap` over all spectra; None with fewer than two values each.

    Args:
        spectra: leading eigenvalues of each checkpoint, from one end inwards; k is below the shortest length.
    """
    counts = range(1, min(map(len, spectra), default=0))
    medians = {k: np.median([relative_gap(values, k) for values in spectra]) for k in counts}
    return max(medians, key=lambda k: medians[k], default=None)


def davis_kahan_bound(values: np.ndarray, residuals: np.ndarray, k: int) -> float:
    """Bound |sin angles|_F between the computed leading k-space and the true one (Davis, Kahan 1970).

    The bound is |R|_F over the distance from the computed values to the true eigenvalues outside; if none was missed,
    the nearest of these is within its residual of `values[k]`. From 1 on, the residuals do not resolve a gap. The bound
    is at most sqrt(k), its value if the two computed values are closer than that residual.
    """
    error = math.sqrt(np.square(residuals[:k]).sum())
    distance = abs(values[k - 1] - values[k]) - residuals[k]
    return float(min(error / distance, math.sqrt(k))) if distance > 0 else math.sqrt(k)


class Gap(NamedTuple):
    """The gap behind the first k eigenvalues of a matrix."""

    relative: float  # `relative_gap`; infinite where the k eigenvectors span the whole space
    bound: float  # `davis_kahan_bound` of the leading k-space

    @property
    def reliable(self) -> bool:
        """Whether there is a gap: residuals resolve it, and it is no smaller than `LEAST_GAP`.

        By the theorem of Davis and Kahan (1970), a change of the matrix as large as the gap may rotate the k-space by
        any angle. Without a gap, overlaps and angles mean nothing.
        """
        return self.bound < 1 and self.relative >= LEAST_GAP


WHOLE_SPACE = Gap(math.inf, 0.0)  # no eigenvalue follows, and the space cannot rotate


def gap_behind(values: np.ndarray, residuals: np.ndarray, k: int) -> Gap | None:
    """The gap behind the first k of the eigenvalues (m,); None if no further eigenvalue was found.

    Args:
        values: the eigenvalues (m,) from one end inwards; |values| if they are ordered by magnitude.
        residuals: the residual |A u - lambda u| of each (m,).
    """
    if k >= len(values):
        return None
    return Gap(relative_gap(values, k), davis_kahan_bound(values, residuals, k))


def overlap_error(first: float, second: float, k: int) -> float:
    """Bound the error of the overlap of two k-spaces, given the `davis_kahan_bound` of each; at most 1.

    The projectors move by at most sqrt(2) |sin|_F each, and |tr(dP Q)| <= |dP|_F sqrt(k).
    """
    return min(math.sqrt(2 / k) * (first + second), 1.0)
