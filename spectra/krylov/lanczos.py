"""The Lanczos loop: A V' = V' T + Q' C.

V (m, n) is an orthonormal basis, T = V A V' the matrix projected on it, Q (p, n) the pending directions,
orthonormal and orthogonal to V, and C (p, m) their coupling. One start vector gives the classical
A V' = V' T + r e_k' with T tridiagonal; more starts give the banded method of Ruhe (1979); replacing V by some
Ritz vectors gives the thick restart of Wu and Simon (2000). The law holds through all of it, and with it the
residual |C s| of every Ritz pair (theta, V's).

Orthogonalisation is classical Gram-Schmidt, twice ("twice is enough": Giraud, Langou, Rozloznik 2005): matrix
products instead of a loop over vectors. T and C are float64 on the CPU whatever the vectors are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.krylov.results import as_cpu_float64
from spectra.operator import SymmetricOperator, norm, random_vectors


@dataclass
class Lanczos:
    """The state of a run; `begin` makes one, `extend` takes one product further."""

    storage: Tensor  # (capacity, n); its first rows are V
    projected: Tensor  # T
    pending: Tensor  # Q
    coupling: Tensor  # C
    capacity: int | None = None  # rows up to which storage doubles; and again beyond, where it must

    @property
    def size(self) -> int:
        return self.projected.shape[0]

    @property
    def basis(self) -> Tensor:
        return self.storage[: self.size]

    @property
    def dimension(self) -> int:
        return self.storage.shape[1]

    @property
    def exhausted(self) -> bool:
        """Whether V and Q already span the whole space."""
        return self.size + len(self.pending) >= self.dimension

    def start(self, vector: Tensor) -> Tensor:
        """Make what a vector (n,) has outside V and Q pending, without coupling to what is there.

        Returns the vector's coefficients along the pending directions, with the new one last.
        """
        rest, _, across = self._orthogonal_part(vector)
        if (length := norm(rest)) == 0:
            raise ValueError("a start vector inside the span of the basis, or zero: nothing is left of it")
        direction = self._orthogonal_part(rest / length)[0]
        self._push(direction / norm(direction), torch.zeros(1, self.size, dtype=torch.float64))
        return torch.cat([across, across.new_tensor([length])])

    def align(self, weights: Tensor) -> None:
        """Rotate the pending directions among themselves, so that the newest is along Q' weights."""
        mirror = weights / torch.linalg.vector_norm(weights)
        mirror[-1] += math.copysign(1, mirror[-1].item())  # Householder's reflection takes weights to the last axis
        rotation = torch.eye(len(weights)).to(weights) - 2 * torch.outer(mirror, mirror) / mirror.dot(mirror)
        self.pending = rotation.to(self.pending) @ self.pending
        self.coupling = rotation @ self.coupling

    def extend(self, operator: SymmetricOperator, index: int = -1) -> None:
        """Multiply one pending direction, by default the newest, and take it into the basis."""
        index %= len(self.pending)
        direction, row = self.pending[index], self.coupling[index]
        others = [i for i in range(len(self.pending)) if i != index]
        self.pending, self.coupling = self.pending[others], self.coupling[others]
        self._append(direction, row)

        image = operator @ direction
        rest, inside, across = self._orthogonal_part(image)
        self.projected[-1, -1] = inside[-1]
        self.coupling[:, -1] = across
        length, scale = norm(rest), norm(image)
        # An invariant subspace leaves rounding only, of the size of epsilon times what was subtracted.
        if length > 10 * torch.finfo(operator.dtype).eps * max(scale, self.scale) and not self.exhausted:
            column = torch.zeros(1, self.size, dtype=torch.float64)
            column[0, -1] = length
            self._push(rest / length, column)

    @property
    def scale(self) -> float:
        """A lower bound of |A|: the largest entry of T."""
        return self.projected.abs().max().item() if self.size else 0.0

    @property
    def finite(self) -> bool:
        """Whether every product so far was."""
        return math.isfinite(self.scale)

    def ritz(self, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (m,) in rising order, their coordinates S (m, m) by columns, and residuals (m,).

        Of the basis from its vector `first` on. All nan where a product was not finite, since LAPACK raises then.
        """
        if not self.finite:
            missing = torch.full_like(self.projected[first:, first:], math.nan)
            return missing[0], missing, missing[0]
        values, coordinates = torch.linalg.eigh(self.projected[first:, first:])
        return values, coordinates, torch.linalg.vector_norm(self.coupling[:, first:] @ coordinates, dim=0)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Vectors (k, n) of coordinates (m, k)."""
        return coordinates.T.to(self.basis.device, self.basis.dtype) @ self.basis

    def restart(self, coordinates: Tensor) -> None:
        """Keep only the span of some Ritz vectors, given by coordinates (m, k); T becomes diagonal."""
        kept = self.vectors(coordinates)
        values = torch.diagonal(coordinates.T @ self.projected @ coordinates)
        self.storage[: len(kept)] = kept
        self.projected = torch.diag(values)
        self.coupling = self.coupling @ coordinates

    def _orthogonal_part(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of a vector, and its coefficients along V and along Q."""
        inside = torch.zeros(self.size, dtype=torch.float64)
        across = torch.zeros(len(self.pending), dtype=torch.float64)
        for _ in range(2):
            h, g = self.basis @ vector, self.pending @ vector
            vector = vector - self.basis.T @ h - self.pending.T @ g
            inside += as_cpu_float64(h)
            across += as_cpu_float64(g)
        return vector, inside, across

    def _append(self, direction: Tensor, row: Tensor) -> None:
        m = self.size
        if m == len(self.storage):
            rows = min(max(2 * m, 32), self.dimension)
            rows = min(rows, self.capacity) if self.capacity and m < self.capacity else rows
            grown = self.storage.new_empty(rows, self.dimension)
            grown[:m] = self.storage
            self.storage = grown
        self.storage[m] = direction
        self.projected = torch.nn.functional.pad(self.projected, (0, 1, 0, 1))
        self.projected[m, :m] = self.projected[:m, m] = row
        self.coupling = torch.nn.functional.pad(self.coupling, (0, 1))

    def _push(self, direction: Tensor, row: Tensor) -> None:
        self.pending = torch.cat([self.pending, direction[None]])
        self.coupling = torch.cat([self.coupling, row])


def begin(operator: SymmetricOperator, start: Tensor, capacity: int | None = None) -> Lanczos:
    """An empty basis with one pending direction; storage doubles as it fills, up to `capacity`."""
    n = operator.shape[0]
    vectors = {"dtype": operator.dtype, "device": operator.device}
    state = Lanczos(
        storage=torch.empty(min(n, 32), n, **vectors),
        capacity=capacity,
        projected=torch.zeros(0, 0, dtype=torch.float64),
        pending=torch.zeros(0, n, **vectors),
        coupling=torch.zeros(0, 0, dtype=torch.float64),
    )
    state.start(start)
    return state


def beside(values: Tensor, storage: Tensor, start: Tensor) -> Lanczos:
    """A run orthogonal to known pairs, taken as exact, whose vectors are the first rows of `storage`."""
    state = Lanczos(
        storage=storage,
        projected=torch.diag(values),
        pending=storage[:0],
        coupling=values.new_zeros(0, len(values)),
    )
    state.start(start)
    return state


def lanczos(operator: SymmetricOperator, start: Tensor, steps: int) -> Lanczos:
    """`steps` products from one start vector (n,), fewer where its Krylov space is exhausted."""
    state = begin(operator, start)
    while state.size < steps and len(state.pending):
        state.extend(operator)
    return state


def random_start(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    return random_vectors(operator, 1, generator)[0]
