"""Top eigenvalues and the trace of one matrix for so many products in all."""

from __future__ import annotations

import time
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from spectra.curvature.operator import Curvature
from spectra.krylov.deflation import trace_beside
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.gram import exact_trace_pays
from spectra.krylov.methods import TRACE
from spectra.krylov.streams import BESIDE_EIGENVECTORS, stream
from spectra.operator import CHECKS, Counting, check_operator
from spectra.run.measurement import Measurement, measured

FEWEST = 4  # products for a trace: of fewer there is no standard error


class Found(NamedTuple):
    eigenpairs: Measurement
    trace: Measurement
    trace_method: str


def least(k: int) -> int:
    """The fewest products that `measure` can do with."""
    return CHECKS + 2 * max(k + 1, FEWEST)


def measure(matrix: Curvature, products: int, k: int, tolerance: float, rtol: float, seed: int, vectors: Path) -> Found:
    """Checks first; at most half of what they leave for eigenvalues, and the rest for the trace of the complement.

    Where the exact trace costs no more it is taken instead. The set-up and the checks count with the eigenvalues.
    `vectors` is where the eigenvectors will lie that are projected out.
    """
    matrix.prepare()
    start, counted = time.perf_counter(), Counting(matrix)
    generator = stream(seed)
    noise = check_operator(counted, generator)
    half = (products - CHECKS) // 2
    pairs = eigenpairs(counted, k, tolerance=tolerance, generator=generator, max_products=half)
    spent, middle = counted.products, time.perf_counter()

    left = products - spent
    method = "gram" if exact_trace_pays(matrix, left) else "xtrace"
    known = pairs if method == "xtrace" and pairs.values.isfinite().all() else None
    generator = stream(seed, BESIDE_EIGENVECTORS)
    estimate = trace_beside(resolve_name(TRACE[method]))
    trace = estimate(counted, known, rtol=rtol, generator=generator, max_products=left)
    end = time.perf_counter()
    return Found(
        measured(
            matrix, pairs, products=spent, seconds=middle - start, setup_seconds=matrix.setup_seconds, noise=noise
        ),
        measured(
            matrix,
            trace,
            products=trace.products,
            seconds=end - middle,
            setup_seconds=0.0,
            noise=noise,
            projected_out=len(known.values) if known else 0,
            earlier=vectors if known else None,
        ),
        method,
    )
