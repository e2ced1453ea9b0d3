"""The interface between methods and matrices: symmetric operators, and small wrappers around one.

A symmetric operator multiplies vectors and has a shape, a dtype and a device; a plain symmetric `torch.Tensor` is one.
Methods (`spectra.krylov`) and matrices (`spectra.curvature`) meet only here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from spectra.given_operator import as_operator
from spectra.random_numbers import draw_keys, normal_rows, sign_rows
from spectra.vectors import (
    from_shard,
    map_shards,
    mesh_on,
    on_device,
    shard_of,
    sum_shards,
)
from spectra.wording import outline

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator
    from torch.distributed.device_mesh import DeviceMesh


class Shaped(Protocol):
    """The shape, dtype and device of a matrix: all that is known before any product."""

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors that the matrix multiplies."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the vectors that the matrix multiplies."""
        ...


class SymmetricOperator(Shaped, Protocol):
    """A protocol of real symmetric (n, n) matrices that are known only by their products with vectors.

    A class satisfies it with `shape`, `dtype` and `device`, and with `operator @ vectors`; a torch.Tensor does too.
    """

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """Multiply a vector (n,), or each column of (n, k), in the operator's dtype; the product has the same shape."""
        ...


class SymmetricFactor(Protocol):
    """The factor F (rows, n) of a matrix A = F'F + shift I."""

    shift: float

    @property
    def products(self) -> int:
        """The products of A that the factor has cost so far."""
        ...

    def cost(self) -> int:
        """The number of products that `gram` will cost."""
        ...

    def gram(self) -> Tensor:
        """The Gram matrix F F' (rows, rows), in float64."""
        ...

    def trace_cost(self) -> int:
        """The number of products that `trace` will cost."""
        ...

    def trace_work(self) -> float:
        """The work of `trace` in products, estimated from shapes alone.

        Work that runs example by example counts more than `trace_cost` says. The estimate serves to choose between
        methods.
        """
        ...

    def trace(self) -> float:
        """The trace of F'F."""
        ...

    def times(self, vectors: Tensor) -> Tensor:
        """F v for each row v of `vectors` (k, n): (k, rows)."""
        ...

    def transposed_times(self, weights: Tensor) -> Tensor:
        """F'w for each row w of `weights` (k, rows): (k, n)."""
        ...


class Factored(SymmetricOperator, Protocol):
    """A symmetric operator that may have a factor of few rows."""

    def factor(self) -> SymmetricFactor:
        """The factor F. Raises SpectraError where the matrix has none."""
        ...


@dataclass
class Wrapper:
    """An operator around another operator, of the same shape, dtype and device."""

    operator: SymmetricOperator  # or anything that `as_operator` takes

    def __post_init__(self) -> None:
        self.operator = as_operator(self.operator, symmetric=False)

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n) of the wrapped operator."""
        return self.operator.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the wrapped operator."""
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        """The device of the wrapped operator."""
        return self.operator.device

    @property
    def mesh(self) -> DeviceMesh | None:
        """The processes over which vectors are sharded, or None."""
        return mesh_of(self.operator)

    @property
    def ieee(self) -> SymmetricOperator:
        """This wrapper with products in ieee; itself where they already are."""
        inner = reference(self.operator)
        return self if inner is self.operator else replace(self, operator=inner)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.operator @ vectors

    def checkpointed(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        """Run `compute()` as a checkpointed step of the wrapped operator."""
        return checkpointed(self.operator, compute, generator)


@dataclass(frozen=True)
class Noise:
    """The noise E of products in lower precision, measured on a few vectors v; zero in ieee."""

    relative: float = 0.0  # the largest |Ev| / |Av|
    norm: float = 0.0  # the largest |Ev| / |v|: the error of residuals, and of nodes of a density
    random: float = 0.0  # |Ev| / |Av| of the first v, which is random


@dataclass
class Counting(Wrapper):
    """An operator around another one that counts its matrix-vector products.

    Products are detached from autograd's graph, in case the matrix is made of parameters.

    Attributes:
        operator: the wrapped matrix (n, n), in any form that `spectra.as_operator` takes.
        products: the number of vectors multiplied so far.
        ieee_products: of these, the products in full precision, where the matrix has a lower one.
        noise: the noise of products of lower precision, once it has been measured; else None.
        unsteady: the noise of products in full precision relative to a product, as `check_operator` has measured it.
    """

    products: int = 0
    ieee_products: int = 0
    noise: Noise | None = None
    unsteady: float = 0.0

    @property
    def ieee(self) -> SymmetricOperator:
        """The matrix with products in full precision, which are counted here too."""
        inner = reference(self.operator)
        return self if inner is self.operator else CountingInIeee(inner, self)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += width(vectors)
        return (self.operator @ vectors).detach()

    def checkpointed(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        """Run `compute()` as a checkpointable step: on resume its saved result is returned instead.

        Args:
            compute: a function without arguments that multiplies by this operator.
            generator: the generator that `compute` draws from; its state is restored too.

        Returns:
            What `compute()` returned, now or in an earlier run, whose products are counted too.
        """
        before, before_ieee = self.products, self.ieee_products

        def counted() -> tuple[Any, int, int]:
            return compute(), self.products - before, self.ieee_products - before_ieee

        outcome, spent, spent_ieee = checkpointed(self.operator, counted, generator)
        self.products, self.ieee_products = before + spent, before_ieee + spent_ieee
        return outcome

    def factor(self) -> SymmetricFactor:
        """The factor F of the wrapped matrix A = F'F + shift I, which counts its own products.

        Raises:
            AttributeError: the wrapped operator has no method `factor`.
        """
        return cast(Factored, self.operator).factor()


@dataclass
class CountingInIeee(Wrapper):
    """A matrix with products in ieee; `counter` counts them among all products and among those in ieee."""

    counter: Counting

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.counter.products += width(vectors)
        self.counter.ieee_products += width(vectors)
        return (self.operator @ vectors).detach()

    def checkpointed(self, compute: Callable[[], Any], generator: torch.Generator) -> Any:
        """Run `compute()` as a checkpointed step of the counter."""
        return self.counter.checkpointed(compute, generator)


def width(vectors: Tensor) -> int:
    """The number of vectors in (n,) or (n, k)."""
    return 1 if vectors.ndim == 1 else vectors.shape[1]


@dataclass
class Shifted(Wrapper):
    """The matrix A + shift I, whose eigenvalues are those of A plus `shift`.

    Attributes:
        operator: the matrix A (n, n), in any form that `spectra.as_operator` takes.
        shift: the number added to each eigenvalue.
    """

    shift: float

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return torch.add(self.operator @ vectors, vectors, alpha=self.shift)


@dataclass
class Deflated(Wrapper):
    """The matrix P A P with P = I - U'U, in which the directions of a basis U are projected out.

    The basis may be in the host's memory; vectors are then moved there to be projected.

    Attributes:
        operator: the matrix A (n, n), in any form that `spectra.as_operator` takes.
        basis: U (k, n), with orthonormal rows.
    """

    basis: Tensor

    __repr__ = outline

    def project(self, vectors: Tensor) -> Tensor:
        """Compute P v for vectors (n,) or (n, k).

        P is applied twice, because once leaves a rounding error as large as that of the part removed.
        """
        device, vectors = vectors.device, on_device(vectors, self.basis.device)
        for _ in range(2):
            vectors = self._complement(vectors, sum_shards(torch.matmul, self.basis, vectors))
        return on_device(vectors, device)

    def _complement(self, vectors: Tensor, along: Tensor) -> Tensor:
        return map_shards(lambda part, basis: part - basis.T @ along, vectors, self.basis)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        refuse_other_dtype(self, vectors)
        return self.project(self.operator @ self.project(vectors))


def refuse_other_dtype(operator: SymmetricOperator, vectors: Tensor) -> None:
    """Raise TypeError where vectors have another dtype than the operator.

    Nothing is cast, as in torch's own products.
    """
    if vectors.dtype != operator.dtype:
        raise TypeError(
            f"expected vectors of the operator's dtype {operator.dtype}, got {vectors.dtype}; convert them with "
            f"vectors.to({operator.dtype})"
        )


def wrong_shape(n: int, vectors: Tensor) -> str:
    """The message on vectors that a matrix (n, n) cannot multiply."""
    return f"expected vectors of shape ({n},) or ({n}, k), got {tuple(vectors.shape)}"


def checkpointed(operator: SymmetricOperator, compute: Callable[[], Any], generator: torch.Generator) -> Any:
    """Run `compute()` as a checkpointable step: on resume its saved result is returned instead.

    Args:
        operator: the operator whose products the step takes. One that saves its products (`spectra.resume`) then keeps
            the result in their place.
        compute: a function of no arguments, whose result consists of CPU tensors, numbers and containers of them.
        generator: the generator that `compute` draws from; on resume it is left in the state in which the step left it.

    Returns:
        What `compute()` returned, now or in the earlier run.
    """
    method = getattr(operator, "checkpointed", None)
    return method(compute, generator) if method else compute()


def in_ieee(operator: Any) -> Any:
    """The matrix with products in ieee for a method: the attribute `ieee` of an operator of lower precision.

    It is the operator itself where its products are in ieee, or where methods have to use them anyway
    (`only_measured`).
    """
    return operator if only_measured(operator) else reference(operator)


def reference(operator: Any) -> Any:
    """The matrix with products in ieee, against which noise is measured; the operator itself where it has no noise."""
    return getattr(operator, "ieee", operator)


def only_measured(operator: Any) -> bool:
    """Whether a method has to use the noisy products, and those of the `reference` only to measure their error.

    This holds for products by finite differences, which a user asks for explicitly.
    """
    return bool(find_on("only_measured", operator))


def find_on(name: str, operator: Any) -> Any:
    """The attribute `name` of the operator or of the nearest one that it wraps; None where all lack it."""
    inner: Any = operator
    while inner is not None and getattr(inner, name, None) is None:
        inner = getattr(inner, "operator", None)
    return getattr(inner, name, None)


def mesh_of(operator: Shaped) -> DeviceMesh | None:
    """The processes over which the operator's vectors are sharded; None where vectors are plain tensors."""
    return getattr(operator, "mesh", None)


def to_scipy(operator: Any) -> LinearOperator:
    """Convert a symmetric operator to a `scipy.sparse.linalg.LinearOperator`, for `eigsh` and other SciPy functions.

    Args:
        operator: the matrix (n, n), in any form that `spectra.as_operator` takes.

    Returns:
        The LinearOperator (n, n), which takes and returns NumPy arrays.

    Raises:
        ArgumentError: `operator` is not a matrix.
    """
    from scipy.sparse.linalg import LinearOperator

    operator = as_operator(operator)

    def multiply(vectors):
        given = torch.as_tensor(vectors.copy()).to(operator.device, operator.dtype)
        return (operator @ given).detach().cpu().numpy()

    dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    products = {"matvec": multiply, "rmatvec": multiply, "matmat": multiply}
    return LinearOperator(shape=tuple(operator.shape), dtype=dtype, **products)  # pyright: ignore[reportCallIssue]  (SciPy's __new__ is untyped)


def random_vectors(operator: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` standard normal vectors as rows (count, n).

    Each process makes its own shard on its device, from keys that a CPU generator yields. The vectors depend neither on
    the device, nor on the number of processes, nor on how many are drawn at once.
    """
    return _drawn(normal_rows, operator, count, generator)


def random_signs(
    operator: SymmetricOperator, count: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Draw `count` vectors of independent signs as rows (count, n), as `random_vectors` does.

    They are on the operator's device, or on another `device`, to which they are moved one by one.
    """
    if device is None or device.type == operator.device.type:
        return _drawn(sign_rows, operator, count, generator)
    return torch.cat([on_device(_drawn(sign_rows, operator, 1, generator), device) for _ in range(count)])


def _drawn(make: Callable[..., Tensor], operator: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    n, mesh = operator.shape[0], mesh_of(operator)
    part = make(draw_keys(generator, count), shard_of(mesh, n), operator.dtype, operator.device)
    return part if mesh is None else from_shard(part, mesh, n, 1)


def placed(vectors: Tensor, operator: SymmetricOperator, device: torch.device | None = None) -> Tensor:
    """Vectors (n,) or rows (k, n) on the operator's or another device, in its dtype, and sharded as its vectors are."""
    device = device or operator.device
    if (mesh := mesh_of(operator)) is None:
        return vectors.to(device, operator.dtype)
    n = operator.shape[0]
    part = vectors[..., shard_of(mesh, n)].to(device, operator.dtype)
    return from_shard(part, mesh_on(mesh, device), n, vectors.ndim - 1)


def empty_rows(operator: SymmetricOperator, count: int, device: torch.device | None = None) -> Tensor:
    """Uninitialised rows (count, n) for vectors of the operator, in the memory of its device or of another."""
    n, mesh, device = operator.shape[0], mesh_of(operator), device or operator.device
    held = shard_of(mesh, n)
    part = torch.empty(count, held.stop - held.start, dtype=operator.dtype, device=device)
    return part if mesh is None else from_shard(part, mesh_on(mesh, device), n, 1)
