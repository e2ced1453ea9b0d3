"""Vectors (n,) and rows of vectors (k, n): plain tensors, or DTensors sharded over processes along n.

Arithmetic, slices of rows, stacking and transposing work on both kinds alike. Everything else goes through this module:
`map_shards` applies a function to each shard, `sum_shards` adds up the results over all shards. A sum is a plain tensor
with the same bits on every process, so that all processes decide alike.

Operations that would copy a vector work piece by piece (`pieces`). This also keeps long sums in single precision
accurate, since the sums of pieces are added up in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from spectra.transfer import copied, copy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard


DEVICES = ("cpu", "cuda", "mps")  # where a program may have switched autocast on
PIECE = 2**20  # numbers of each vector at a time on a CPU: those of all vectors of a basis fit its caches
LEAST, MOST = 1e-100, 1e100  # norms for which squares, also of residuals, are within the range of float64
WITHIN = f"between {LEAST:g} and {MOST:g}, where squares fit in float64"
PIECE_OF_A_DEVICE = 2**26  # numbers of all vectors at a time elsewhere: starting a kernel costs little beside them


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch autocast off inside this context, so that arithmetic is in the precision of its operands."""
    with ExitStack() as stack:
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def sharded(vectors: Tensor) -> TypeGuard[DTensor]:
    """Whether vectors are a DTensor, sharded over processes."""
    return hasattr(vectors, "device_mesh")


def local(vectors: Tensor) -> Tensor:
    """The shard that this process holds; the whole tensor where it is not sharded."""
    return vectors.to_local() if sharded(vectors) else vectors


def map_shards(function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Apply `function` to each process's shard, and wrap the result as a DTensor with the layout of the first argument.

    Where the result has one dimension more or less than the first argument, its last dimension is the sharded one.
    Plain tensors are given to `function` as they are.
    """
    made = function(*map(local, vectors))
    if not sharded(first := vectors[0]):
        return made
    (placement,) = first.placements
    dimension = cast("Shard", placement).dim
    n, own = first.shape[dimension], dimension if made.ndim == first.ndim else made.ndim - 1
    return from_shard(made, first.device_mesh, n, own)


def sum_shards(function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Apply `function` to each process's shard, and return the sum over all processes as a plain tensor."""
    part = function(*map(local, vectors))
    if not sharded(first := vectors[0]) or not part.numel():
        return part
    part = part.contiguous()
    torch.distributed.all_reduce(part, group=first.device_mesh.get_group())
    return part


def from_shard(part: Tensor, mesh: DeviceMesh, n: int, dimension: int) -> Tensor:
    """Make a DTensor of this process's shard `part`, with n entries along the sharded `dimension`."""
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((*part.shape[:dimension], n, *part.shape[dimension + 1 :]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part.contiguous(), mesh, [Shard(dimension)], run_check=False, shape=shape, stride=stride)


def pieces(part: Tensor) -> Iterator[slice]:
    """Yield the ranges of the last dimension of a plain tensor that are worked on one after the other."""
    length, count = part.shape[-1], max(1, part.shape[:-1].numel())
    most = PIECE if part.is_cpu else max(PIECE, PIECE_OF_A_DEVICE // count)
    yield from (slice(first, first + most) for first in range(0, max(length, 1), most))


def summed(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Sum a function of plain tensors over all their `pieces`, in float64 where there are several."""
    first, *rest = pieces(parts[0])
    total = function(*(part[..., first] for part in parts))
    for piece in rest:
        total = total.double() + function(*(part[..., piece] for part in parts))
    return total


def sum_pieces(function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Apply `function` to all pieces of all shards, and return the sum as a plain tensor."""
    wide = torch.float64 if sharded(vectors[0]) else None  # other shards may have more pieces
    return sum_shards(lambda *parts: summed(function, *parts).to(wide), *vectors)


def map_rows_inplace(rows: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Replace rows (k, n) in place by `function` of them, which returns at most k rows and treats columns alike."""
    part = local(rows)
    for piece in pieces(part):
        made = function(part[..., piece])
        part[: len(made), piece] = made


def shard_sizes(mesh: DeviceMesh | None, n: int) -> list[int]:
    """The number of entries out of n that each process holds, in the order of ranks.

    All shards have one size, as those of `torch.distributed.tensor.Shard`, except the last, which may be shorter or
    empty.
    """
    if mesh is None:
        return [n]
    most = -(-n // mesh.size())
    return [max(0, min(most, n - most * rank)) for rank in range(mesh.size())]


def shard_of(mesh: DeviceMesh | None, n: int) -> slice:
    """The range of entries out of n that this process holds."""
    rank = 0 if mesh is None else mesh.get_local_rank()
    held = shard_sizes(mesh, n)
    return slice(sum(held[:rank]), sum(held[: rank + 1]))


def full_tensor(vectors: Tensor) -> Tensor:
    """Gather the whole vectors on every process."""
    return vectors.full_tensor() if sharded(vectors) else vectors


def gather_on_first(rows: Tensor) -> Tensor:
    """Gather the whole rows (k, n) on the CPU of the first process; other processes get (0, n)."""
    if not sharded(rows):
        return rows
    first = rows.device_mesh.get_local_rank() == 0
    gathered = ((full_tensor(row), first) for row in rows)  # one at a time: all may be more than a device holds
    kept = [row.cpu() for row, wanted in gathered if wanted]
    return torch.stack(kept) if kept else torch.empty(0, rows.shape[1], dtype=rows.dtype)


def take_rows(rows: Tensor, index: list[int] | Tensor) -> Tensor:
    """The rows at the given indices."""
    return map_shards(lambda part: part[torch.as_tensor(index)], rows)


def all_finite(vectors: Tensor) -> bool:
    """Whether every number is finite."""
    return not sum_shards(_not_finite, vectors)


def squares_overflow(vectors: Tensor) -> bool:
    """Whether vectors of finite numbers, not all zero, are so small or large that squares underflow or overflow."""
    return not LEAST < norm(vectors) < MOST and bool(sum_shards(_not_zero, vectors))


def true_on_all_processes(mesh: DeviceMesh | None, holds: bool) -> bool:
    """Whether `holds` is true on every process, so that all processes decide alike."""
    if mesh is None:
        return holds
    held = torch.tensor(int(holds), device=mesh.device_type)
    torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MIN, group=mesh.get_group())
    return bool(held)


def copy_into(place: Tensor, vectors: Tensor) -> None:
    """Copy vectors into a tensor of the same shape, on any device."""
    copy(local(place), local(vectors))


def on_device(vectors: Tensor, device: torch.device) -> Tensor:
    """Move vectors to another device, sharded as they are; vectors that are already there are returned as they are."""
    if vectors.device.type == device.type:
        return vectors
    part = copied(local(vectors), device)
    if not sharded(vectors):
        return part
    (placement,) = vectors.placements
    dimension = cast("Shard", placement).dim
    return from_shard(part, mesh_on(vectors.device_mesh, device), vectors.shape[dimension], dimension)


def mesh_on(mesh: DeviceMesh, device: torch.device) -> DeviceMesh:
    """The mesh of the same processes for tensors on this kind of device."""
    return mesh if mesh.device_type == device.type else _other_mesh(mesh, device.type)


_PARTNERS: list[tuple[DeviceMesh, DeviceMesh]] = []  # meshes of the same processes


def _other_mesh(mesh: DeviceMesh, kind: str) -> DeviceMesh:
    """The mesh of the same processes for another kind of device, made once, by all processes together."""
    from torch.distributed.device_mesh import DeviceMesh

    for pair in _PARTNERS:
        for one, other in (pair, pair[::-1]):
            if one is mesh and other.device_type == kind:
                return other
    group = cast("ProcessGroup", torch.distributed.new_group(backend="gloo"))  # its sums are of a few numbers
    _PARTNERS.append((mesh, DeviceMesh.from_group(group, kind)))
    return _PARTNERS[-1][1]


def _not_finite(part: Tensor) -> Tensor:
    """The number of entries that are not finite; a finite sum shows at once that there are none."""
    if part.sum().isfinite():
        return torch.zeros((), dtype=torch.int64, device=part.device)
    return (~torch.isfinite(part)).sum()


def norm(vector: Tensor) -> float:
    """The Euclidean norm of a vector (n,), accumulated in float64."""
    return norms(vector, dim=None).item()


def norms(rows: Tensor, dim: int | None = 1) -> Tensor:
    """The Euclidean norms (k,) of rows (k, n), or for `dim` None the norm of all entries, accumulated in float64."""
    if dim is None:
        return sum_pieces(lambda part: _dot(flat := part.reshape(-1), flat), rows).sqrt()
    if not sharded(rows) and len(list(pieces(rows))) == 1:
        return torch.linalg.vector_norm(rows, dim=dim, dtype=torch.float64)
    return sum_pieces(lambda part: torch.linalg.vector_norm(part, dim=dim, dtype=torch.float64).square(), rows).sqrt()


def _not_zero(part: Tensor) -> Tensor:
    return part.count_nonzero()


def distance(u: Tensor, v: Tensor) -> float:
    """The Euclidean norm |u - v| of vectors (n,), accumulated in float64."""

    def square(u: Tensor, v: Tensor) -> Tensor:
        return _dot(apart := u - v, apart)

    return sum_pieces(square, u, v).sqrt().item()


def dot(u: Tensor, v: Tensor) -> float:
    """The inner product u'v of vectors (n,), accumulated in float64."""
    return sum_pieces(_dot, u, v).item()


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """The inner product of plain vectors in float64.

    NumPy converts float32 piece by piece, six times faster than torch, which converts everything first.
    """
    if u.is_cpu and u.dtype == torch.float32:
        return torch.tensor(np.einsum("i,i->", u.detach().numpy(), v.detach().numpy(), dtype=np.float64))
    return torch.dot(long := u.double(), long if v is u else v.double())


def row_dots(these: Tensor, others: Tensor) -> Tensor:
    """The inner products u_i'v_i (k,) of rows (k, n), accumulated in float64."""
    return sum_pieces(lambda u, v: (u * v).sum(dim=1, dtype=torch.float64), these, others)


def orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The QR decomposition of rows (k, n): Q (min(k, n), n) with orthonormal rows, and R with rows = R'Q.

    Q is orthonormal whatever the rank. If rows are sharded, each process decomposes its own shard, and all decompose
    the stacked triangles (TSQR: Demmel, Grigori, Hoemmen, Langou 2012).
    """
    if not sharded(rows):
        basis, triangle = _qr(rows.T)
        return basis.T, triangle
    own, triangle = _qr(local(rows).T)
    mesh, (k, n) = rows.device_mesh, rows.shape
    heights = [min(k, size) for size in shard_sizes(mesh, n)]
    padded = torch.zeros(k, k, dtype=rows.dtype, device=triangle.device)
    padded[: len(triangle)] = triangle
    stack = torch.empty(mesh.size() * k, k, dtype=rows.dtype, device=triangle.device)
    torch.distributed.all_gather_into_tensor(stack, padded, group=mesh.get_group())
    # The padding is cut off, since columns of Q would reach into it where shards are short.
    pieces = [piece[:height] for piece, height in zip(stack.split(k), heights, strict=True)]
    together, triangle = torch.linalg.qr(torch.cat(pieces))
    mine = together.split(heights)[mesh.get_local_rank()]
    return from_shard((own @ mine).T, mesh, n, 1), triangle


def _qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The QR decomposition of a plain matrix (n, k), with columns of Q of length 1 to rounding.

    LAPACK sums in the dtype of the matrix: in float32, its lengths are off by 1e-5 for n = 10^5 and 1e-3 for n = 10^7.
    """
    basis, triangle = torch.linalg.qr(matrix)
    lengths = norms(basis.T).to(basis.dtype)
    return basis.div_(lengths), triangle * lengths[:, None]
