"""One row a number: what the table of an evolution is made of, and the numbers that a result holds as they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectra.records.problem import ProblemRecord
from spectra.records.sweep import Number, Row

QUANTITIES = {  # in the table's order, with what `index` and `error` are
    "loss": "mean loss",
    "accuracy": "share of right classes",
    "eigenvalue": "index: 1 the largest, 2 the second; -1 the smallest, -2 the second; error: residual",
    "learning_rate": "of the optimizer by whose preconditioner eigenvalues are; empty where P / rate stands for P",
    "threshold": "of stability of that optimizer, in the units of eigenvalues; upper: where it lies in an interval",
    "over_threshold": "eigenvalue over threshold, above 1 at an unstable direction; index: as of eigenvalues",
    "trace": "error: standard error",
    "negative_share": "share of eigenvalues below zero, between its 95 % limits",
    "gap": "(lambda_k - lambda_k+1) / lambda_k; index: k of the leading eigenspace; error: from residuals",
    "overlap_next": "of leading k-spaces here and at the next checkpoint; index: k; error: bound from residuals",
    "overlap_last": "of leading k-spaces here and at the last checkpoint; index: k; error: bound from residuals",
    "angle_next": "principal angle of the same spaces, radians; index: 1 the smallest",
    "angle_last": "principal angle of the same spaces, radians; index: 1 the smallest",
    "alignment_next": "|cosine| of the leading eigenvectors here and at the next; index: 1; error: bound",
    "update_share": "share of the step to the next checkpoint inside the leading k-space here; index: k; error: bound",
    "update_cosine": "cosine of the step that led here and the step that follows, in parameters",
}


@dataclass(frozen=True)
class Found:
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
        """The row of a number that this result holds, with the cost of the command."""
        entry = self.entry
        cost = {"products": entry.products, "converged": entry.converged, "command": self.command}
        return Row(self.label, self.step, self.curvature, self.seed, quantity, index, value, **cost | fields)


def threshold_rows(found: Found, eigenvalues: Sequence[Row]) -> Iterator[Row]:
    """Rows of the threshold of stability, and of eigenvalues over it, where they are of a preconditioned matrix."""
    if (of := found.problem.get("precondition")) is None:
        return
    untaken = {"products": None, "converged": None}  # what no product was made for
    if (rate := of.get("rate")) is not None:
        yield found.row("learning_rate", None, rate, **untaken)
    if (threshold := of.threshold_of(found.curvature)) is None:
        return
    yield found.row("threshold", None, threshold, upper=of.get("threshold_upper"), **untaken)
    for row in eigenvalues:
        if row.value is not None and row.error is not None:
            value, error = (number / threshold for number in (row.value, row.error))
            yield replace(row, quantity="over_threshold", value=value, error=error)


def trace_rows(found: Found) -> Iterator[Row]:
    """The row of the trace."""
    yield found.row("trace", None, found.entry.trace, error=found.entry.standard_error)


def density_rows(found: Found) -> Iterator[Row]:
    """The row of the share of eigenvalues below zero, where it is known."""
    if share := found.entry.negative:
        yield found.row("negative_share", None, share.value, lower=share.lower, upper=share.upper)


def problem_rows(found: Found) -> Iterator[Row]:
    """Rows of loss and accuracy, which a checkpoint has whatever the matrix."""
    for quantity, key in (("loss", "loss_value"), ("accuracy", "accuracy")):
        value = getattr(found.problem, key, None)
        if value is not None:
            yield Row(found.label, found.step, None, found.seed, quantity, None, value, command=found.command)
