"""Measure top eigenvalues and the trace of one matrix with a limited number of products."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from spectra.curvature.operator import Curvature
from spectra.krylov.deflation import with_deflation
from spectra.krylov.methods import TRACE
from spectra.krylov.warm_start import WarmStart
from spectra.optimizer.preconditioner import Preconditioner
from spectra.product_checks import CHECKS
from spectra.run.measurement import Measurement
from spectra.run.measurement import measure as measure_by
from spectra.run.trace import usual_method

FEWEST = 4  # products for a trace: fewer give no standard error


class Measurements(NamedTuple):
    """The measurement of eigenpairs and, if requested, of the trace, with the method of the trace."""

    eigenpairs: Measurement
    trace: Measurement | None
    trace_method: str = ""

    @property
    def products(self) -> int:
        """The number of products of both."""
        return self.eigenpairs.products + (self.trace.products if self.trace else 0)


def fewest_products(k: int, trace: bool) -> int:
    """Return the smallest number of products that `measure` can work with."""
    return CHECKS + (1 + trace) * max(k + 1, FEWEST)


def measure(
    matrix: Curvature,
    preconditioner: Preconditioner | None,
    warm_start: WarmStart,
    products: int,
    rtol: float | None,
    seed: int,
    vectors: Path,
) -> Measurements:
    """Measure top eigenvalues and the trace of one matrix with at most `products` products, checks included.

    After the checks, at most half of the products go to the eigenvalues, and the rest to the trace of the complement of
    their eigenvectors. If the exact trace costs no more, it is computed instead. Set-up and checks count as part of the
    eigenvalues.

    `check_operator` checks the products whenever the search covers the complement too. At other recordings, the one
    product with which the search verifies its answer shows whether the matrix is repeatable, linear and symmetric.

    Args:
        matrix: the matrix.
        preconditioner: the preconditioner around the matrix; None: the matrix itself.
        warm_start: the state of the eigenpair search, kept from one recording to the next.
        products: the largest number of products.
        rtol: the relative standard error of the trace; None: no trace.
        seed: the seed of probes and of the first starting vector.
        vectors: the file in which the projected-out eigenvectors will be saved.

    Returns:
        The measurements of eigenpairs and trace.
    """
    operator = preconditioner and preconditioner.around(matrix)
    check = warm_start.due
    most = products - CHECKS * check
    share = most if rtol is None else most // 2
    pairs = measure_by(matrix, warm_start.eigenpairs, operator, seed=seed, check=check, left=lambda spent: share)
    if rtol is None:
        return Measurements(pairs, None)

    left = products - pairs.products
    method = "xtrace" if preconditioner else usual_method(matrix, left)  # a preconditioned matrix has no factor
    known = pairs.answer if method == "xtrace" and pairs.answer.values.isfinite().all() else None
    trace = measure_by(
        matrix,
        partial(with_deflation(resolve_name(TRACE[method])), rtol=rtol),
        operator,
        seed=seed,
        check=False,
        known=lambda _: known,
        earlier=vectors,
        left=lambda spent: left,
    )
    return Measurements(pairs, replace(trace, setup_seconds=0.0, noise=pairs.noise), method)
