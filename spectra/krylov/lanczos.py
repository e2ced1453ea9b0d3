"""The Lanczos loop: A V' = V' T + Q' C.

V (m, n) is an orthonormal basis, T = V A V' the matrix projected on it, Q (p, n) the pending directions,
orthonormal and orthogonal to V, and C (p, m) their coupling. One start vector gives the classical
A V' = V' T + r e_k' with T tridiagonal; more starts give the banded method of Ruhe (1979); replacing V by some
Ritz vectors gives the thick restart of Wu and Simon (2000). The relation holds throughout, and gives the residual
|C s| of every Ritz pair (theta, V's). A run with known eigenvectors U stays in their complement, and satisfies the
relation for P A P with P = I - U'U.

Orthogonalisation is classical Gram-Schmidt, twice ("twice is enough": Giraud, Langou, Rozloznik 2005): matrix
products instead of a loop over vectors. T and C are float64 on the CPU for vectors of any dtype; the coefficients of
a product are copied there together, so that a step waits for the device once. `spectra.krylov.eigensolver` decides
when to restart and when to stop.

The basis may be in host memory. The host then orthogonalises, and only the vector to be multiplied and its product are
copied between host and device: a step reads the basis three times (`remove`), and host memory gives 100 to 300 GB/s
where the connection gives 25 to 50. Copies cannot overlap with products, because each product needs the direction that
results from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.krylov.results import as_cpu_float64
from spectra.operator import SymmetricOperator, empty_rows, random_vectors
from spectra.vectors import copy_into, local, map_rows_inplace, map_shards, norms, on_device, pieces, sum_pieces


@dataclass
class Lanczos:
    """The state of a Lanczos run.

    `begin` makes one, `extend` extends it by one product, and `extend_all` extends several runs at once.
    """

    storage: Tensor  # (rows, n): V, then Q, then free rows
    projected: Tensor  # T
    coupling: Tensor  # C
    known_values: Tensor  # (k,), float64
    known: Tensor  # U (k, n), orthonormal; never copied, so that runs may share it
    device: torch.device  # of the vectors that are multiplied; the storage and U may be on the host
    capacity: int | None = None  # vectors of V up to which storage doubles; beyond, it grows only as needed

    @property
    def size(self) -> int:
        """The number m of basis vectors."""
        return self.projected.shape[0]

    @property
    def basis(self) -> Tensor:
        """The basis V (m, n)."""
        return self.storage[: self.size]

    @property
    def pending(self) -> Tensor:
        """The pending directions Q (p, n)."""
        return self.storage[self.size : self.size + len(self.coupling)]

    @property
    def dimension(self) -> int:
        """The dimension of the space that the run can reach: n less the number of known vectors."""
        return self.storage.shape[1] - len(self.known)

    @property
    def exhausted(self) -> bool:
        """Whether V and Q span the whole space."""
        return self.size + len(self.coupling) >= self.dimension

    def start(self, vector: Tensor) -> Tensor:
        """Orthogonalise a vector (n,) against V and Q, and add it as a pending direction without coupling to V.

        Returns the vector's coefficients along the pending directions, with the new one last. Raises ValueError if the
        vector lies in the span of V and Q.
        """
        rest, along, length = self._orthogonal_part(vector)
        if length == 0:
            raise ValueError("the start vector is zero, or lies in the span of the basis")
        rest, _, again = self._orthogonal_part(rest.div_(length))
        rest.div_(again)
        self.coupling = torch.cat([self.coupling, torch.zeros(1, self.size, dtype=torch.float64)])
        return torch.cat([along[self.size :], along.new_tensor([length])])

    def align(self, weights: Tensor) -> None:
        """Rotate the pending directions among themselves, so that the newest is along Q' `weights` (p,)."""
        mirror = weights / torch.linalg.vector_norm(weights)
        mirror[-1] += math.copysign(1, mirror[-1].item())  # Householder's reflection takes weights to the last axis
        rotation = torch.eye(len(weights)).to(weights) - 2 * torch.outer(mirror, mirror) / mirror.dot(mirror)
        turn = rotation.to(self.storage.device, self.storage.dtype)
        map_rows_inplace(self.pending, turn.matmul)
        self.coupling = rotation @ self.coupling

    def extend(self, operator: SymmetricOperator, index: int = -1) -> None:
        """Multiply one pending direction, by default the newest, and move it into the basis."""
        self.absorb(operator @ self.take(index))

    def take(self, index: int = -1) -> Tensor:
        """Move one pending direction into the basis and return it (n,), on the device.

        Its product must be passed to `absorb` next.
        """
        m, p = self.coupling.shape[1], len(self.coupling)
        index %= p
        if index:
            order = [index, *(i for i in range(p) if i != index)]
            map_rows_inplace(self.pending, lambda rows: rows[torch.tensor(order)])
            self.coupling = self.coupling[order]
        self.projected = torch.nn.functional.pad(self.projected, (0, 1, 0, 1))
        self.projected[m, :m] = self.projected[:m, m] = self.coupling[0]
        self.coupling = torch.nn.functional.pad(self.coupling[1:], (0, 1))
        return on_device(self.storage[m], self.device)

    def absorb(self, image: Tensor) -> None:
        """Add the product (n,) of the direction that `take` returned last."""
        m, before = self.size, self.scale
        rest, along, length = self._orthogonal_part(image)
        lift, size = 1.0, math.hypot(length, torch.linalg.vector_norm(along).item())
        kind = torch.finfo(image.dtype)
        if 0 < size < kind.tiny / kind.eps:  # denormal numbers would lose digits
            lift = 2.0 ** min(100, -math.frexp(size)[1])
            rest, along, length = self._orthogonal_part(image, lift)
            along, length = along / lift, length / lift
        self.projected[-1, -1] = along[m - 1]
        self.coupling[:, -1] = along[m:]
        # In an invariant subspace only rounding is left, of the size of eps times what was subtracted.
        if length > 10 * kind.eps * max(size, before) and not self.exhausted:
            column = torch.zeros(1, m, dtype=torch.float64)
            column[0, -1] = length
            rest.div_(lift * length)
            self.coupling = torch.cat([self.coupling, column])

    def rotate(self, weights: Tensor, first: int) -> None:
        """Rotate the basis vectors from index `first` on among themselves.

        The first j of them become, up to sign, their combinations with the orthonormal columns of `weights`
        (m - first, j).
        """
        left, held = weights.clone(), local(self.basis)
        for j in range(weights.shape[1]):
            mirror = left[j:, j] / torch.linalg.vector_norm(left[j:, j])
            mirror[0] += math.copysign(1, mirror[0].item())  # Householder's reflection, as in `align`
            mirror /= torch.linalg.vector_norm(mirror)
            place = first + j
            for rows in (left[j:], self.projected[place:], self.projected.T[place:], self.coupling.T[place:]):
                rows.sub_(2 * torch.outer(mirror, mirror @ rows))
            turn = mirror.to(held.device, held.dtype)
            held[place:].addr_(turn, turn @ held[place:], alpha=-2)

    def correct(self, index: int, image: Tensor) -> None:
        """Replace the product of basis vector `index` by a more precise one (n,)."""
        before = self.scale
        rest, along, length = self._orthogonal_part(image)
        self.projected[index] = self.projected[:, index] = along[: self.size]
        self.coupling[:, index] = along[self.size :]
        size = math.hypot(length, torch.linalg.vector_norm(along).item())
        if length > 10 * torch.finfo(image.dtype).eps * max(size, before) and not self.exhausted:
            column = torch.zeros(1, self.size, dtype=torch.float64)
            column[0, index] = length
            rest.div_(length)
            self.coupling = torch.cat([self.coupling, column])

    def narrow(self) -> None:
        """Reduce the pending directions to the span that the basis is coupled to."""
        turn, sizes, _ = torch.linalg.svd(self.coupling, full_matrices=False)
        turn = turn[:, sizes > 10 * torch.finfo(self.storage.dtype).eps * self.scale].T
        map_rows_inplace(self.pending, turn.to(self.storage.device, self.storage.dtype).matmul)
        self.coupling = turn @ self.coupling

    @property
    def scale(self) -> float:
        """A lower bound of |A|: the largest entry of T, or the largest known value."""
        entries = (x.abs().max().item() for x in (self.projected, self.known_values) if x.numel())
        return max(entries, default=0.0)

    @property
    def finite(self) -> bool:
        """Whether every product so far was finite."""
        return math.isfinite(self.scale)

    def ritz(self, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (m,) in rising order, their coordinates S (m, m) as columns, and residuals (m,).

        They are those of the basis from its vector `first` on. All are nan if a product was not finite, because LAPACK
        would raise.
        """
        if not self.finite:
            missing = torch.full_like(self.projected[first:, first:], math.nan)
            return missing[0], missing, missing[0]
        values, coordinates = torch.linalg.eigh(self.projected[first:, first:])
        return values, coordinates, torch.linalg.vector_norm(self.coupling[:, first:] @ coordinates, dim=0)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """The vectors (k, n) with these coordinates (m, k) in the basis."""
        return map_shards(coordinates.T.to(self.storage.device, self.storage.dtype).matmul, self.basis)

    def restart(self, coordinates: Tensor) -> None:
        """Keep only the span of some Ritz vectors, given by their coordinates (m, k); T becomes diagonal."""
        turn = coordinates.T.to(self.storage.device, self.storage.dtype)
        map_rows_inplace(self.basis, turn.matmul)
        rows, before = local(self.storage), self.size
        values = torch.diagonal(coordinates.T @ self.projected @ coordinates)
        self.projected = torch.diag(values)
        self.coupling = self.coupling @ coordinates
        if self.size < before:
            for i in range(len(self.coupling)):
                rows[self.size + i].copy_(rows[before + i])

    def release(self) -> None:
        """Free the memory of V and Q, when only T and C are still needed."""
        self.storage = map_shards(lambda rows: rows.new_empty(0, rows.shape[1]), self.storage)

    def _orthogonal_part(self, vector: Tensor, lift: float = 1.0) -> tuple[Tensor, Tensor, float]:
        """Orthogonalise `lift` times a vector against U, V and Q: the rest, the coefficients along V and Q, the norm.

        The rest is made in the row after Q: allocating memory for each subtraction takes longer than the subtraction.
        """
        rest = self._room()
        copy_into(rest, vector)
        if lift != 1:
            rest.mul_(lift)
        held = self.storage[: self.size + len(self.coupling)]
        along = torch.zeros(len(held), dtype=torch.float64, device=rest.device)
        if len(self.known):
            _, first, _, second = remove(rest, [self.known, held] * 2)
        else:
            first, second = remove(rest, [held] * 2)
        along += first
        along += second
        length = norms(rest, dim=None)
        numbers = as_cpu_float64(torch.cat([along, length[None]]))  # the only wait for the device
        return rest, numbers[:-1], numbers[-1].item()

    def _room(self) -> Tensor:
        """The row of storage after Q; storage grows if it is full."""
        place, rows = self.size + len(self.coupling), len(self.storage)
        if place == rows:
            wanted = min(max(2 * rows, 32), self.dimension)
            if self.capacity:
                wanted = min(wanted, self.capacity + len(self.coupling) + 1)
            grown = map_shards(lambda rows: rows.new_empty(max(wanted, place + 1), rows.shape[1]), self.storage)
            grown[:place] = self.storage
            self.storage = grown
        return self.storage[place]


def remove(vector: Tensor, bases: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonalise a vector (n,), in place, against several sets of orthonormal rows (k, n), one after the other.

    Each pass subtracts the projection that the previous pass computed, and computes the next, so that the rows are read
    once for both. Returns the coefficients (k,) along each set of rows.
    """
    found: list[Tensor] = []

    def removed(part: Tensor, rows: Tensor) -> Tensor:
        return part.addmv_(rows.T, found[-1].to(part.dtype), alpha=-1)

    def step(part: Tensor, rows: Tensor, *before: Tensor) -> Tensor:
        return rows @ (removed(part, *before) if before else part)

    for i, rows in enumerate(bases):
        found.append(sum_pieces(step, vector, rows, *bases[max(i - 1, 0) : i]))
    part, rows = local(vector), local(bases[-1])
    for piece in pieces(part):
        removed(part[piece], rows[:, piece])
    return found


def begin(
    operator: SymmetricOperator,
    start: Tensor,
    *,
    known: tuple[Tensor, Tensor] | None = None,
    rows: int = 32,
    capacity: int | None = None,
    place: torch.device | None = None,
) -> Lanczos:
    """Begin a run: an empty basis and one pending direction.

    Args:
        operator: the matrix (n, n).
        start: the starting vector (n,).
        known: eigenvalues (k,) and orthonormal eigenvectors (k, n); the run stays in their complement.
        rows: the number of vectors that storage has room for at first; it doubles when it is full.
        capacity: the number of basis vectors up to which storage doubles.
        place: the device that holds the basis, by default the operator's.
    """
    place = place or operator.device
    values, vectors = known or no_pairs(operator, place)
    state = Lanczos(
        storage=empty_rows(operator, min(rows, operator.shape[0] - len(values)), place),
        projected=torch.zeros(0, 0, dtype=torch.float64),
        coupling=torch.zeros(0, 0, dtype=torch.float64),
        known_values=values,
        known=on_device(vectors, place),
        device=operator.device,
        capacity=capacity,
    )
    state.start(start)
    return state


def no_pairs(operator: SymmetricOperator, place: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Empty eigenvalues (0,) and eigenvectors (0, n)."""
    return torch.zeros(0, dtype=torch.float64), empty_rows(operator, 0, place)


def extend_all(states: list[Lanczos], operator: SymmetricOperator) -> None:
    """Extend each run by one product, in one call for all of them."""
    images = operator @ torch.stack([state.take() for state in states]).T
    for state, image in zip(states, images.T.contiguous(), strict=True):
        state.absorb(image)


def lanczos(operator: SymmetricOperator, start: Tensor, steps: int) -> Lanczos:
    """Run `steps` Lanczos steps from one start vector (n,), or fewer if its Krylov space is exhausted."""
    state = begin(operator, start)
    while state.size < steps and len(state.pending):
        state.extend(operator)
    return state


def random_start(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """A standard normal starting vector (n,)."""
    return random_vectors(operator, 1, generator)[0]
