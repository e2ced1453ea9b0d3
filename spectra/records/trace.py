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
    """The trace of one matrix, with its standard error."""

    method: str
    trace: float
    standard_error: float = field(metadata=written(null=math.inf))  # 0.0: exact; infinite: not known

    # Of derivatives by inputs: `trace` is the mean over examples, and these are the examples' own.
    spread: float | None = field(default=None, metadata=written(omitted=of_one_matrix))  # standard deviation
    spread_error: float | None = field(default=None, metadata=written(omitted=of_one_matrix, null=math.nan))
    traces_by_example: Vector | None = field(
        default=None, metadata=written(array="traces_by_example", omitted=of_many)
    )  # (N,)
    standard_errors_by_example: Vector | None = field(
        default=None, metadata=written(array="standard_errors_by_example", omitted=of_many)
    )  # (N,)

    sampling_error: float | None = field(
        default=None, metadata=written(omitted=lambda entry: entry.exact)
    )  # part of it

    @property
    def exact(self) -> bool:
        """Whether the matrix is known, and no estimate whose `sampling_error` the standard error holds."""
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
        """The single row of a trace."""
        yield {"method": self.method, "trace": self.trace, "standard_error": self.standard_error}
