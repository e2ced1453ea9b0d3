"""Top eigenvalues and the trace of one matrix for so many products in all."""

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

FEWEST = 4  # products for a trace: of fewer there is no standard error


class Found(NamedTuple):
    """The measurements of eigenpairs and, where it is asked for, of the trace, with the method for that."""

    eigenpairs: Measurement
    trace: Measurement | None
    trace_method: str = ""

    @property
    def products(self) -> int:
        """The products of both."""
        return self.eigenpairs.products + (self.trace.products if self.trace else 0)


def least(k: int, trace: bool) -> int:
    """The fewest products that `measure` can do with."""
    return CHECKS + (1 + trace) * max(k + 1, FEWEST)


def measure(
    matrix: Curvature,
    found: Preconditioner | None,
    warm_start: WarmStart,
    products: int,
    rtol: float | None,
    seed: int,
    vectors: Path,
) -> Found:
    """Measure top eigenvalues and the trace of one matrix for at most so many products in all, checks included.

    At most half of what the checks leave goes to the eigenvalues, the rest to the trace of the complement of their
    eigenvectors. Where the exact trace costs no more it is taken instead. The set-up and the checks count with the
    eigenvalues.

    Products are checked by `check_operator` where the complement is searched too. In between, the one product by which
    the search checks its answer takes their place: it shows whether the matrix is repeatable, linear and symmetric.

    Args:
        matrix: the matrix.
        found: the preconditioner that is put around it; None: the matrix itself.
        warm_start: the searches for its eigenpairs, from recording to recording.
        products: the most in all.
        rtol: the relative standard error of the trace; None: no trace.
        seed: of probes, and of the first search's starting vector.
        vectors: where the eigenvectors will lie that are projected out.
    """
    operator = found and found.around(matrix)
    check = warm_start.due
    most = products - CHECKS * check
    share = most if rtol is None else most // 2
    pairs = measure_by(matrix, warm_start.eigenpairs, operator, seed=seed, check=check, left=lambda spent: share)
    if rtol is None:
        return Found(pairs, None)

    left = products - pairs.products
    method = "xtrace" if found else usual_method(matrix, left)  # a preconditioned matrix has no factor
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
    return Found(pairs, replace(trace, setup_seconds=0.0, noise=pairs.noise), method)
