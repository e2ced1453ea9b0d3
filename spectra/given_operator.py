"""Convert a user's matrix to a symmetric operator: NumPy arrays, torch tensors, SciPy matrices, functions with a size.

Every public method converts its operator here once, and refuses anything but a real symmetric matrix. A matrix with
known entries is checked entry by entry (`entries`), any other by its products (`spectra.check_operator`).
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

from spectra.arguments import wrong
from spectra.entries import refuse_entries
from spectra.errors import ArgumentError, SpectraError
from spectra.quoting import quoted
from spectra.wording import dtype_name

KNOWN = (
    "a NumPy array, a torch.Tensor, a SciPy sparse matrix or LinearOperator, a pair (n, function), or an operator with "
    "shape, dtype, device and @ (see spectra.SymmetricOperator)"
)
NOT_COMPLEX = (
    "give its real part if the imaginary part is zero, else [[Re, -Im], [Im, Re]], which has each eigenvalue twice"
)
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}  # half precision is too coarse for eigenvalues
PROTOCOL = ("shape", "dtype", "device", "__matmul__")
Notify = Callable[[str], None]


def ignore_note(_note: str) -> None:
    """Ignore a note on a conversion."""


def as_operator(
    value: Any,
    argument: str = "operator",
    *,
    dtype: torch.dtype | None = None,
    symmetric: bool = True,
    tell: Notify = ignore_note,
) -> Any:
    """Convert a matrix in any of the usual forms to the symmetric operator that all methods take.

    Args:
        value: a NumPy array, a torch tensor (dense or sparse), a SciPy sparse matrix or array, a SciPy
            `LinearOperator`, any other object with a shape and @, a function with a `size` (or `shape`) attribute, a
            pair (n, function), or a symmetric operator, which is returned as it is.
        argument: the name of the argument in error messages.
        dtype: float32 or float64, to which entries are converted. None: they stay as they are; integers, booleans
            and types that torch does not compute in become float64.
        symmetric: check that entries are finite and symmetric.
        tell: a function that is called with a sentence about each conversion.

    Returns:
        A dense tensor, a sparse tensor in CSR form, or an operator that multiplies by a function. A tensor shares
        memory with `value` where the dtype is kept.

    Raises:
        ArgumentError: the value is none of these, or not square, empty, complex, not finite, or not symmetric.
    """
    if isinstance(value, Tensor):
        return from_tensor(value, argument, dtype, symmetric, tell)
    if is_operator(value):
        refuse_shape(value.shape, argument)
        refuse_kind(value.dtype, argument)
        return with_checked_dtype(value, argument, dtype)
    if is_sparse(value):
        return from_sparse(value, argument, dtype, symmetric, tell)
    if isinstance(value, np.ndarray):
        return from_array(value, argument, dtype, symmetric, tell)
    if (found := from_products(value, argument)) is not None:
        return with_checked_dtype(found, argument, dtype)
    if hasattr(value, "__array__") and hasattr(value, "shape"):
        return from_array(np.asarray(value), argument, dtype, symmetric, tell)
    raise wrong(argument, type(value), KNOWN)


def is_operator(value: Any) -> bool:
    """Whether a value has the members of a `SymmetricOperator`."""
    return all(hasattr(value, part) for part in PROTOCOL) and isinstance(value.dtype, torch.dtype)


def is_sparse(value: Any) -> bool:
    """Whether a value is a SciPy sparse matrix or array, found out without loading SciPy."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(value)


def refuse_shape(shape: Any, argument: str) -> None:
    """Raise ArgumentError unless a shape is (n, n) with n >= 1."""
    shape = tuple(shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        shown = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ArgumentError(f"`{argument}`: expected a square matrix, (n, n) with n >= 1, got the shape {shown}")


def refuse_kind(dtype: torch.dtype, argument: str) -> None:
    """Raise ArgumentError unless products are in real floating-point numbers of 32 bits or more."""
    if dtype.is_complex:
        raise ArgumentError(f"`{argument}`: the matrix is complex ({dtype}); {NOT_COMPLEX}")
    if not dtype.is_floating_point:
        raise ArgumentError(f"`{argument}`: expected real floating-point numbers, got {dtype}")
    if dtype in WIDER:
        raise ArgumentError(f"`{argument}`: {dtype} is too coarse for eigenvalues; multiply in {WIDER[dtype]}")


def with_checked_dtype(operator: Any, argument: str, dtype: torch.dtype | None) -> Any:
    """Return an operator that is known by its products. Raises ArgumentError where another dtype is asked for."""
    if dtype not in (None, operator.dtype):
        own, asked = (dtype_name(kind) for kind in (operator.dtype, dtype))
        raise ArgumentError(f"`dtype` {asked}: this operator multiplies vectors of {own}; leave `dtype` out")
    return operator


def from_tensor(tensor: Tensor, argument: str, dtype: torch.dtype | None, symmetric: bool, tell: Notify) -> Tensor:
    """Convert a torch tensor to a dense tensor, or to a sparse one in CSR form."""
    refuse_shape(tensor.shape, argument)
    if tensor.dtype.is_complex:
        raise ArgumentError(f"`{argument}`: the matrix is complex ({tensor.dtype}); {NOT_COMPLEX}")
    if tensor.is_meta or tensor.is_quantized:
        kind = "is on the meta device" if tensor.is_meta else "is quantized"
        raise ArgumentError(f"`{argument}`: the tensor {kind}; give an ordinary tensor with values")
    kind = dtype or WIDER.get(tensor.dtype, tensor.dtype if tensor.dtype.is_floating_point else torch.float64)
    if kind != tensor.dtype:
        tell(converted(tensor.dtype, kind))
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.layout not in (torch.strided, torch.sparse_csr):
        with without_beta_warning():
            if tensor.layout in (torch.sparse_bsr, torch.sparse_bsc):  # torch converts these to COO only
                tensor = tensor.to_sparse_coo()
            tensor = (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor).to_sparse_csr()
    if kind != tensor.dtype:
        tensor = tensor.to(kind)
    if symmetric and plain(tensor):
        refuse_entries(tensor, argument)
    return tensor


def plain(tensor: Tensor) -> bool:
    """Whether a tensor's entries can be read here: those of a subclass may be in other processes."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def from_array(array: np.ndarray, argument: str, dtype: torch.dtype | None, symmetric: bool, tell: Notify) -> Tensor:
    """Convert a NumPy array to a dense tensor, which shares its memory where torch has its dtype."""
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ArgumentError(f"`{argument}`: it has masked entries; fill them, e.g. by .filled(0)")
        array = array.data
    array = np.asarray(array)
    refuse_shape(array.shape, argument)
    array, kind = real_array(array, argument, dtype)
    if kind != array.dtype:
        tell(converted(array.dtype, kind))
    array = np.asarray(array, dtype=kind)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):  # torch does not support these
        array = array.copy()
    with warnings.catch_warnings(action="ignore"):  # torch warns of arrays that are not writable: we do not write
        tensor = torch.from_numpy(array)
    if symmetric:
        refuse_entries(tensor, argument)
    return tensor


def real_array(array: Any, argument: str, dtype: torch.dtype | None) -> tuple[Any, np.dtype]:
    """Return an array of real numbers, and the dtype in which it is multiplied. Raises ArgumentError."""
    if array.dtype.kind == "c":
        raise ArgumentError(f"`{argument}`: the matrix is complex ({array.dtype}); {NOT_COMPLEX}")
    if array.dtype.kind not in "biuf":
        raise ArgumentError(f"`{argument}`: expected a matrix of real numbers, got dtype {quoted(array.dtype, 40)}")
    if dtype is not None:
        return array, as_numpy(dtype)
    own = array.dtype.newbyteorder("=")
    return array, np.dtype(np.float32 if own == np.float16 else own if own in FLOATS else np.float64)


FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def as_numpy(dtype: torch.dtype) -> np.dtype:
    """The NumPy dtype of a floating-point dtype of torch."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def converted(before: Any, after: Any) -> str:
    """The note on a conversion of entries from one dtype to another."""
    names = [dtype_name(kind) for kind in (before, after)]
    return f"its entries of {names[0]} were converted to {names[1]}"


def from_sparse(matrix: Any, argument: str, dtype: torch.dtype | None, symmetric: bool, tell: Notify) -> Tensor:
    """Convert a SciPy sparse matrix to a torch tensor in CSR form; duplicate entries are summed."""
    refuse_shape(matrix.shape, argument)
    matrix, kind = real_array(matrix, argument, dtype)
    if kind != matrix.dtype:
        tell(converted(matrix.dtype, kind))
    rows = matrix.tocsr()
    rows = rows.astype(kind, copy=False)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    with without_beta_warning():
        tensor = torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr.astype(np.int64, copy=False)),
            torch.from_numpy(rows.indices.astype(np.int64, copy=False)),
            torch.from_numpy(rows.data),
            size=rows.shape,
        )
    if symmetric:
        refuse_entries(tensor, argument)
    return tensor


def without_beta_warning() -> Any:
    """A context without torch's warning that sparse CSR tensors are in beta."""
    return warnings.catch_warnings(action="ignore")


def from_products(value: Any, argument: str) -> ProductOperator | None:
    """Convert a value that is known by its products to an operator; return None for any other value."""
    if isinstance(value, tuple):
        return from_function(value[1], value[0], argument) if len(value) == 2 and callable(value[1]) else None
    if hasattr(value, "shape") and (hasattr(value, "matmat") or hasattr(value, "matvec")):
        n = row_count(value.shape, argument)
        return ProductOperator(
            from_linear_operator(value), n, dtype_of(value, argument), what=type(value).__name__.removeprefix("_Custom")
        )
    if hasattr(value, "shape") and hasattr(value, "__matmul__") and not hasattr(value, "__array__"):
        n = row_count(value.shape, argument)
        return ProductOperator(value.__matmul__, n, dtype_of(value, argument), what=type(value).__name__)
    if callable(value) and (n := size_of(value)) is not None:
        return from_function(value, n, argument)
    return None


def size_of(function: Any) -> Any:
    """A function's attribute `size`, or else `shape`; None where it has neither."""
    size = getattr(function, "size", None)
    return getattr(function, "shape", None) if size is None else size


def from_function(function: Callable[..., Any], size: Any, argument: str) -> ProductOperator:
    """Make an operator of a function that maps a vector (n,) to its product (n,).

    The function gets NumPy arrays in float64, or in the NumPy dtype that its attribute `dtype` names; if that is a
    dtype of torch, it gets tensors.
    """
    name = getattr(function, "__name__", type(function).__name__)
    return ProductOperator(
        columnwise(function), row_count(size, argument), dtype_of(function, argument), what=f"function {name}"
    )


def row_count(size: Any, argument: str) -> int:
    """The number of rows n of a square matrix, given n or the shape (n, n)."""
    if isinstance(size, Integral) and not isinstance(size, bool):
        size = (int(size), int(size))
    if not isinstance(size, tuple | list | torch.Size) or not all(isinstance(part, Integral) for part in size):
        raise ArgumentError(f"`{argument}`: {quoted(size, 40)} is not a valid size; give n, or the shape (n, n)")
    refuse_shape(size, argument)
    return int(size[0])


def dtype_of(value: Any, argument: str) -> np.dtype | torch.dtype:
    """The dtype of the vectors that a value multiplies, its attribute `dtype`; float64 for integers or without one."""
    own = getattr(value, "dtype", None)
    if own is None:
        return np.dtype(np.float64)
    if isinstance(own, torch.dtype):
        refuse_kind(own, argument)
        return own
    own = np.dtype(own)
    if own.kind == "c":
        raise ArgumentError(f"`{argument}`: the matrix is complex ({own}); {NOT_COMPLEX}")
    return own if own in FLOATS else np.dtype(np.float64)


def from_linear_operator(value: Any) -> Callable[[Any], Any]:
    """The product by `matvec` or `matmat` of a SciPy `LinearOperator`, for vectors (n,) and columns (n, k)."""
    several = value.matmat if hasattr(value, "matmat") else columnwise(value.matvec)
    one = value.matvec if hasattr(value, "matvec") else lambda vector: several(vector[:, None])[:, 0]
    return lambda vectors: one(vectors) if vectors.ndim == 1 else several(vectors)


def columnwise(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Extend a function of vectors (n,) to columns (n, k), to which it is applied one by one."""

    def multiply(columns: Any) -> Any:
        if columns.ndim == 1:
            return function(columns)
        if isinstance(columns, Tensor):  # copies: a function may return the same memory at every call
            return torch.stack([function(column.clone()).clone() for column in columns.T], dim=1)
        return np.stack([np.array(function(column.copy())) for column in columns.T], axis=1)

    return multiply


class ProductOperator:
    """A symmetric operator that is known by a function from vectors (n,) or columns (n, k) to their products.

    Args:
        multiply: the function; it gets NumPy arrays on the CPU, or torch tensors if `dtype` is a dtype of torch, and
            may write to them.
        n: the number of rows.
        dtype: the dtype of the vectors.
        what: the name of the function or object, for messages.
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
        return "each product has to depend on the vector alone, and A has to equal A'"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.dtype != self.dtype:
            raise TypeError(f"expected vectors of the operator's dtype {self.dtype}, got {vectors.dtype}")
        given = vectors.detach().cpu().clone()
        found = self.multiply(given if self.tensors else given.numpy())
        product = found.detach().cpu() if isinstance(found, Tensor) else np.asarray(found)
        real = not product.is_complex() if isinstance(product, Tensor) else product.dtype.kind in "biuf"
        if not real or tuple(product.shape) != tuple(vectors.shape):
            kind = dtype_name(product.dtype)
            came = type(found).__name__ if kind == "object" else f"{kind} of shape {tuple(product.shape)}"
            raise SpectraError(
                f"`operator`: the product of a vector of shape {tuple(vectors.shape)} by {self.what} is {came}; "
                "return real numbers of the vector's shape"
            )
        if isinstance(product, Tensor):
            return product.to(self.dtype, copy=True)  # a function may return the same memory at every call
        return torch.from_numpy(product.astype(as_numpy(self.dtype)))
