"""A sketch A W of a matrix by random signs W, and estimates from it with some test vectors left out.

Q is an orthonormal basis of A W = Q R. Each column of Q R^-T is orthogonal to all columns of A W except one. So without
some test vectors, Q spans the complement of their columns of Q R^-T, and vectors can be left out in coordinates along
Q, without products or another factorisation (after Epperly, Tropp, Webber 2024, who leave out one at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.krylov.blocks import products
from spectra.krylov.results import as_cpu_float64
from spectra.operator import SymmetricOperator, empty_rows, random_signs
from spectra.vectors import map_shards, orthonormal, row_dots, sum_shards


class Sketch:
    """Test vectors W, A W, the basis Q of A W, and A Q, all as rows (q, n); it grows without repeating products."""

    def __init__(self, operator: SymmetricOperator, place: torch.device | None = None):
        self.operator, self.place = operator, place or operator.device  # the device of all of them
        self.tests = self.images = self.basis = self.basis_images = empty_rows(operator, 0, self.place)
        self.triangle = torch.zeros(0, 0, dtype=torch.float64)

    def grow(self, size: int, generator: torch.Generator) -> None:
        """Add test vectors until there are `size` of them."""
        q = len(self.tests)
        if size <= q:
            return
        tests = self.signs(size - q, generator)
        images = self.multiplied(tests)
        rest, across = images, torch.zeros(q, size - q, dtype=torch.float64)
        twice = range(2 if q else 0)
        for _ in twice:
            h = inner(self.basis, rest)
            rest = without(rest, self.basis, h)
            across += as_cpu_float64(h)
        new = orthonormal(rest)[0]
        for _ in twice:
            new = self.outside(without(new, self.basis, inner(self.basis, new)), generator)
        corner = torch.nn.functional.pad(as_cpu_float64(inner(new, rest)), (q, 0))
        self.triangle = torch.cat([torch.cat([self.triangle, across], dim=1), corner])
        self.tests, self.images = torch.cat([self.tests, tests]), torch.cat([self.images, images])
        self.basis = torch.cat([self.basis, new])
        self.basis_images = torch.cat([self.basis_images, self.multiplied(new)])

    def signs(self, count: int, generator: torch.Generator) -> Tensor:
        """Random signs (count, n)."""
        return random_signs(self.operator, count, generator, self.place)

    def multiplied(self, rows: Tensor) -> Tensor:
        """The products (k, n) of rows (k, n)."""
        return (self.operator @ rows.T).T if self.place == self.operator.device else products(self.operator, rows)

    def outside(self, new: Tensor, generator: torch.Generator) -> Tensor:
        """Orthonormalise `new` (k, n) outside the basis, with random directions in place of those mostly inside it.

        New directions of A W are orthogonal to the basis. If A W is rank-deficient, some are arbitrary and need not be.
        """
        directions, triangle = orthonormal(new)
        spare = triangle.diagonal().abs()[:, None] < 0.5
        if not spare.any():
            return directions
        drawn = self.signs(len(new), generator)
        drawn = without(drawn, self.basis, inner(self.basis, drawn))
        return orthonormal(map_shards(lambda own, other: torch.where(spare.to(own.device), other, own), new, drawn))[0]

    def coordinates(self) -> Coordinates:
        """The coordinates of all test vectors along Q."""
        projected = as_cpu_float64(inner(self.basis, self.basis_images))
        along, lone = as_cpu_float64(inner(self.basis, self.tests)), inverse(self.triangle).T
        return Coordinates(
            removed=lone[:, :0],
            projected=projected,
            lone=lone,
            projected_lone=projected @ lone,
            along=along,
            projected_along=projected @ along,
            images_along=as_cpu_float64(inner(self.basis_images, self.tests)),
            quadratic=as_cpu_float64(row_dots(self.tests, self.images)),
        )


def inner(these: Tensor, others: Tensor) -> Tensor:
    """The inner products u_i'v_j of rows."""
    return sum_shards(lambda u, v: u @ v.T, these, others)


def without(rows: Tensor, basis: Tensor, along: Tensor) -> Tensor:
    """Rows (k, n) less their parts along a basis (q, n), given the coefficients (q, k)."""
    return map_shards(lambda part, basis: part - along.T @ basis, rows, basis)


def others(count: int, left_out: Sequence[int]) -> list[int]:
    """The numbers below `count` that are not left out, in order."""
    return sorted(set(range(count)) - set(left_out))


def inverse(triangle: Tensor) -> Tensor:
    """The inverse of R, or zero if A W is rank-deficient: leaving out one column then does not change its span."""
    diagonal = triangle.diagonal().abs()
    if diagonal.min() <= torch.finfo(torch.float64).eps * len(diagonal) * diagonal.max():
        return torch.zeros_like(triangle)
    return torch.linalg.inv(triangle)


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of some of the test vectors along the Q of all: float64, one column per vector.

    N spans the directions that Q loses with the vectors left out, and P = I - NN' projects them out.
    """

    removed: Tensor  # N (q, g), orthonormal
    projected: Tensor  # H = P Q'A Q P (q, q)
    lone: Tensor  # the direction that only this vector contributes to Q, of any length
    projected_lone: Tensor  # H times `lone`
    along: Tensor  # P Q'w_i
    projected_along: Tensor  # H times `along`
    images_along: Tensor  # P Q'A w_i
    quadratic: Tensor  # w_i'A w_i

    def without(self, left_out: Sequence[int]) -> Coordinates:
        """The coordinates with some test vectors left out, for the Q that the others span."""
        kept = others(len(self.quadratic), left_out)
        removed = self.lone[:, left_out]
        removed = torch.linalg.qr(removed)[0] if removed.any() else removed[:, :0]
        across = self.projected @ removed  # H N
        twice = removed @ (across.T @ removed) - across

        def inside(columns: Tensor) -> Tensor:
            return columns - removed @ (removed.T @ columns)

        def again(columns: Tensor, images: Tensor) -> Tensor:
            """P H P times columns, given H times them."""
            return inside(images[:, kept] - across @ (removed.T @ columns[:, kept]))

        return Coordinates(
            removed=torch.cat([self.removed, removed], dim=1),
            projected=self.projected + twice @ removed.T - removed @ across.T,
            lone=inside(self.lone[:, kept]),
            projected_lone=again(self.lone, self.projected_lone),
            along=inside(self.along[:, kept]),
            projected_along=again(self.along, self.projected_along),
            images_along=inside(self.images_along[:, kept]),
            quadratic=self.quadratic[kept],
        )

    def alone(self) -> tuple[Tensor, Tensor]:
        """Unit columns s_i along the direction that only w_i contributes to Q, zero if there is none; and H s_i."""
        lengths = torch.linalg.vector_norm(self.lone, dim=0)
        lengths[lengths == 0] = 1
        return self.lone / lengths, self.projected_lone / lengths

    def left(self, alone: Tensor, projected_alone: Tensor) -> tuple[Tensor, Tensor]:
        """Q_i'w_i and H Q_i'w_i: the coordinates of each vector along the Q of the other vectors."""
        own = (alone * self.along).sum(dim=0)
        return self.along - alone * own, self.projected_along - projected_alone * own
