"""The convergence test of eigenpairs, which all eigensolvers share."""

from __future__ import annotations

import torch
from torch import Tensor


def allowed_residuals(values: Tensor, size: float, tolerance: float, dtype: torch.dtype) -> Tensor:
    """The largest residuals (k,) of converged pairs: max(tolerance * max(|lambda|, eps^(2/3) |A|), 10 eps |A|).

    The first floor is ARPACK's. Residuals below the second are rounding errors of products, which no solver reduces.

    Args:
        values: the eigenvalues (k,).
        size: the norm |A| of the matrix.
        tolerance: the relative residual asked for.
        dtype: the floating-point type of the products, which determines eps.
    """
    eps = torch.finfo(dtype).eps
    return (tolerance * values.abs().clamp(min=eps ** (2 / 3) * size)).clamp(min=10 * eps * size)
