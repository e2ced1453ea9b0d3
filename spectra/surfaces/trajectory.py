"""Find the plane through a checkpoint that is nearest to a trajectory of checkpoints, and their coordinates in it.

With M (k, n) the matrix of rows theta_i - theta, the plane is spanned by the two leading right singular vectors of M,
which explain a share of the squared distances |theta_i - theta|^2. They are computed from M M' (k, k), so that only as
many rows are held at once as fit in memory.

Li, Xu, Taylor, Studer, Goldstein 2018, *Visualizing the loss landscape of neural nets*, section 7, take the components
about the mean of the trajectory and draw them through its end. Here they are taken about the checkpoint itself, so that
no plane through it is nearer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectra.vectors import dot

FLAT = 1e-6  # of the first singular value: a smaller second one is rounding


@dataclass(frozen=True)
class NearestPlane:
    """Two orthonormal directions, and the coordinates of k points in their plane."""

    directions: tuple[Tensor, Tensor]  # (n,) each
    coordinates: np.ndarray  # (k, 2)
    distances: np.ndarray  # (k,) of the points from the plane
    shares: np.ndarray  # (2,) of the squared distances from the origin, along each direction


def nearest_plane(row: Callable[[int], Tensor], count: int, held: int) -> NearestPlane | None:
    """The plane through the origin that is nearest to some points, by least squares; None if they lie on a line.

    Args:
        row: returns the point (n,) with this index; it is called twice or more for each.
        count: the number of points.
        held: the number of points that fit in memory at once.
    """
    products = gram(row, count, max(1, held))
    values, vectors = np.linalg.eigh(products)
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    if count < 2 or not values[1] > FLAT**2 * values[0]:
        return None
    scales = np.sqrt(values[:2])
    signs = np.sign(
        vectors[np.abs(vectors[:, :2]).argmax(axis=0), [0, 1]]
    )  # the coordinate of the farthest point is positive
    weights = vectors[:, :2] * signs / scales  # of the rows in each direction
    first = row(0)
    sums = [torch.zeros_like(first), torch.zeros_like(first)]
    for i in range(count):
        point = row(i)
        for total, weight in zip(sums, weights[i], strict=True):
            total.add_(point, alpha=float(weight))
    coordinates = products @ weights
    inside = np.square(coordinates).sum(axis=1)
    distances = np.sqrt((np.diag(products) - inside).clip(min=0.0))
    return NearestPlane((sums[0], sums[1]), coordinates, distances, values[:2] / values.sum())


def gram(row: Callable[[int], Tensor], count: int, held: int) -> np.ndarray:
    """The inner products (k, k) of all pairs of rows, in float64, with at most `held` + 1 rows in memory."""
    products = np.zeros((count, count))
    for first in range(0, count, held):
        block = [row(i) for i in range(first, min(first + held, count))]
        for j in range(first, count):
            other = block[j - first] if j - first < len(block) else row(j)
            for i, one in enumerate(block, start=first):
                products[i, j] = products[j, i] = dot(one, other)
    return products
