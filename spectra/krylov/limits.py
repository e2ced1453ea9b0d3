"""What can be asked of a matrix of n rows: judged by n alone, so that it can be refused before there is a matrix."""

from __future__ import annotations

from spectra.errors import SpectraError
from spectra.wording import counted

LARGEST_DENSE = 20_000  # rows; its float64 matrix takes 3.2 GB and its eigenvectors as much again


def refuse_k(k: int, n: int) -> None:
    """Raise SpectraError where a matrix of n rows has fewer than k eigenvalues."""
    if k > n:
        raise SpectraError(f"-k: {counted(k, 'eigenvalue')} of a matrix with {counted(n, 'row')}; ask for at most {n}")


def refuse_dense(n: int, max_products: int | None = None) -> None:
    """Raise SpectraError where a matrix of n rows is too large to be held, or for the products that are left."""
    if max_products is not None and n > max_products:
        raise SpectraError(
            f"--max-products: {max_products} are left, but --method dense takes {n:,}, one a row; choose another method"
        )
    if n > LARGEST_DENSE:
        raise SpectraError(
            f"--method dense: the matrix has {counted(n, 'row')}, and dense holds {LARGEST_DENSE:,} at most; "
            "choose another method, or fewer parameters with --params"
        )


def refuse_which(which: str) -> None:
    """Raise SpectraError for ends of the spectrum that power iteration does not find."""
    if which != "LM":
        raise SpectraError(f"--which {which}: power iteration finds the largest magnitudes alone; use --method lanczos")
