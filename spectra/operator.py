"""What a method asks of a matrix, and small wrappers around one.

A symmetric operator multiplies vectors and says its shape, dtype and device; a plain symmetric
`torch.Tensor` is one. Methods (`spectra.krylov`) and matrices (`spectra.curvature`) meet only here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from spectra.arguments import chosen_generator, require_matrix
from spectra.errors import SpectraError
from spectra.vectors import all_finite, dot, from_shard, map_shards, norm, shard_of, sum_shards, without_autocast

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator
    from torch.distributed.device_mesh import DeviceMesh


class Shaped(Protocol):
    """What is known of a matrix before any product."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


class SymmetricOperator(Shaped, Protocol):
    """A real symmetric (n, n) matrix, known by its products."""

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """Multiply (n,) to (n,), or (n, k) to (n, k), of the operator's own dtype."""
        ...


class SymmetricFactor(Protocol):
    """F (rows, n) of a matrix F'F + shift I; `products` counts what it has cost."""

    shift: float

    @property
    def products(self) -> int: ...
    def cost(self) -> int:
        """The products that `gram` will take."""
        ...

    def gram(self) -> Tensor:
        """F F', (rows, rows), float64."""
        ...

    def trace_cost(self) -> int:
        """The products that `trace` will take."""
        ...

    def trace_work(self) -> float:
        """The same from shapes alone, work that runs one by one counted dearer: for choices."""
        ...

    def trace(self) -> float:
        """tr F'F."""
        ...

    def times(self, vectors: Tensor) -> Tensor:
        """(k, n) -> (k, rows)."""
        ...

    def transposed_times(self, weights: Tensor) -> Tensor:
        """(k, rows) -> (k, n)."""
        ...


class Factored(SymmetricOperator, Protocol):
    """A matrix that has a factor of few rows, or says why not."""

    def factor(self) -> SymmetricFactor: ...


@dataclass
class Wrapper:
    """An operator around an operator: same shape, dtype and device."""

    operator: SymmetricOperator

    @property
    def shape(self) -> torch.Size:
        return self.operator.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def mesh(self) -> DeviceMesh | None:
        return mesh_of(self.operator)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.operator @ vectors

    def checkpointed(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        return checkpointed(self.operator, compute, generator)


@dataclass
class Counting(Wrapper):
    """The same matrix, counting `products`: one for each vector multiplied."""

    products: int = 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += 1 if vectors.ndim == 1 else vectors.shape[1]
        return self.operator @ vectors

    def checkpointed(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        before = self.products
        outcome, spent = checkpointed(self.operator, lambda: (compute(), self.products - before), generator)
        self.products = before + spent
        return outcome

    def factor(self) -> SymmetricFactor:
        """The operator's own, which counts what it costs by itself; AttributeError where it has none."""
        return cast(Factored, self.operator).factor()


@dataclass
class Shifted(Wrapper):
    """A + shift I."""

    shift: float

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return torch.add(self.operator @ vectors, vectors, alpha=self.shift)


@dataclass
class Deflated(Wrapper):
    """P A P with P = I - U'U, for a `basis` U of shape (k, n) with orthonormal rows."""

    basis: Tensor

    def project(self, vectors: Tensor) -> Tensor:
        """P vectors, applied twice: once leaves a part of the size of the rounding of what it removes."""
        for _ in range(2):
            vectors = self._complement(vectors, sum_shards(torch.matmul, self.basis, vectors))
        return vectors

    def _complement(self, vectors: Tensor, along: Tensor) -> Tensor:
        return map_shards(lambda part, basis: part - basis.T @ along, vectors, self.basis)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        return self.project(self.operator @ self.project(vectors))


def refuse_other_dtype(operator: SymmetricOperator, vectors: Tensor) -> None:
    """Raise TypeError where vectors have another dtype than the operator: as in torch's own products, none is cast."""
    if vectors.dtype != operator.dtype:
        raise TypeError(
            f"expected vectors of the operator's dtype {operator.dtype}, got {vectors.dtype}; convert them with "
            f"vectors.to({operator.dtype})"
        )


def checkpointed(operator: SymmetricOperator, compute: Callable[[], Any], generator: torch.Generator) -> Any:
    """`compute()`: a step of a method of which only the outcome matters further, of CPU tensors and numbers.

    An operator that remembers its products (`spectra.resume`) then keeps the outcome in place of the step's products.
    """
    method = getattr(operator, "checkpointed", None)
    return method(compute, generator) if method else compute()


def mesh_of(operator: Shaped) -> DeviceMesh | None:
    """The processes over which the operator's vectors are sharded; None where they are plain tensors."""
    return getattr(operator, "mesh", None)


def to_scipy(operator: SymmetricOperator) -> LinearOperator:
    """The operator for SciPy, in NumPy arrays on the host (`scipy.sparse.linalg.eigsh` and its kin)."""
    from scipy.sparse.linalg import LinearOperator

    require_matrix("operator", operator)

    def multiply(vectors):
        given = torch.as_tensor(vectors.copy()).to(operator.device, operator.dtype)
        return (operator @ given).cpu().numpy()

    dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    products = {"matvec": multiply, "rmatvec": multiply, "matmat": multiply}
    return LinearOperator(shape=tuple(operator.shape), dtype=dtype, **products)  # pyright: ignore[reportCallIssue]  (SciPy's __new__ is untyped)


CHECKS = 3  # products that `check_operator` takes, and one more where the first show less than their precision
SINGLE = torch.finfo(torch.float32).eps ** 0.5  # of a product, that may be rounding in single precision
ROUNDINGS = 100  # of a product: how far off symmetry, at most, for one that its linearity is off


@without_autocast()
def check_operator(operator: SymmetricOperator, generator: torch.Generator | None = None, *, seed: int = 0) -> float:
    """Multiply twice by one vector and once by another; three products, a finished step of a run (`checkpointed`).

    Returns the relative noise of a product, max(|Av - Av again|, |u'Av - v'Au|) over |Av|. For random u the second
    is of the size of |(A - A')v|, whatever the dimension.
    The vectors are drawn from `generator`, one of the CPU, or else from `seed`.
    Raises SpectraError where the matrix is not repeatable or not symmetric: no method can then give
    a number that means anything.
    """
    require_matrix("operator", operator, symmetric=False)
    generator = chosen_generator(seed, generator)
    return checkpointed(operator, lambda: _noise(operator, generator), generator)


def _noise(operator: SymmetricOperator, generator: torch.Generator) -> float:
    u, v = random_vectors(operator, 2, generator)
    first, again, other = operator @ v, operator @ v, operator @ u
    if not (all_finite(first) and all_finite(other)):
        return float("nan")
    size = max(norm(first), norm(other))
    if size == 0:
        return 0.0
    repeat = norm(first - again) / size
    asymmetry = abs(dot(u, first) - dot(v, other)) / size
    # Rounding grows with the number of terms summed; the square root of epsilon is far above it
    # (3e-4 in float32) and far below what dropout, batch statistics or shuffling change.
    allowed = torch.finfo(operator.dtype).eps ** 0.5
    if allowed < max(repeat, asymmetry) < SINGLE:
        # A model that computes in float32 inside, as norms of language models do, has products of that precision.
        # They are no linear functions of the vector, then, by about as much as they are not symmetric.
        curved = norm(operator @ (u + v) - first - other) / size
        allowed = max(allowed, min(SINGLE, ROUNDINGS * curved))
    if max(repeat, asymmetry) > allowed and (suspect := suspect_of(operator)):
        what = "changes from product to product" if repeat > allowed else "is not symmetric"
        raise SpectraError(f"the matrix {what} (by {max(repeat, asymmetry):.1e} of its size): {suspect}")
    if repeat > allowed:
        raise SpectraError(
            f"the matrix changes from product to product (by {repeat:.1e} of its size): dropout, BatchNorm on batch "
            "statistics, or other chance in the model's forward do this; make it deterministic, as model.eval() does"
        )
    if asymmetry > allowed:
        raise SpectraError(
            f"the matrix is not symmetric (by {asymmetry:.1e} of its size): a custom autograd function whose "
            "derivative is wrong, or a hook that changes gradients, does this; try `dtype` float64, or check that layer"
        )
    return max(repeat, asymmetry)


def suspect_of(operator: SymmetricOperator) -> str | None:
    """What is wrong with products, and the way out, where the operator, or one that it wraps, knows (`suspect`)."""
    inner: Any = operator
    while inner is not None and not hasattr(inner, "suspect"):
        inner = getattr(inner, "operator", None)
    return inner.suspect() if inner is not None else None


def random_vectors(operator: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    """`count` standard normal vectors, (count, n), drawn in float64 by a CPU generator, one after the other.

    Neither the operator's device nor the number asked for at once changes what is drawn.
    """
    n = operator.shape[0]
    drawn = (torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(count))
    return torch.stack([placed(vector, operator) for vector in drawn])


def placed(vectors: Tensor, operator: SymmetricOperator) -> Tensor:
    """Vectors (n,) or rows (k, n) as the operator's are: on its device, in its dtype, sharded where those are."""
    if (mesh := mesh_of(operator)) is None:
        return vectors.to(operator.device, operator.dtype)
    n = operator.shape[0]
    part = vectors[..., shard_of(mesh, n)].to(operator.device, operator.dtype)
    return from_shard(part, mesh, n, vectors.ndim - 1)


def empty_rows(operator: SymmetricOperator, count: int) -> Tensor:
    """Room for vectors of the operator, (count, n)."""
    n, mesh = operator.shape[0], mesh_of(operator)
    held = shard_of(mesh, n)
    part = torch.empty(count, held.stop - held.start, dtype=operator.dtype, device=operator.device)
    return part if mesh is None else from_shard(part, mesh, n, 1)
