"""Sampling errors of a matrix that is itself an estimate, in addition to the errors of the methods.

Such an operator has two optional methods: `standard_errors(vectors)` returns the standard errors (k,) of u'Au for the
columns u of (n, k), and `trace_error()` the standard error of the trace. For a unit eigenvector u, the first is the
error of its eigenvalue to first order (Rayleigh, Schrödinger).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectra.errors import SpectraError, describe
from spectra.krylov.results import Eigenpairs, TraceEstimate, as_cpu_float64
from spectra.operator import SymmetricOperator, find_on
from spectra.vectors import full_tensor


def with_sampling_errors(pairs: Eigenpairs, operator: SymmetricOperator) -> Eigenpairs:
    """Add the standard errors of the eigenvalues to pairs, if the operator provides them."""
    errors = find_on("standard_errors", operator)
    if errors is None or not len(pairs.values):
        return pairs
    columns = full_tensor(pairs.vectors).to(operator.device).T.contiguous()
    return replace(pairs, sampling_errors=provided("standard_errors", lambda: errors(columns), (len(pairs.values),)))


def provided(name: str, method: Callable[[], Any], shape: tuple[int, ...]) -> Tensor:
    """The standard errors that a method of an operator returns, in float64. Raises SpectraError if they are invalid."""
    try:
        found = as_cpu_float64(torch.as_tensor(method()))
    except SpectraError:
        raise
    except Exception as error:
        text = f"its {name} failed with {describe(error)}; SPECTRA_TRACEBACK=1 shows where"
        raise SpectraError(f"`operator`: {text}") from error
    if found.shape != shape or (found < 0).any():
        came = (
            f"a negative error, {found.min():.2g}" if found.shape == shape else f"errors of shape {tuple(found.shape)}"
        )
        raise SpectraError(f"`operator`: its {name} returned {came}; return standard errors of shape {shape}")
    return found


def with_sampling_error(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: add the sampling error of the operator, if it provides one, to the standard error."""

    def estimate(operator: SymmetricOperator, **options) -> TraceEstimate:
        found = method(operator, **options)
        error = find_on("trace_error", operator)
        if error is None:
            return found
        own = provided("trace_error", error, ()).item()
        return replace(found, standard_error=math.hypot(found.standard_error, own), sampling_error=own)

    return estimate
