"""One matrix over many processes: batches are dealt to ranks, products are summed, and vectors are sharded.

    A v = sum over ranks of A_r v:   all-gather v,  multiply by A_r,  reduce-scatter the products

Each rank holds n / ranks numbers of every vector, as a DTensor, and moves 2 n (ranks - 1) / ranks of them a product.
"""

from __future__ import annotations

import os
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor  # noqa: F401  (takes seconds, at the first product otherwise)

from spectra.cluster import ranks
from spectra.curvature.factor.gram import Factor
from spectra.curvature.operator import Curvature
from spectra.errors import SpectraError
from spectra.krylov.blocks import WIDEST
from spectra.operator import SymmetricOperator, placed, refuse_other_dtype
from spectra.problem.problem import Processes
from spectra.vectors import from_shard, full_tensor, local, shard_sizes
from spectra.wording import counted

TIMEOUT = timedelta(minutes=30)  # for a rank that hangs; one that exits is noticed at once
# Torch 2.14 has new names for these two, and deprecates the old ones.
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_joined = None  # the Ranks, once `join` has made them


@dataclass(frozen=True)
class Ranks(Processes):
    """The processes of one job."""

    mesh: DeviceMesh = field(kw_only=True)

    def total(self, part: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each."""
        moved = part.to(self.mesh.device_type, copy=True)
        dist.all_reduce(moved)
        return moved.to(part.device)

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        held = torch.tensor(number, device=self.mesh.device_type)
        dist.all_reduce(held, dist.ReduceOp.MIN)
        return int(held)


def join(device: torch.device) -> Ranks:
    """Join the other ranks that torchrun has started: by NCCL between GPUs, else by gloo. Raises SpectraError."""
    global _joined
    if _joined is not None:
        return _joined
    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    ranks.meet(PrefixStore("spectra", store.clone()))
    if device.type == "cuda":
        place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= count:
            raise SpectraError(
                f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', place + 1)}: this node has "
                f"{counted(count, 'CUDA device')}; start as many ranks on each node, or give `device` cpu"
            )
        torch.cuda.set_device(place)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    _joined = Ranks(rank, world, mesh=init_device_mesh(device.type, (world,)))
    return _joined


def distributed(matrix: Curvature) -> SymmetricOperator:
    """Return the matrix for vectors sharded over the ranks; for a single rank, the matrix itself."""
    return Distributed(matrix) if matrix.problem.processes.count > 1 else matrix


class Distributed:
    """A matrix for sharded vectors (n,) or (n, k): the sum of one part on each rank."""

    def __init__(self, part: Curvature):
        self.part = part
        self.mesh = cast(Ranks, part.problem.processes).mesh
        self._sizes = shard_sizes(self.mesh, part.shape[0])

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n)."""
        return self.part.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of vectors."""
        return self.part.dtype

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.part.device

    @property
    def peak_bytes(self) -> int:
        """The bytes that this rank keeps between products and takes in one."""
        return self.part.peak_bytes

    @property
    def operator(self) -> Curvature:
        """This rank's part, which has the properties of the whole matrix (`spectra.operator.find_on`)."""
        return self.part

    @property
    def ieee(self) -> Distributed:
        """This matrix with products in ieee; itself where those of every rank already are."""
        part = self.part.ieee
        if self.part.problem.processes.least(int(part is self.part)):
            return self
        found = copy(self)
        found.part = cast(Curvature, part)
        return found

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)  # on every rank, before any rank waits for the others
        held = local(vectors)
        parts = held.split(WIDEST, dim=1) if held.ndim == 2 else [held]  # each rank takes whole vectors of a part
        products = [self._scattered(self.part @ self._gathered(part)) for part in parts]
        product = torch.cat(products, dim=1) if held.ndim == 2 else products[0]
        return from_shard(product, self.mesh, self.shape[0], 0)

    def _gathered(self, part: Tensor) -> Tensor:
        """Gather the whole vectors from the ranks' shards."""
        most, shape = max(self._sizes), part.shape[1:]
        padded = part.new_zeros(most, *shape)
        padded[: len(part)] = part
        gathered = part.new_empty(most * self.mesh.size(), *shape)
        ALL_GATHER(gathered, padded)
        return gathered[: self.shape[0]]

    def _scattered(self, products: Tensor) -> Tensor:
        """Sum the products over ranks, and return this rank's shard of the sum."""
        most, shape, count = max(self._sizes), products.shape[1:], self.mesh.size()
        padded = products.new_zeros(most * count, *shape)
        padded[: len(products)] = products
        if dist.get_backend() == "nccl":
            mine = products.new_empty(most, *shape)
            REDUCE_SCATTER(mine, padded)
        else:  # gloo's reduce-scatter is an all-reduce in torch 2.15, which moves twice as much
            pieces = torch.empty_like(padded)
            dist.all_to_all_single(pieces, padded)
            mine = pieces.view(count, most, *shape).sum(dim=0)
        return mine[: self._sizes[self.mesh.get_local_rank()]]

    def factor(self) -> Factor:
        """The factor of the matrix, which each rank makes as a whole. Raises SpectraError where there is none."""
        return ShardedFactor(self)


class ShardedFactor(Factor):
    """The factor F for sharded vectors. Each rank makes all of it, except for the trace; all use the F F' of rank 0."""

    def __init__(self, operator: Distributed):
        part = operator.part
        super().__init__(part.problem, part.name, part.memory)
        self.operator = operator

    def gram(self) -> Tensor:
        gram = super().gram().contiguous()
        dist.broadcast(gram, 0)  # eigenvectors of equal eigenvalues depend on the rounding
        return gram

    def times(self, vectors: Tensor) -> Tensor:
        return super().times(full_tensor(vectors))

    def transposed_times(self, weights: Tensor) -> Tensor:
        """F'w for each row w of `weights` (k, rows): (k, n), sharded."""
        return placed(super().transposed_times(weights), self.operator)
