"""A matrix that every rank holds, for vectors sharded over the ranks: each rank computes its rows of a product.

    (A v)_r = A_r v:   all-gather v,  multiply by the rows A_r

If the entries are known, each rank keeps only its rows. Any other operator is multiplied as a whole on every rank,
which then takes its rows of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from spectra.given_operator import without_beta_warning
from spectra.operator import SymmetricOperator, refuse_other_dtype
from spectra.vectors import from_shard, full_tensor, shard_of


class Replicated:
    """A matrix for sharded vectors (n,) or (n, k); each rank computes its rows of a product.

    Args:
        operator: the whole matrix; entries are moved to `device`.
        mesh: the ranks.
        device: the device of the vectors.
    """

    def __init__(self, operator: SymmetricOperator, mesh: DeviceMesh, device: torch.device):
        self.operator: Any = operator
        self.mesh, self.device = mesh, device
        self.shape, self.dtype = torch.Size(operator.shape), operator.dtype
        rows = shard_of(mesh, self.shape[0])
        self._rows = rows
        self._part = rows_of(operator, rows).to(device) if isinstance(operator, Tensor) else None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        whole = full_tensor(vectors)
        product = (self.operator @ whole)[self._rows] if self._part is None else self._part @ whole
        return from_shard(product, self.mesh, self.shape[0], 0)


def rows_of(matrix: Tensor, rows: slice) -> Tensor:
    """Some rows of a matrix, dense or in CSR form."""
    if matrix.layout is torch.strided:
        return matrix[rows]
    starts = matrix.crow_indices()[rows.start : rows.stop + 1]
    held = slice(int(starts[0]), int(starts[-1]))
    size = (rows.stop - rows.start, matrix.shape[1])
    with without_beta_warning():
        return torch.sparse_csr_tensor(starts - starts[0], matrix.col_indices()[held], matrix.values()[held], size=size)
