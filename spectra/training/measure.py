"""Top eigenvalues and the trace of one matrix for so many products in all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from spectra.curvature.operator import Curvature
from spectra.krylov.deflation import with_deflation
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.methods import TRACE
from spectra.product_checks import CHECKS
from spectra.run.measurement import Measurement
from spectra.run.measurement import measure as measure_by
from spectra.run.trace import usual_method

FEWEST = 4  # products for a trace: of fewer there is no standard error


class Found(NamedTuple):
    """The measurements of eigenpairs and of the trace, and the method for the latter."""

    eigenpairs: Measurement
    trace: Measurement
    trace_method: str


def least(k: int) -> int:
    """The fewest products that `measure` can do with."""
    return CHECKS + 2 * max(k + 1, FEWEST)


def measure(matrix: Curvature, products: int, k: int, tolerance: float, rtol: float, seed: int, vectors: Path) -> Found:
    """Measure top eigenvalues and the trace of one matrix for at most so many products in all, checks included.

    At most half of what the checks leave goes to the eigenvalues, the rest to the trace of the complement of their
    eigenvectors. Where the exact trace costs no more it is taken instead. The set-up and the checks count with the
    eigenvalues. `vectors` is where the eigenvectors will lie that are projected out.
    """
    half = (products - CHECKS) // 2
    solve = partial(eigenpairs, k=k, tolerance=tolerance)
    pairs = measure_by(matrix, solve, seed=seed, left=lambda spent: half)

    left = products - pairs.products
    method = usual_method(matrix, left)
    known = pairs.answer if method == "xtrace" and pairs.answer.values.isfinite().all() else None
    trace = measure_by(
        matrix,
        partial(with_deflation(resolve_name(TRACE[method])), rtol=rtol),
        seed=seed,
        check=False,
        known=lambda _: known,
        earlier=vectors,
        left=lambda spent: left,
    )
    return Found(pairs, replace(trace, setup_seconds=0.0, noise=pairs.noise), method)
