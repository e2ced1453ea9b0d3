"""Errors of a matrix that is itself an estimate, as from samples: beside those of the methods.

Such an operator tells its errors by two optional members: `standard_errors(vectors)`, the standard errors (k,) of u'Au
for the columns u of (n, k), and `trace_error()`, that of its trace. For a unit eigenvector u, the first is the error of
its eigenvalue to first order (Rayleigh, Schrödinger).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from spectra.krylov.results import Eigenpairs, TraceEstimate, as_cpu_float64
from spectra.operator import SymmetricOperator, find_on
from spectra.vectors import full_tensor


def with_sampling_errors(pairs: Eigenpairs, operator: SymmetricOperator) -> Eigenpairs:
    """The pairs with the standard errors of their eigenvalues, where the operator tells them."""
    errors = find_on("standard_errors", operator)
    if errors is None or not len(pairs.values):
        return pairs
    columns = full_tensor(pairs.vectors).to(operator.device).T.contiguous()
    return replace(pairs, sampling_errors=as_cpu_float64(errors(columns)))


def with_sampling_error(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: its standard error holds that of the sample too, where the operator tells it."""

    def estimate(operator: SymmetricOperator, **options) -> TraceEstimate:
        found = method(operator, **options)
        error = find_on("trace_error", operator)
        if error is None:
            return found
        own = float(error())
        return replace(found, standard_error=math.hypot(found.standard_error, own), sampling_error=own)

    return estimate
