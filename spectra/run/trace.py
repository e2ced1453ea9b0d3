"""The trace: its settings, the choice of the method, and the function that takes a request to its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

from spectra.curvature.matrices import refuse_gram
from spectra.defaults import EXACT, IEEE, RTOL
from spectra.errors import SpectraError
from spectra.krylov.correction import with_correction, with_unsteadiness
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
from spectra.run import by_inputs
from spectra.run.kernels import kernels
from spectra.run.measurement import Measurement
from spectra.run.request import Request
from spectra.run.session import Session

DIAGONAL = "diagonal"  # the method of matrices whose entries are known, unless another is asked for


@dataclass(frozen=True)
class TraceSettings:
    """The method of TRACE (None: the cheapest), and the standard error / |trace| to reach or the number of probes."""

    rtol: float = RTOL
    method: str | None = None
    probes: int | None = None

    command = "trace"
    less_memory = ("`method`", "take hutchinson, or choose fewer parameters with `params`")

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
    """Estimate the traces that are asked for, keep their record and return it."""
    refuse_dense_differences(session.request)
    session.load()
    if session.request.by_inputs:
        found = by_inputs.traces(session)
        record = session.record(found, [TraceResult.by_example(one) for one in found])
        session.keep(record)
        return record
    found, results = [], []
    for name, method in methods(session).items():
        found.append(trace_of(session, name, method))
        results.append(TraceResult.of(found[-1], method))
    record = session.record(found, results)
    session.keep(record)
    return record


def refuse_dense_differences(request: Request[TraceSettings]) -> None:
    """Raise SpectraError where an exact trace is asked for, of products that are not."""
    if request.settings.method == "dense" and request.products != EXACT:
        raise SpectraError(
            f"`method` dense: the trace is exact, and `products` {request.products} are not; take xtrace, or exact "
            "products"
        )


def methods(session: Session[TraceSettings]) -> dict[str, str]:
    """The method for each matrix's trace, by name of the matrix. Settings that are XTrace's own ask for it."""
    asked, limit, matrices = session.request.settings, session.request.max_products, session.matrices()
    without_factor = session.request.preconditioner  # whatever the matrix itself has
    if asked.method or asked.probes or session.request.earlier or without_factor:
        return {matrix.name: asked.method or "xtrace" for matrix in matrices}
    usual = {
        matrix.name: DIAGONAL if sum_of(matrix) is not None else usual_method(matrix, limit and limit - CHECKS)
        for matrix in matrices
    }
    return usual | dict.fromkeys(kernels(session), "gram")


def sum_of(matrix: Any) -> float | None:
    """The sum of the diagonal of a matrix whose entries are known; None of others."""
    found = find_on("diagonal_sum", matrix)
    return found() if found else None


def diagonal_trace(operator: SymmetricOperator, **_: Any) -> TraceEstimate:
    """The trace of a matrix whose entries are known: exact, and without a product."""
    value = sum_of(operator)
    assert value is not None
    return exact_trace(value, products=0)


def usual_method(matrix: Factored, products: int | None) -> str:
    """The method of TRACE by which a trace is found unless another is asked for.

    Args:
        matrix: a Curvature, or a Counting around one.
        products: how many there are for the trace; None is without end.

    Returns:
        "gram" where the exact trace costs no more than the first stage of XTrace, else "xtrace".
    """
    return "gram" if exact_trace_pays(matrix, products) else "xtrace"


def trace_of(session: Session[TraceSettings], name: str, method: str) -> Measurement:
    """Estimate one matrix's trace, beside eigenpairs of an earlier run; gram needs none, and only products to check."""
    if method == DIAGONAL:
        (measurement,) = session.measure(diagonal_trace, products=CHECKS, names=[name])
        return measurement
    asked, found = session.request.settings, resolve_name(TRACE[method])
    settings = {"rtol": asked.rtol, "probes": asked.probes}
    if method == "gram":
        (measurement,) = session.measure(partial(found, **settings), products=CHECKS, names=[name], precision=IEEE)
    else:
        precision = IEEE if method == "dense" else None  # exact, as it is asked for
        corrected = with_deflation(with_correction(found, BASIS_SHARES.get(method, 0.0)))
        corrected = partial(with_sampling_error(with_unsteadiness(corrected)), **settings)
        (measurement,) = session.measure(corrected, reuse=True, names=[name], precision=precision)
    return measurement
