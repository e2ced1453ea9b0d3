"""Checks of the arguments of a method against the size of the matrix.

They need neither the matrix nor torch, so that a wrong argument is refused before any work.
"""

from __future__ import annotations

import math

from spectra.arguments import require_choice, require_integer, require_number
from spectra.errors import ArgumentError, SpectraError
from spectra.wording import counted

ENDS = ("LM", "LA", "SA", "BE")  # by magnitude, from the top, from the bottom, from both
LARGEST_DENSE = 20_000  # rows; its float64 matrix takes 3.2 GB and its eigenvectors as much again


def refuse_k(k: int, n: int) -> None:
    """Raise ArgumentError if `k` is not an integer from 1 to n, the number of rows."""
    require_integer("k", k)
    if k > n:
        raise ArgumentError(f"`k` {k:,}: the matrix has only {counted(n, 'row')}; ask for at most {n:,}")


def refuse_search(n: int, k: int, which: str, tolerance: float, max_products: int | None) -> None:
    """Raise ArgumentError if an argument of an eigenvalue method is wrong, for a matrix of n rows."""
    refuse_k(k, n)
    require_choice("which", which, ENDS)
    require_number("tolerance", tolerance)
    require_integer("max_products", max_products, optional=True)


def refuse_estimate(rtol: float, probes: int | None, known: float, max_products: int | None) -> None:
    """Raise ArgumentError if an argument of a trace estimator is wrong."""
    require_number("rtol", rtol)
    require_integer("probes", probes, optional=True)
    require_number("known", known, least=-math.inf)
    require_integer("max_products", max_products, optional=True)


def refuse_dense(n: int, max_products: int | None = None) -> None:
    """Raise SpectraError if a matrix of n rows is too large to be stored, or n exceeds `max_products`."""
    if max_products is not None and n > max_products:
        raise SpectraError(
            f"`max_products`: `method` dense needs {n:,} products, one per row, and {max_products:,} are left; raise "
            "`max_products`, or choose another method"
        )
    if n > LARGEST_DENSE:
        raise SpectraError(
            f"`method` dense: the matrix has {counted(n, 'row')}, and dense takes at most {LARGEST_DENSE:,}; "
            "choose another method, or fewer parameters with `params`"
        )


def refuse_which(which: str) -> None:
    """Raise SpectraError if `which` names an end of the spectrum that power iteration cannot find."""
    if which != "LM":
        raise SpectraError(f"`which` {which}: power iteration finds only the largest magnitudes; use `method` lanczos")
