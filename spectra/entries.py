"""Check that the entries of a dense or sparse matrix are finite and symmetric, and read its diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spectra.errors import ArgumentError
from spectra.vectors import LEAST, MOST, WITHIN
from spectra.wording import counted

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK = 1024  # rows and columns of a tile
NOT_SYMMETRIC = "give its symmetric part (A + A') / 2, or A'A for the squared singular values of A"


def refuse_entries(matrix: Tensor, argument: str, single: bool = True) -> None:
    """Raise ArgumentError where an entry is not finite, or the matrix is not symmetric up to rounding.

    Rounding is sqrt(eps) times the largest entry, as in `spectra.check_operator`; with `single`, eps is that of float32
    at least, since entries in float64 may have been computed in float32.
    """
    found = sparse_extremes(matrix) if matrix.layout is torch.sparse_csr else dense_extremes(matrix)
    if found.bad:
        what = f"{counted(found.bad, 'entry', 'entries')} of the matrix {'is' if found.bad == 1 else 'are'} not finite"
        raise ArgumentError(f"`{argument}`: {what}, the first at {place(found.first_bad)}; give finite numbers")
    if found.largest and not LEAST < found.largest < MOST:
        raise ArgumentError(f"`{argument}`: the largest entry {found.largest:.1e} is not {WITHIN}; scale the matrix")
    kinds = (matrix.dtype, torch.float32) if single else (matrix.dtype,)
    allowed = max(torch.finfo(kind).eps for kind in kinds) ** 0.5 * found.largest
    if found.apart > allowed:
        share = found.apart / found.largest
        raise ArgumentError(
            f"`{argument}`: the matrix is not symmetric: it differs from its transpose by {found.apart:.2g} at "
            f"{place(found.furthest)}, {share:.1e} of its largest entry; {NOT_SYMMETRIC}"
        )


def place(index: tuple[int, int]) -> str:
    """A row and a column in words, counted from 1."""
    return f"row {index[0] + 1:,}, column {index[1] + 1:,}"


class Extremes:
    """The largest |A_ij|, the largest |A_ij - A_ji|, and the entries that are not finite."""

    def __init__(self):
        self.largest = self.apart = 0.0
        self.bad = 0
        self.first_bad: tuple[int, int] = (0, 0)
        self.furthest: tuple[int, int] = (0, 0)

    def add_bad(self, count: int, first: tuple[int, int]) -> None:
        """Count entries that are not finite, the first of them at `first`."""
        if count:
            self.first_bad = min(self.first_bad, first) if self.bad else first
            self.bad += count


def dense_extremes(matrix: Tensor) -> Extremes:
    """The extremes of a dense matrix, found tile by tile, so that a matrix in a file is read once."""
    found = Extremes()
    for rows, columns in tiles(len(matrix)):
        tile, mirror = matrix[rows, columns], matrix[columns, rows]
        halves = ((tile, rows, columns), (mirror, columns, rows)) if rows != columns else ((tile, rows, columns),)
        sizes = [part.abs().amax().item() for part, _, _ in halves]
        if not all(map(math.isfinite, sizes)):
            for part, down, across in halves:
                if len(bad := (~part.isfinite()).nonzero()):
                    i, j = bad[0].tolist()
                    found.add_bad(len(bad), (down.start + i, across.start + j))
            continue
        found.largest = max(found.largest, *sizes)
        apart = (tile - mirror.T).abs()
        if (most := apart.amax().item()) > found.apart:
            i, j = divmod(int(apart.argmax()), apart.shape[1])
            found.apart, found.furthest = most, (rows.start + i, columns.start + j)
    return found


def tiles(n: int) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles of the upper triangle of an (n, n) matrix, including those on the diagonal."""
    starts = range(0, n, BLOCK)
    for i in starts:
        for j in starts[i // BLOCK :]:
            yield slice(i, min(i + BLOCK, n)), slice(j, min(j + BLOCK, n))


def sparse_extremes(matrix: Tensor) -> Extremes:
    """The extremes of a sparse matrix."""
    found, rows = Extremes(), as_scipy(matrix)
    if not rows.nnz:
        return found
    found.largest = float(abs(rows.data).max())
    if not math.isfinite(found.largest):
        (bad,) = (~np.isfinite(rows.data)).nonzero()
        row = int(np.searchsorted(rows.indptr, bad[0], side="right")) - 1
        found.add_bad(len(bad), (row, int(rows.indices[bad[0]])))
        return found
    apart = (rows - rows.T).tocoo()
    if apart.nnz:
        most = int(abs(apart.data).argmax())
        found.apart, found.furthest = float(abs(apart.data[most])), (int(apart.row[most]), int(apart.col[most]))
    return found


def diagonal(matrix: Tensor) -> Tensor:
    """The diagonal (n,) of a matrix, dense or in CSR form."""
    return matrix.diagonal() if matrix.layout is torch.strided else torch.from_numpy(as_scipy(matrix).diagonal())


def as_scipy(matrix: Tensor) -> csr_array:
    """Convert a sparse CSR tensor to SciPy's csr_array, which shares its memory if it is on the CPU."""
    from scipy.sparse import csr_array

    parts = (part.cpu().numpy() for part in (matrix.values(), matrix.col_indices(), matrix.crow_indices()))
    return csr_array(tuple(parts), shape=tuple(matrix.shape))
