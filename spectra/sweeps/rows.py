"""The rows of the table of an evolution, and the rows of numbers that a result holds directly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectra.records.problem import ProblemRecord
from spectra.records.sweep import Number, Row

QUANTITIES = {  # in the table's order, with the meaning of `index` and `error`
    "loss": "mean loss",
    "accuracy": "share of examples that are classified correctly",
    "eigenvalue": "index: 1 the largest, 2 the second; -1 the smallest, -2 the second; error: residual",
    "learning_rate": "learning rate of the optimizer that defines the preconditioner; empty if P / rate is used as P",
    "threshold": "threshold of stability of that optimizer, in units of eigenvalues; upper: upper end if an interval",
    "over_threshold": "eigenvalue divided by threshold, above 1 in an unstable direction; index: as for eigenvalue",
    "trace": "error: standard error",
    "negative_share": "share of eigenvalues below zero, with its 95 % interval",
    "gap": "(lambda_k - lambda_k+1) / lambda_k; index: k of the leading eigenspace; error: from residuals",
    "overlap_next": "overlap of leading k-spaces here and at the next one; index: k; error: bound from residuals",
    "overlap_last": "overlap of leading k-spaces here and at the last one; index: k; error: bound from residuals",
    "angle_next": "principal angle of the same spaces, in radians; index: 1 the smallest",
    "angle_last": "principal angle of the same spaces, in radians; index: 1 the smallest",
    "alignment_next": "|cosine| of the leading eigenvectors here and at the next; index: 1; error: bound",
    "update_share": "share of the step to the next checkpoint inside the leading k-space here; index: k; error: bound",
    "update_cosine": "cosine between the steps to and from this checkpoint, in parameters",
}


@dataclass(frozen=True)
class ResultEntry:
    """The result of one command for one matrix at one checkpoint."""

    label: str  # of the checkpoint
    step: Number
    checkpoint: Path | None
    file: Path  # the JSON
    command: str
    problem: ProblemRecord
    entry: Any  # of `records.record.RESULTS[command]`

    @property
    def curvature(self) -> str:
        return self.entry.curvature

    @property
    def seed(self) -> int:
        return self.problem.seed

    def row(self, quantity: str, index: int | None, value: float | None, **fields: Any) -> Row:
        """Make the row of a number of this result, with the cost of the command."""
        entry = self.entry
        cost = {"products": entry.products, "converged": entry.converged, "command": self.command}
        return Row(self.label, self.step, self.curvature, self.seed, quantity, index, value, **cost | fields)


def threshold_rows(found: ResultEntry, eigenvalues: Sequence[Row]) -> Iterator[Row]:
    """Rows of the threshold of stability, and of eigenvalues divided by it, for a preconditioned matrix."""
    if (of := found.problem.get("precondition")) is None:
        return
    untaken = {"products": None, "converged": None}  # these numbers took no products
    if (rate := of.get("rate")) is not None:
        yield found.row("learning_rate", None, rate, **untaken)
    if (threshold := of.threshold_of(found.curvature)) is None:
        return
    yield found.row("threshold", None, threshold, upper=of.get("threshold_upper"), **untaken)
    for row in eigenvalues:
        if row.value is not None and row.error is not None:
            value, error = (number / threshold for number in (row.value, row.error))
            yield replace(row, quantity="over_threshold", value=value, error=error)


def trace_rows(found: ResultEntry) -> Iterator[Row]:
    """The row of the trace."""
    yield found.row("trace", None, found.entry.trace, error=found.entry.standard_error)


def density_rows(found: ResultEntry) -> Iterator[Row]:
    """The row of the share of eigenvalues below zero, if it is known."""
    if share := found.entry.negative:
        yield found.row("negative_share", None, share.value, lower=share.lower, upper=share.upper)


def problem_rows(found: ResultEntry) -> Iterator[Row]:
    """Rows of loss and accuracy, which do not depend on the matrix."""
    for quantity, key in (("loss", "loss_value"), ("accuracy", "accuracy")):
        value = getattr(found.problem, key, None)
        if value is not None:
            yield Row(found.label, found.step, None, found.seed, quantity, None, value, command=found.command)
