"""Errors of a matrix that is itself an estimate, as from samples: beside those of the methods.

Such an operator tells its errors by two optional members: `standard_errors(vectors)`, the standard errors (k,) of u'Au
for the columns u of (n, k), and `trace_error()`, that of its trace. For a unit eigenvector u, the first is the error of
its eigenvalue to first order (Rayleigh, Schrödinger).
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
    """The pairs with the standard errors of their eigenvalues, where the operator tells them."""
    errors = find_on("standard_errors", operator)
    if errors is None or not len(pairs.values):
        return pairs
    columns = full_tensor(pairs.vectors).to(operator.device).T.contiguous()
    return replace(pairs, sampling_errors=told("standard_errors", lambda: errors(columns), (len(pairs.values),)))


def told(name: str, member: Callable[[], Any], shape: tuple[int, ...]) -> Tensor:
    """The errors that a member of an operator returns, in float64. Raises SpectraError where they are none."""
    try:
        found = as_cpu_float64(torch.as_tensor(member()))
    except SpectraError:
        raise
    except Exception as error:
        text = f"its {name} failed with {describe(error)}; SPECTRA_TRACEBACK=1 shows where"
        raise SpectraError(f"`operator`: {text}") from error
    if found.shape != shape or (found < 0).any():
        came = f"an error below zero, {found.min():.2g}" if found.shape == shape else f"of shape {tuple(found.shape)}"
        raise SpectraError(f"`operator`: its {name} returned {came}; return standard errors of shape {shape}")
    return found


def with_sampling_error(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: its standard error holds that of the sample too, where the operator tells it."""

    def estimate(operator: SymmetricOperator, **options) -> TraceEstimate:
        found = method(operator, **options)
        error = find_on("trace_error", operator)
        if error is None:
            return found
        own = told("trace_error", error, ()).item()
        return replace(found, standard_error=math.hypot(found.standard_error, own), sampling_error=own)

    return estimate
