"""The trace: its settings, the choice of the method, and the function that makes its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

from spectra.curvature.matrices import refuse_gram
from spectra.defaults import EXACT, IEEE, RTOL
from spectra.errors import SpectraError
from spectra.krylov.correction import with_correction, with_rounding_noise
from spectra.krylov.deflation import with_deflation
from spectra.krylov.gram import exact_trace_pays
from spectra.krylov.limits import refuse_dense
from spectra.krylov.methods import BASIS_SHARES, TRACE
from spectra.krylov.placement import Placement
from spectra.krylov.results import TraceEstimate, exact_trace
from spectra.krylov.sampling import with_sampling_error
from spectra.operator import Factored, Shaped, SymmetricOperator, find_on
from spectra.product_checks import CHECKS
from spectra.records.record import Record
from spectra.records.trace import TraceResult
from spectra.run import input_blocks
from spectra.run.kernels import kernels
from spectra.run.measurement import Measurement
from spectra.run.request import Request
from spectra.run.session import Session

DIAGONAL = "diagonal"  # the default method for matrices with known entries


@dataclass(frozen=True)
class TraceSettings:
    """The settings of a trace.

    Attributes:
        rtol: the standard error / |trace| to reach.
        method: a method of TRACE; None: the cheapest.
        probes: the number of probes, in place of `rtol`; None: as many as `rtol` needs.
    """

    rtol: float = RTOL
    method: str | None = None
    probes: int | None = None

    command = "trace"
    less_memory = ("`method`", "choose hutchinson, or fewer parameters with `params`")

    def refuse(self, matrices: Sequence[str]) -> None:
        if self.method == "gram":
            for name in matrices:
                refuse_gram(name)

    def refuse_size(self, size: int, products: int | None) -> None:
        if self.method == "dense":
            refuse_dense(size, products)

    def basis(self, space: Shaped) -> Placement | None:
        return None


def trace(session: Session[TraceSettings]) -> Record:
    """Estimate the requested traces, save their record and return it."""
    refuse_dense_differences(session.request)
    session.load()
    if session.request.wrt_inputs:
        found = input_blocks.traces(session)
        record = session.record(found, [TraceResult.by_example(one) for one in found])
        session.save_record(record)
        return record
    found, results = [], []
    for name, method in methods(session).items():
        found.append(trace_of(session, name, method))
        results.append(TraceResult.of(found[-1], method))
    record = session.record(found, results)
    session.save_record(record)
    return record


def refuse_dense_differences(request: Request[TraceSettings]) -> None:
    """Raise SpectraError if an exact trace is requested from products that are not exact."""
    if request.settings.method == "dense" and request.products != EXACT:
        raise SpectraError(
            f"`method` dense: needs exact products, but `products` is {request.products}; choose xtrace, or exact "
            "products"
        )


def methods(session: Session[TraceSettings]) -> dict[str, str]:
    """The method for the trace of each matrix by name. Settings that only XTrace takes choose XTrace."""
    settings, limit, matrices = session.request.settings, session.request.max_products, session.matrices()
    without_factor = session.request.preconditioner  # even if the matrix itself has one
    if settings.method or settings.probes or session.request.earlier or without_factor:
        return {matrix.name: settings.method or "xtrace" for matrix in matrices}
    usual = {
        matrix.name: DIAGONAL if sum_of(matrix) is not None else usual_method(matrix, limit and limit - CHECKS)
        for matrix in matrices
    }
    return usual | dict.fromkeys(kernels(session), "gram")


def sum_of(matrix: Any) -> float | None:
    """The sum of the diagonal of a matrix with known entries; None for others."""
    found = find_on("diagonal_sum", matrix)
    return found() if found else None


def diagonal_trace(operator: SymmetricOperator, **_: Any) -> TraceEstimate:
    """The exact trace of a matrix with known entries, without products."""
    value = sum_of(operator)
    assert value is not None
    return exact_trace(value, products=0)


def usual_method(matrix: Factored, products: int | None) -> str:
    """The default method of TRACE for a matrix.

    Args:
        matrix: a Curvature, or a Counting around one.
        products: the limit on products; None: no limit.

    Returns:
        "gram" if the exact trace costs no more than the first stage of XTrace, otherwise "xtrace".
    """
    return "gram" if exact_trace_pays(matrix, products) else "xtrace"


def trace_of(session: Session[TraceSettings], name: str, method: str) -> Measurement:
    """Estimate the trace of one matrix, with eigenpairs of an earlier run projected out, except for gram."""
    if method == DIAGONAL:
        (measurement,) = session.measure(diagonal_trace, products=CHECKS, names=[name])
        return measurement
    settings, found = session.request.settings, resolve_name(TRACE[method])
    arguments = {"rtol": settings.rtol, "probes": settings.probes}
    if method == "gram":
        (measurement,) = session.measure(partial(found, **arguments), products=CHECKS, names=[name], precision=IEEE)
    else:
        precision = IEEE if method == "dense" else None  # dense is exact
        corrected = with_deflation(with_correction(found, BASIS_SHARES.get(method, 0.0)))
        corrected = partial(with_sampling_error(with_rounding_noise(corrected)), **arguments)
        (measurement,) = session.measure(corrected, reuse=True, names=[name], precision=precision)
    return measurement
