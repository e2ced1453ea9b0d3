"""The records of sweeps: the states of tasks, their forecast costs, and how spectra evolve over checkpoints."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields
from typing import Any

from spectra.records.fields import Stored, stored
from spectra.records.files import SCHEMA, to_json

Number = int | float
STATES = ("finished", "running", "queued", "interrupted", "failed", "waiting")  # of a task


@stored
class TaskStatus(Stored):
    """The state of one task of a sweep, with its reason and the end of its log."""

    name: str
    state: str  # of STATES
    reason: str | None
    log: str | None  # path of the log
    last_lines: list[str]  # of the log
    tolerance_not_met: list[str]  # commands that are done


@stored
class SweepStatus(Stored):
    """The states of all tasks of a plan."""

    schema: int = SCHEMA
    command: str = "sweep status"
    plan: str  # path
    out: str  # directory
    tasks: list[TaskStatus]

    def to_json(self) -> str:
        """Strict JSON in one line."""
        return to_json(self.to_dict())


@dataclass(frozen=True)
class Cost:
    """The forecast cost of one run of a command on one matrix; nan if `inspect` does not know the method."""

    curvature: str
    command: str
    times: int  # number of runs
    products: float
    seconds: float
    bytes: float
    at_least: bool  # whether the cost may be far higher


@dataclass(frozen=True)
class Costs:
    """The forecast costs of the unfinished tasks of a sweep."""

    rows: tuple[Cost, ...]
    loading: float  # seconds before the first product of each command: start, model and data


@dataclass(frozen=True)
class Row:
    """One row of the table; its fields are the columns, and are None if they do not apply.

    `converged` is false if the command's tolerance was not met, and for a comparison of eigenspaces if residuals
    resolve no gap: the number is then meaningless.
    """

    checkpoint: str
    step: Number
    curvature: str | None
    seed: int | None
    quantity: str  # one of `sweeps.rows.QUANTITIES`, which defines index and error
    index: int | None
    value: float | None
    error: float | None = None
    lower: float | None = None
    upper: float | None = None
    products: int | None = None
    converged: bool | None = None
    command: str | None = None


@stored
class Evolution(Stored):
    """The evolution of spectra over checkpoints: a table by steps, matrices, seeds, quantities and ranks."""

    schema: int = SCHEMA
    command: str = "collect"
    axis: str  # what steps are: "training step", "epoch" or "checkpoint" (position in the order)
    learning_rate: float | None = None  # of gradient descent
    precondition: tuple[str, ...] = ()  # optimizers or specs that define P
    unfinished: tuple[str, ...] = ()  # names of tasks without a result
    notes: tuple[str, ...] = ()  # what could not be read, and what the table lacks because of it
    rows: tuple[Row, ...]

    def select(self, quantity: str, **fields: Any) -> list[Row]:
        """The rows of a quantity with these values of other fields."""
        return [r for r in self.rows if r.quantity == quantity and all(getattr(r, k) == v for k, v in fields.items())]

    def series(self) -> list[tuple[str, int]]:
        """The pairs (curvature, seed) in the order of the table."""
        named = ((row.curvature, row.seed) for row in self.rows)
        return list(dict.fromkeys((name, seed) for name, seed in named if name and seed is not None))

    def to_json(self) -> str:
        """One JSON object in one line; `rows` is a list of objects with the columns as keys."""
        return to_json(self.to_dict())

    def to_csv(self) -> str:
        """The rows as CSV below a line of column names; cells that do not apply are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in fields(Row)])
        words = {True: "true", False: "false"}
        writer.writerows([words[v] if isinstance(v, bool) else v for v in astuple(row)] for row in self.rows)
        return text.getvalue()
