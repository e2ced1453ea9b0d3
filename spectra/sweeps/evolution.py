"""How spectra evolve over training: saved results of many checkpoints -> one tidy table, one row a number.

What is not finished yet is left out. What lies between two checkpoints stands at the earlier one:
`overlap_next` at step t compares the eigenspaces at t and at the next checkpoint that has a result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spectra.errors import SpectraError
from spectra.records.files import finite, read
from spectra.sweeps.checkpoints import Trajectory, training_steps, update_rows
from spectra.sweeps.eigenspaces import eigenspace_rows, eigenvalue_rows
from spectra.sweeps.plan import COMMANDS, Plan, natural
from spectra.sweeps.rows import QUANTITIES, Found, Number, Row, density_rows, problem_rows, trace_rows
from spectra.sweeps.tasks import result

ROWS = {"eig": eigenvalue_rows, "trace": trace_rows, "density": density_rows}


@dataclass(frozen=True)
class Evolution:
    """The table, in the order of steps, matrices, seeds, quantities, ranks."""

    rows: tuple[Row, ...]
    axis: str  # what steps count: "training step", "epoch", or "checkpoint", their place in the order
    learning_rate: float | None = None
    unfinished: tuple[str, ...] = ()  # names of tasks that lack a result
    notes: tuple[str, ...] = ()  # what could not be read, and what the table lacks for it

    def select(self, quantity: str, **fields: Any) -> list[Row]:
        """The rows of a quantity whose other fields are these."""
        return [r for r in self.rows if r.quantity == quantity and all(getattr(r, k) == v for k, v in fields.items())]

    def series(self) -> list[tuple[str, int | None]]:
        """Every matrix with every seed, as (curvature, seed), in the table's order."""
        return list(dict.fromkeys((r.curvature, r.seed) for r in self.rows if r.curvature))


class Home(NamedTuple):
    """Where results of a checkpoint lie."""

    name: str  # of the task
    label: str  # of the checkpoint
    checkpoint: Path | None
    directory: Path
    result: Callable[[str], dict[str, Any] | None]  # command -> its record, None where it is not done


def collect(plan: Plan) -> Evolution:
    """The table of a plan's results so far. Raises SpectraError where there is none."""
    homes = [Home(t.name, label_of(t), t.checkpoint, t.directory, partial(result, t)) for t in plan.tasks]
    evolution = evolve(homes, plan.commands)
    if not evolution.rows:
        raise SpectraError(f"PLAN {plan.path}: no task has a result yet; run them with 'spectra sweep run {plan.path}'")
    return replace(evolution, learning_rate=plan.learning_rate)


def label_of(task: Any) -> str:
    """The checkpoint's part of a task's name: step-0100 of step-0100/hessian/seed-1."""
    return task.name.rpartition(task.curvature)[0].rstrip("/") or "as built"


def evolution_of(directory: Path | str, learning_rate: float | None = None) -> Evolution:
    """The table of all results below a directory, each named by its folder, such as step-000100.

    Raises SpectraError where there is none.
    """
    directory = Path(directory)
    files = [file for command in COMMANDS for file in directory.rglob(f"{command}.json")]
    names = sorted({str(file.parent.relative_to(directory)) for file in files}, key=natural)
    homes = [Home(name, name, None, directory / name, partial(record_in, directory / name)) for name in names]
    evolution = evolve(homes, COMMANDS)
    if not evolution.rows:
        raise SpectraError(f"{directory}: no folder in it holds a result; name the one that results were written to")
    return replace(evolution, learning_rate=learning_rate, unfinished=())


def record_in(directory: Path, command: str) -> dict[str, Any] | None:
    file = directory / f"{command}.json"
    return read(file, [command], "result")[1] if file.exists() else None


def evolve(homes: Sequence[Home], commands: Sequence[str]) -> Evolution:
    """The table of what is there."""
    axis, steps = training_steps({home.label: home.checkpoint for home in homes})
    notes: dict[str, None] = {}  # each once, in their order
    results = [read_results(home, steps[home.label], commands, notes.setdefault) for home in homes]
    done = [{f.command for f in found} for found in results]
    unfinished = [home.name for home, some in zip(homes, done, strict=True) if some != set(commands)]
    found = sorted((f for some in results for f in some), key=lambda f: f.step)
    rows = [row for f in found for row in ROWS[f.command](f)]
    rows += [row for f in first_of_each(found, lambda f: (f.label, f.seed)) for row in problem_rows(f)]
    rows += between_checkpoints(found, notes.setdefault)
    return Evolution(tuple(in_order(rows)), axis, unfinished=tuple(unfinished), notes=tuple(notes))


def read_results(home: Home, step: Number, commands: Sequence[str], note: Callable[[str], Any]) -> list[Found]:
    """What is done; a file that lacks what the table needs is noted and left out."""
    found = []
    for command in commands:
        file = home.directory / f"{command}.json"
        try:
            record = home.result(command) or {"problem": {}, "results": []}
            some = [
                Found(home.label, step, home.checkpoint, file, command, record["problem"], entry)
                for entry in record["results"]
            ]
            for one in some:
                check(one)  # fails now, while it can be left out
            found += some
        except SpectraError as error:
            note(str(error))
        except Exception as error:  # a record that somebody has edited may break anything
            note(f"result {file}: is without what the table needs ({error!r}); run spectra {command} again")
    return found


def check(found: Found) -> None:
    """Raise TypeError where what rows are sorted and compared by is not of its kind."""
    if not (isinstance(found.curvature, str) and isinstance(found.options, dict)):
        raise TypeError("no curvature, or no options")
    rows = [*ROWS[found.command](found), *problem_rows(found)]
    numbers = [getattr(row, name) for row in rows for name in ("value", "error", "lower", "upper", "seed", "products")]
    if not all(number is None or isinstance(number, (int, float)) for number in numbers):
        raise TypeError("text in place of a number")


def between_checkpoints(found: Sequence[Found], note: Callable[[str], Any]) -> Iterator[Row]:
    """How eigenspaces and weights move from one checkpoint to the next."""
    eig = [f for f in found if f.command == "eig"]
    named = [f for f in found if f.checkpoint and "shapes" in f.problem]
    weights = Trajectory(note) if len(named) > 1 else lambda _: None
    for series in grouped(eig, lambda f: (f.curvature, f.seed)).values():
        yield from eigenspace_rows(series, weights, note)
    yield from update_rows(first_of_each(named, lambda f: f.label), weights)


def in_order(rows: Sequence[Row]) -> Iterator[Row]:
    """By step, matrix as first met, seed, quantity, rank. Numbers that are not finite become None."""
    matrices = list(dict.fromkeys([None, *(row.curvature for row in rows)]))
    quantities = list(QUANTITIES)

    def key(row: Row) -> tuple:
        seed, rank = -1 if row.seed is None else row.seed, row.index or 0
        series = matrices.index(row.curvature), seed, quantities.index(row.quantity)
        return row.step, row.checkpoint, series, (rank < 0, abs(rank))

    return (Row(**finite(asdict(row))) for row in sorted(rows, key=key))


def grouped(found: Iterable[Found], key: Callable[[Found], Hashable]) -> dict[Hashable, list[Found]]:
    groups: dict[Hashable, list[Found]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def first_of_each(found: Iterable[Found], key: Callable[[Found], Hashable]) -> list[Found]:
    return [group[0] for group in grouped(found, key).values()]
