"""The result of `spectra trace` for one matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from spectra.records.entry import MOST_BY_EXAMPLE, Entry, cost_of
from spectra.records.fields import Vector, stored, written


def of_one_matrix(entry: TraceResult) -> bool:
    """Whether the result is for one matrix, and not for the matrices of single examples."""
    return entry.spread is None


def of_many(entry: TraceResult) -> bool:
    """Whether the numbers of single examples are only in the NPZ file."""
    return entry.traces_by_example is None or entry.traces_by_example.size > MOST_BY_EXAMPLE


@stored
class TraceResult(Entry):
    """The trace of one matrix, with its standard error.

    Attributes:
        method: the method, such as xtrace.
        trace: the trace; with respect to inputs, its mean over examples.
        standard_error: the standard error of the trace: 0.0 if the trace is exact, infinite if the error is not known.
        spread: with respect to inputs, the standard deviation of the traces over examples; otherwise None.
        spread_error: the standard error of `spread`; otherwise None.
        traces_by_example: with respect to inputs, the trace of each example (N,); otherwise None.
        standard_errors_by_example: with respect to inputs, the standard error of each trace (N,); otherwise None.
        sampling_error: the part of the standard error that is due to sampling, if the matrix is itself an estimate.

    The fields of all results, such as `converged`, `products` and `seconds`, are described in the base class
    `spectra.records.entry.Entry`.
    """

    method: str
    trace: float
    standard_error: float = field(metadata=written(null=math.inf))

    # With respect to inputs, `trace` is the mean over examples, and these are per example.
    spread: float | None = field(default=None, metadata=written(omitted=of_one_matrix))
    spread_error: float | None = field(default=None, metadata=written(omitted=of_one_matrix, null=math.nan))
    traces_by_example: Vector | None = field(default=None, metadata=written(array="traces_by_example", omitted=of_many))
    standard_errors_by_example: Vector | None = field(
        default=None, metadata=written(array="standard_errors_by_example", omitted=of_many)
    )

    sampling_error: float | None = field(default=None, metadata=written(omitted=lambda entry: entry.exact))

    @property
    def exact(self) -> bool:
        """Whether the matrix is known exactly; False for an estimate, with a `sampling_error`."""
        return self.sampling_error is None

    @classmethod
    def of(cls, measurement: Any, method: str) -> TraceResult:
        """Make the record of a measurement of a `TraceEstimate`."""
        found = measurement.answer
        return cls(
            method=method,
            trace=found.value,
            standard_error=found.standard_error,
            sampling_error=found.sampling_error or None,
            **cost_of(measurement),
        )

    @classmethod
    def by_example(cls, measurement: Any) -> TraceResult:
        """Make the record of a measurement of `BlockTraces`, for the matrices of single examples."""
        found = measurement.answer
        return cls(
            method=found.method,
            trace=found.mean,
            standard_error=found.error,
            spread=found.spread,
            spread_error=found.spread_error,
            traces_by_example=found.values.numpy(),
            standard_errors_by_example=found.errors.numpy(),
            **cost_of(measurement),
        )

    def summary(self) -> str:
        return f"{self.trace:.6g} ± {self.standard_error:.2g}, {self.method}"

    def table(self) -> list[dict[str, str]]:
        return [{"trace": f"{self.trace:.8g}", "standard error": f"{self.standard_error:.2g}", "method": self.method}]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over the single row of a trace, as a dictionary."""
        yield {"method": self.method, "trace": self.trace, "standard_error": self.standard_error}
