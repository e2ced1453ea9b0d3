"""Overlap of the leading eigenspaces of two matrices, and whether a spectral gap makes it reliable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectra.spectrum.subspaces import WHOLE_SPACE, Gap, gap_behind, overlap, overlap_error, principal_angles


@dataclass(frozen=True)
class LeadingEigenpairs:
    """Leading eigenpairs by falling |value|, one more than are compared if there is one; vectors in a common basis."""

    values: np.ndarray  # (k + 1,)
    residuals: np.ndarray  # (k + 1,)
    coordinates: np.ndarray  # (k + 1, r), orthonormal rows

    def gap(self, j: int) -> Gap:
        """The spectral gap after the first j eigenvalues; `WHOLE_SPACE` if there are no others."""
        return gap_behind(np.abs(self.values), self.residuals, j) or WHOLE_SPACE


@dataclass(frozen=True)
class Agreement:
    """The agreement of the spans of the first j eigenvectors of A and of B."""

    j: int
    overlap: float  # |U_A U_B'|_F^2 / j
    error: float  # bound, from residuals
    angles: np.ndarray  # (j,) radians, rising
    gap: float  # the smaller of the relative gaps after j in A and in B
    reliable: bool  # there is a gap after j in A and in B (`Gap.reliable`)


def agreements(first: LeadingEigenpairs, second: LeadingEigenpairs, k: int) -> list[Agreement]:
    """The agreement of the leading j-dimensional eigenspaces for j = 1 .. k, or up to what both matrices have."""
    found = []
    for j in range(1, 1 + min(k, len(first.values), len(second.values))):
        here, there = first.coordinates[:j], second.coordinates[:j]
        gaps = first.gap(j), second.gap(j)
        found.append(
            Agreement(
                j=j,
                overlap=min(overlap(here, there), 1.0),
                error=overlap_error(gaps[0].bound, gaps[1].bound, j),
                angles=principal_angles(here, there),
                gap=min(gap.relative for gap in gaps),
                reliable=all(gap.reliable for gap in gaps),
            )
        )
    return found


def rayleigh_quotients(leading: LeadingEigenpairs, inside: np.ndarray, k: int) -> np.ndarray:
    """The Rayleigh quotients u'B u (k,) of the first k eigenvectors u of A.

    Args:
        leading: the eigenpairs of A, in the coordinates of a common basis U (r, n).
        inside: U B U', (r, r).
        k: the number of eigenvectors.
    """
    c = leading.coordinates[:k]
    return np.einsum("ia,ab,ib->i", c, inside, c)
