"""How far two matrices agree on their leading eigenspaces, and where no gap makes that a question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectra.spectrum.subspaces import overlap, overlap_error, principal_angles, relative_gap, turning_bound

LEAST_GAP = 0.05  # of an eigenvalue: behind a smaller one, so small a change of the matrix may turn the space at will


@dataclass(frozen=True)
class Leading:
    """Eigenpairs by falling |value|, one more than are compared where there is one; vectors in a common basis."""

    values: np.ndarray  # (k + 1,)
    residuals: np.ndarray  # (k + 1,)
    coordinates: np.ndarray  # (k + 1, r), orthonormal rows

    def gap(self, j: int) -> float:
        """Behind the first j, relative to the j-th; infinite where nothing follows, as they span the whole space."""
        return relative_gap(np.abs(self.values), j) if j < len(self.values) else np.inf

    def bound(self, j: int) -> float:
        """Of the |sin angles|_F between the computed j-space and the true one."""
        return turning_bound(np.abs(self.values), self.residuals, j) if j < len(self.values) else 0.0


@dataclass(frozen=True)
class Agreement:
    """Of the spaces of the first j eigenvectors of A and of B."""

    j: int
    overlap: float  # |U_A U_B'|_F^2 / j
    error: float  # bound, from residuals
    angles: np.ndarray  # (j,) radians, rising
    gap: float  # the smaller of the relative gaps behind j in A and in B
    told: bool  # the gap is there: residuals resolve it, and it is no smaller than LEAST_GAP


def agreements(first: Leading, second: Leading, k: int) -> list[Agreement]:
    """For j = 1 .. k, or as many as both have.

    By the theorem of Davis and Kahan (1970) a change of the size of the gap behind j may turn a j-space by any angle:
    without a gap, overlap and angles say nothing, and `told` is false.
    """
    found = []
    for j in range(1, 1 + min(k, len(first.values), len(second.values))):
        here, there = first.coordinates[:j], second.coordinates[:j]
        bounds, gap = (first.bound(j), second.bound(j)), min(first.gap(j), second.gap(j))
        found.append(
            Agreement(
                j=j,
                overlap=min(overlap(here, there), 1.0),
                error=overlap_error(*bounds, j),
                angles=principal_angles(here, there),
                gap=gap,
                told=max(bounds) < 1 and gap >= LEAST_GAP,
            )
        )
    return found


def rayleigh_quotients(leading: Leading, inside: np.ndarray, k: int) -> np.ndarray:
    """u'B u (k,) for the first k eigenvectors u of A, of `inside` = U B U' (r, r) in their common basis U."""
    c = leading.coordinates[:k]
    return np.einsum("ia,ab,ib->i", c, inside, c)
