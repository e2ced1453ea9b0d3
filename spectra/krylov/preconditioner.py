"""Spectral preconditioner of A + damping I: known eigenvectors no longer slow the convergence of an iterative solver.

For orthonormal eigenvectors U of A + damping I with eigenvalues L, let M^(1/2) = I + U'((level / |L|)^(1/2) - 1)U. In
M^(1/2) (A + damping I) M^(1/2) each of these eigenvalues is +-`level`, a typical size of the other eigenvalues. The
solver then works on that matrix as on any other. Inaccurate eigenvectors, or those of another matrix, change the number
of steps, not the solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.krylov.results import Eigenpairs
from spectra.krylov.reverse_communication import ReverseCommunication, with_products
from spectra.operator import Deflated, SymmetricOperator
from spectra.vectors import map_shards, norm, on_device, sum_shards


@dataclass(frozen=True)
class SpectralPreconditioner:
    """The preconditioner made from known eigenvectors."""

    basis: Tensor  # (m, n), orthonormal rows, in the memory of the device or of its host
    values: Tensor  # (m,), float64: eigenvalues of A + damping I
    level: float  # a typical size of the other eigenvalues
    device: torch.device  # of the matrix

    def vector(self, index: int) -> Tensor:
        """The eigenvector (n,) of this index, on the device of the matrix."""
        return on_device(self.basis[index], self.device)

    def start(self, b: Tensor) -> Tensor:
        """U'L^-1 U b: the solution in the span of the eigenvectors, for b (n,)."""
        return self._along(b, 1 / self.values)

    def root(self, vector: Tensor) -> Tensor:
        """M^(1/2) v for a vector (n,)."""
        return vector + self._along(vector, (self.level / self.values.abs()).sqrt() - 1)

    def _along(self, vector: Tensor, factors: Tensor) -> Tensor:
        """U'(factors o U v), on the device of v."""
        device, vector = vector.device, on_device(vector, self.basis.device)
        along = sum_shards(torch.mv, self.basis, vector)
        along = along * factors.to(along)
        return on_device(map_shards(lambda part, basis: basis.T @ along, vector, self.basis), device)

    def around(self, run: ReverseCommunication) -> ReverseCommunication:
        """Run a method on M^(1/2) A M^(1/2) in place of A, and return its answer."""

        def multiply(vector: Tensor) -> ReverseCommunication:
            return self.root((yield self.root(vector)))

        return with_products(run, multiply)


def spectral_preconditioner(
    operator: SymmetricOperator, known: Eigenpairs, damping: float, b: Tensor
) -> SpectralPreconditioner | None:
    """Make the preconditioner for `operator`, which is A + damping I, by one product.

    The level is |A w| / |w| for the part w of b (n,) that is orthogonal to the eigenvectors: it lies among the sizes of
    the other eigenvalues. Pairs with a shifted eigenvalue below the residual are left out; None if none remain.
    """
    values = known.values + damping
    good = (values.abs() > known.residuals).nonzero().flatten()
    if not len(good):
        return None
    basis, values = map_shards(lambda rows: rows[good.to(rows.device)], known.vectors), values[good]
    rest, level = Deflated(operator, basis).project(b), values.abs().min().item()
    if norm(rest) > torch.finfo(b.dtype).eps ** 0.5 * norm(b) and len(basis) < operator.shape[0]:
        rest = rest / norm(rest)
        level = norm(operator @ rest) or level
    return SpectralPreconditioner(basis, values, level, operator.device)
