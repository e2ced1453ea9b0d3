"""Diagonal blocks that belong to whole parameters, multiplied through one shared graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from spectra.curvature.operator import Curvature
from spectra.operator import Wrapper, refuse_other_dtype
from spectra.problem.problem import Problem


class LeafBlocks(Wrapper):
    """The block-diagonal matrix diag(A_11, ..., A_LL) of a matrix A, with a block for each slice of the parameters.

    Rows of parameters outside the slices are zero. Products are made by double backward, only through the layers
    between a block and the loss: with a block for each layer of ResNet-20 or a ViT, they take a third of the time of a
    product with the whole Hessian (`results/benchmarks`). Vectors are whole on every process.
    """

    def __init__(self, problem: Problem, name: str, leaves: Sequence[slice], memory: int | None = None):
        self.matrix = Curvature(problem, name, memory, products=0, check=False)  # the whole is checked
        super().__init__(self.matrix)
        self.leaves = leaves
        starts = [*accumulate((p.numel() for p in problem.leaves), initial=0)]
        self.places = [slice(starts[some.start], starts[some.stop]) for some in leaves]

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with (n,), or with the columns of (n, k); blocks in which a column is zero cost nothing."""
        refuse_other_dtype(self, vectors)
        given = vectors[:, None] if vectors.ndim == 1 else vectors
        held = torch.stack([given[place].any(dim=0) for place in self.places])
        parts = [(block, j) for block, j in held.nonzero().tolist()]
        wanted = [(self.leaves[block], given[self.places[block], j]) for block, j in parts]
        products = torch.zeros_like(given)
        for product, (block, j) in zip(self.matrix.times_blocks(wanted), parts, strict=True):
            products[self.places[block], j] = product
        return self.matrix.problem.processes.total(products).view_as(vectors)


def leaf_slices(problem: Problem, blocks: Sequence[Tensor]) -> list[slice] | None:
    """The slice of parameters that makes up each block (n_l,) of indices.

    The result is None where a block does not consist of whole neighbouring parameters.
    """
    starts, first = {}, 0
    for i, p in enumerate(problem.leaves):
        starts[first] = i
        first += p.numel()
    starts[first] = len(problem.leaves)
    found = []
    for index in blocks:
        start, stop = int(index[0]), int(index[-1]) + 1
        if stop - start != len(index) or start not in starts or stop not in starts:
            return None
        found.append(slice(starts[start], starts[stop]))
    return found
