"""The result of `spectra trace` for one matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from spectra.records.entry import MOST_BY_EXAMPLE, Entry, cost_of
from spectra.records.fields import Vector, stored, written


def of_one_matrix(entry: TraceResult) -> bool:
    """Whether the result is of one matrix, and not of those of single examples."""
    return entry.spread is None


def of_many(entry: TraceResult) -> bool:
    """Whether the numbers of single examples are left to the NPZ file."""
    return entry.traces_by_example is None or entry.traces_by_example.size > MOST_BY_EXAMPLE


@stored
class TraceResult(Entry):
    """The trace of one matrix, with its standard error.

    Attributes:
        method: the method, such as xtrace.
        trace: the trace. By inputs, this is the mean over examples.
        standard_error: its standard error; 0.0 where the trace is exact, infinite where the error is not known.
        spread: by inputs, the standard deviation of the traces over examples; else None.
        spread_error: the standard error of `spread`; else None.
        traces_by_example: by inputs, the trace of each example (N,); else None.
        standard_errors_by_example: by inputs, their standard errors (N,); else None.
        sampling_error: the part of the standard error that comes from a matrix that is itself an estimate; else None.

    Fields that all results have, such as `converged`, `products` and `seconds`, are described at their base class
    `spectra.records.entry.Entry`.
    """

    method: str
    trace: float
    standard_error: float = field(metadata=written(null=math.inf))

    # Of derivatives by inputs: `trace` is the mean over examples, and these are the examples' own.
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
        """Make the record of a measurement whose answer is a `TraceEstimate`."""
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
        """Make the record of a measurement whose answer is `BlockTraces`, of the matrices of single examples."""
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
