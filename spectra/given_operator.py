"""Symmetric operators made of what users hand over: NumPy and torch arrays, SciPy matrices, functions with a size.

Every public method converts its operator here, once, and refuses what is no symmetric matrix of real numbers. A matrix
whose entries are known is checked entry by entry (`entries`); of others `spectra.check_operator` checks products.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.entries import refuse_entries
from spectra.errors import ArgumentError, SpectraError
from spectra.quoting import quoted

KNOWN = (
    "a NumPy array, a torch.Tensor, a SciPy sparse matrix or LinearOperator, a pair (n, function), or an operator with "
    "shape, dtype, device and @, as spectra.SymmetricOperator"
)
NOT_COMPLEX = (
    "give the real part where the imaginary one is zero; else [[Re, -Im], [Im, Re]], which has each eigenvalue twice"
)
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # in which eigenvalues can be told apart
PROTOCOL = ("shape", "dtype", "device", "__matmul__")
Tell = Callable[[str], None]


def unheard(_note: str) -> None:
    """Ignore what is told of a conversion."""


def as_operator(
    value: Any,
    argument: str = "operator",
    *,
    dtype: torch.dtype | None = None,
    symmetric: bool = True,
    tell: Tell = unheard,
) -> Any:
    """Convert a matrix in any of the usual forms to the symmetric operator that all methods take.

    Args:
        value: a NumPy array, a torch tensor (dense or sparse), a SciPy sparse matrix or array, a SciPy
            `LinearOperator`, anything else with a shape and @, a function with a `size` (or `shape`) attribute, a pair
            (n, function), or an operator already, which is returned as it is.
        argument: the name of the argument in error messages.
        dtype: float32 or float64, to which entries are converted. None: they stay as they are; integers, booleans
            and types that torch does not compute in become float64.
        symmetric: check that entries are finite and symmetric.
        tell: a function that is called with a sentence about each conversion.

    Returns:
        A dense tensor, a sparse tensor in CSR form, or an operator that multiplies by a function. A tensor shares its
        memory with what it is made of, where the dtype is kept.

    Raises:
        ArgumentError: the value is none of these, or not square, empty, complex, not finite, or not symmetric.
    """
    if isinstance(value, Tensor):
        return of_tensor(value, argument, dtype, symmetric, tell)
    if is_operator(value):
        refuse_shape(value.shape, argument)
        refuse_kind(value.dtype, argument)
        return of_dtype(value, argument, dtype)
    if is_sparse(value):
        return of_sparse(value, argument, dtype, symmetric, tell)
    if isinstance(value, np.ndarray):
        return of_array(value, argument, dtype, symmetric, tell)
    if (found := by_products(value, argument)) is not None:
        return of_dtype(found, argument, dtype)
    if hasattr(value, "__array__") and hasattr(value, "shape"):
        return of_array(np.asarray(value), argument, dtype, symmetric, tell)
    raise ArgumentError(f"`{argument}` of type {type(value).__name__}: give {KNOWN}")


def is_operator(value: Any) -> bool:
    """Whether a value has the members of a `SymmetricOperator`."""
    return all(hasattr(value, part) for part in PROTOCOL) and isinstance(value.dtype, torch.dtype)


def is_sparse(value: Any) -> bool:
    """Whether a value is a SciPy sparse matrix or array; SciPy is not loaded for that."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(value)


def refuse_shape(shape: Any, argument: str) -> None:
    """Raise ArgumentError where a shape is not (n, n) with n of 1 or more."""
    shape = tuple(shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        shown = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ArgumentError(f"`{argument}` of shape {shown}: give a square matrix, (n, n) with n >= 1")


def refuse_kind(dtype: torch.dtype, argument: str) -> None:
    """Raise ArgumentError where products are not of real floating-point numbers."""
    if dtype.is_complex:
        raise ArgumentError(f"`{argument}` of {dtype}: is complex; {NOT_COMPLEX}")
    if not dtype.is_floating_point:
        raise ArgumentError(f"`{argument}` of {dtype}: give a matrix of real floating-point numbers")
    if dtype in WIDER:
        wider = WIDER[dtype]
        raise ArgumentError(f"`{argument}` of {dtype}: eigenvalues are lost in its rounding; multiply in {wider}")


def of_dtype(operator: Any, argument: str, dtype: torch.dtype | None) -> Any:
    """An operator that is known by its products alone. Raises ArgumentError where another dtype is asked for."""
    if dtype not in (None, operator.dtype):
        own, asked = (str(kind).removeprefix("torch.") for kind in (operator.dtype, dtype))
        raise ArgumentError(f"`dtype` {asked}: this operator multiplies vectors of {own}; leave `dtype` out")
    return operator


def of_tensor(tensor: Tensor, argument: str, dtype: torch.dtype | None, symmetric: bool, tell: Tell) -> Tensor:
    """A dense tensor, or a sparse one in CSR form."""
    refuse_shape(tensor.shape, argument)
    if tensor.dtype.is_complex:
        raise ArgumentError(f"`{argument}` of {tensor.dtype}: is complex; {NOT_COMPLEX}")
    if tensor.is_meta or tensor.is_quantized:
        kind = "is on the meta device" if tensor.is_meta else "is quantized"
        raise ArgumentError(f"`{argument}` {kind}: give a tensor that holds its numbers")
    kind = dtype or WIDER.get(tensor.dtype, tensor.dtype if tensor.dtype.is_floating_point else torch.float64)
    if kind != tensor.dtype:
        tell(converted(tensor.dtype, kind))
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.layout not in (torch.strided, torch.sparse_csr):
        with beta_kept_quiet():
            if tensor.layout in (torch.sparse_bsr, torch.sparse_bsc):  # which torch turns into COO alone
                tensor = tensor.to_sparse_coo()
            tensor = (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor).to_sparse_csr()
    if kind != tensor.dtype:
        tensor = tensor.to(kind)
    if symmetric and plain(tensor):
        refuse_entries(tensor, argument)
    return tensor


def plain(tensor: Tensor) -> bool:
    """Whether a tensor's entries can be looked at: those of subclasses may lie in other processes."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def of_array(array: np.ndarray, argument: str, dtype: torch.dtype | None, symmetric: bool, tell: Tell) -> Tensor:
    """A dense tensor on the memory of a NumPy array, where torch knows its dtype."""
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ArgumentError(f"`{argument}`: has masked entries; fill them in, as by .filled(0)")
        array = array.data
    array = np.asarray(array)
    refuse_shape(array.shape, argument)
    array, kind = of_numbers(array, argument, dtype)
    if kind != array.dtype:
        tell(converted(array.dtype, kind))
    array = np.asarray(array, dtype=kind)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):  # which torch does not know
        array = array.copy()
    with warnings.catch_warnings(action="ignore"):  # of an array that is not writable: nothing is written to it
        tensor = torch.from_numpy(array)
    if symmetric:
        refuse_entries(tensor, argument)
    return tensor


def of_numbers(array: Any, argument: str, dtype: torch.dtype | None) -> tuple[Any, np.dtype]:
    """An array of real numbers, and the dtype in which it is multiplied. Raises ArgumentError."""
    if array.dtype.kind == "c":
        raise ArgumentError(f"`{argument}` of {array.dtype}: is complex; {NOT_COMPLEX}")
    if array.dtype.kind not in "biuf":
        raise ArgumentError(f"`{argument}` of dtype {quoted(array.dtype, 40)}: give a matrix of real numbers")
    if dtype is not None:
        return array, as_numpy(dtype)
    own = array.dtype.newbyteorder("=")
    return array, np.dtype(np.float32 if own == np.float16 else own if own in FLOATS else np.float64)


FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def as_numpy(dtype: torch.dtype) -> np.dtype:
    """NumPy's name of a floating dtype of torch."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def converted(before: Any, after: Any) -> str:
    """The sentence on a conversion of entries."""
    names = [str(kind).removeprefix("torch.") for kind in (before, after)]
    return f"its entries of {names[0]} were converted to {names[1]}"


def of_sparse(matrix: Any, argument: str, dtype: torch.dtype | None, symmetric: bool, tell: Tell) -> Tensor:
    """A SciPy sparse matrix as a torch tensor in CSR form; entries that are stored twice are added."""
    refuse_shape(matrix.shape, argument)
    matrix, kind = of_numbers(matrix, argument, dtype)
    if kind != matrix.dtype:
        tell(converted(matrix.dtype, kind))
    rows = matrix.tocsr()
    rows = rows.astype(kind, copy=False)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    with beta_kept_quiet():
        tensor = torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr.astype(np.int64, copy=False)),
            torch.from_numpy(rows.indices.astype(np.int64, copy=False)),
            torch.from_numpy(rows.data),
            size=rows.shape,
        )
    if symmetric:
        refuse_entries(tensor, argument)
    return tensor


def beta_kept_quiet() -> Any:
    """A context without the warning that torch's sparse matrices may still change."""
    return warnings.catch_warnings(action="ignore")


def by_products(value: Any, argument: str) -> Products | None:
    """An operator of something that is known by its products; None where it is not."""
    if isinstance(value, tuple):
        return of_function(value[1], value[0], argument) if len(value) == 2 and callable(value[1]) else None
    if hasattr(value, "shape") and (hasattr(value, "matmat") or hasattr(value, "matvec")):
        n = side(value.shape, argument)
        return Products(
            by_methods(value), n, dtype_of(value, argument), what=type(value).__name__.removeprefix("_Custom")
        )
    if hasattr(value, "shape") and hasattr(value, "__matmul__") and not hasattr(value, "__array__"):
        n = side(value.shape, argument)
        return Products(value.__matmul__, n, dtype_of(value, argument), what=type(value).__name__)
    if callable(value) and (n := size_of(value)) is not None:
        return of_function(value, n, argument)
    return None


def size_of(function: Any) -> Any:
    """The size that a function states, its attribute `size` or `shape`; None where it states none."""
    size = getattr(function, "size", None)
    return getattr(function, "shape", None) if size is None else size


def of_function(function: Callable[..., Any], size: Any, argument: str) -> Products:
    """An operator by a function of one vector (n,), which returns the product (n,).

    It is given float64 NumPy arrays; those of another dtype, or torch tensors, where its attribute `dtype` names one.
    """
    name = getattr(function, "__name__", type(function).__name__)
    return Products(columnwise(function), side(size, argument), dtype_of(function, argument), what=f"function {name}")


def side(size: Any, argument: str) -> int:
    """The number of rows of a square matrix, given that or its shape."""
    if isinstance(size, Integral) and not isinstance(size, bool):
        size = (int(size), int(size))
    if not isinstance(size, tuple | list | torch.Size) or not all(isinstance(part, Integral) for part in size):
        raise ArgumentError(
            f"`{argument}`: its size {quoted(size, 40)} is not a valid size; give n, or the shape (n, n)"
        )
    refuse_shape(size, argument)
    return int(size[0])


def dtype_of(value: Any, argument: str) -> np.dtype | torch.dtype:
    """The dtype of the vectors that a value multiplies, which it may name; float64 for integers and for none."""
    own = getattr(value, "dtype", None)
    if own is None:
        return np.dtype(np.float64)
    if isinstance(own, torch.dtype):
        refuse_kind(own, argument)
        return own
    own = np.dtype(own)
    if own.kind == "c":
        raise ArgumentError(f"`{argument}` of {own}: is complex; {NOT_COMPLEX}")
    return own if own in FLOATS else np.dtype(np.float64)


def by_methods(value: Any) -> Callable[[Any], Any]:
    """The product by the methods of a SciPy `LinearOperator`, of which each takes one kind of array."""
    several = value.matmat if hasattr(value, "matmat") else columnwise(value.matvec)
    one = value.matvec if hasattr(value, "matvec") else lambda vector: several(vector[:, None])[:, 0]
    return lambda vectors: one(vectors) if vectors.ndim == 1 else several(vectors)


def columnwise(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function of columns (n, k) that applies another to each of them."""

    def multiply(columns: Any) -> Any:
        if columns.ndim == 1:
            return function(columns)
        if isinstance(columns, Tensor):  # each is copied, since a function may give the same memory at every call
            return torch.stack([function(column.clone()).clone() for column in columns.T], dim=1)
        return np.stack([np.array(function(column.copy())) for column in columns.T], axis=1)

    return multiply


class Products:
    """A symmetric operator that is known by a function from vectors (n,) or columns (n, k) to their products.

    Args:
        multiply: is given NumPy arrays on the CPU, or torch tensors where `dtype` is torch's; they are its own, to
            write in.
        n: the number of rows.
        dtype: of the vectors.
        what: multiplies, in words.
    """

    def __init__(self, multiply: Callable[[Any], Any], n: int, dtype: np.dtype | torch.dtype, what: str = "products"):
        self.multiply, self.what = multiply, what
        self.shape = torch.Size((n, n))
        self.tensors = isinstance(dtype, torch.dtype)
        self.dtype: torch.dtype = (
            dtype if isinstance(dtype, torch.dtype) else torch.from_numpy(np.empty(0, dtype)).dtype
        )
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        return f"Products({self.what}, {self.shape[0]} x {self.shape[0]})"

    def suspect(self) -> str:
        """The likely cause of products that are unrepeatable or asymmetric, and the way out."""
        return "make each product depend on the vector alone, and A equal A'"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.dtype != self.dtype:
            raise TypeError(f"expected vectors of the operator's dtype {self.dtype}, got {vectors.dtype}")
        given = vectors.detach().cpu().clone()
        found = self.multiply(given if self.tensors else given.numpy())
        product = found.detach().cpu() if isinstance(found, Tensor) else np.asarray(found)
        real = not product.is_complex() if isinstance(product, Tensor) else product.dtype.kind in "biuf"
        if not real or tuple(product.shape) != tuple(vectors.shape):
            kind = str(product.dtype).removeprefix("torch.")
            came = type(found).__name__ if kind == "object" else f"{kind} of shape {tuple(product.shape)}"
            raise SpectraError(
                f"`operator`: the product of a vector of shape {tuple(vectors.shape)} by {self.what} is {came}; "
                "return real numbers of the vector's shape"
            )
        if isinstance(product, Tensor):
            return product.to(self.dtype, copy=True)  # a function may give the same memory at every call
        return torch.from_numpy(product.astype(as_numpy(self.dtype)))
