"""Collect the saved results of many checkpoints into one tidy table, with one row per number.

Unfinished results are left out. A number about two checkpoints is listed at the earlier one: `overlap_next` at step t
compares the eigenspaces at t and at the next checkpoint that has a result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from spectra.commands import COMMANDS as REGISTER
from spectra.errors import SpectraError
from spectra.records.files import finite
from spectra.records.record import Record, load
from spectra.records.sweep import Evolution, Number, Row
from spectra.sweeps.checkpoints import PLACES, Trajectory, training_steps, update_rows
from spectra.sweeps.eigenspaces import eigenspace_rows
from spectra.sweeps.plan import COMMANDS, Plan, natural
from spectra.sweeps.rows import QUANTITIES, ResultEntry, problem_rows
from spectra.sweeps.tasks import result

ROWS = {name: resolve_name(command.rows) for name, command in REGISTER.items() if command.rows}
MEASURED = ("eig", "trace")  # commands whose numbers a preconditioner changes


class CheckpointResults(NamedTuple):
    """The directory with the results of one checkpoint."""

    name: str  # of the task
    label: str  # of the checkpoint
    checkpoint: Path | None
    directory: Path
    result: Callable[[str], Record | None]  # the record of a command; None if it is not done


def collect(plan: Plan) -> Evolution:
    """The table of a plan's results so far. Raises SpectraError if there are none."""
    homes = [CheckpointResults(t.name, label_of(t), t.checkpoint, t.directory, partial(result, t)) for t in plan.tasks]
    evolution = evolve(homes, plan.commands)
    if not evolution.rows:
        raise SpectraError(f"PLAN {plan.path}: no task has a result yet; run them with 'spectra sweep run {plan.path}'")
    folders = {home.label.rpartition("/")[0] for home in homes}
    if evolution.axis == PLACES and len(folders) > 1:
        note = f"checkpoints of {len(folders)} folders are drawn as one training run; write one plan per training run"
        evolution = replace(evolution, notes=(*evolution.notes, note))
    return with_rate(evolution, plan.learning_rate)


def label_of(task: Any) -> str:
    """The checkpoint's part of a task's name: step-0100 of step-0100/hessian/seed-1."""
    return task.name.rpartition(task.curvature)[0].rstrip("/") or "as built"


def evolution_of(directory: Path | str, learning_rate: float | None = None) -> Evolution:
    """Collect all results below a directory into one table over training steps, with one number per row.

    Each folder with results is a checkpoint; the last number in its name is the step, as in `step-000100`.

    Args:
        directory: the directory, such as the output of `spectra.watch`.
        learning_rate: the learning rate of gradient descent, with which 2 / learning rate is drawn; None: not drawn.

    Returns:
        The table, which `spectra.evolution_figure` draws and `spectra.evolution_files` writes.

    Raises:
        SpectraError: there are no results below the directory.
    """
    directory = Path(directory)
    files = [file for command in COMMANDS for file in directory.rglob(f"{command}.json")]
    names = sorted({str(file.parent.relative_to(directory)) for file in files}, key=natural)
    homes = [
        CheckpointResults(name, name, None, directory / name, partial(record_in, directory / name)) for name in names
    ]
    evolution = evolve(homes, COMMANDS)
    if not evolution.rows:
        raise SpectraError(
            f"`directory` {directory}: no folder in it holds a result; give the directory that results were written to"
        )
    return replace(with_rate(evolution, learning_rate), unfinished=())


def with_rate(evolution: Evolution, rate: float | None) -> Evolution:
    """The evolution with the learning rate of gradient descent, unless eigenvalues are preconditioned."""
    if rate and evolution.precondition:
        note = "learning_rate: 2 / learning rate is not a limit of preconditioned eigenvalues, and is not drawn"
        return replace(evolution, notes=(*evolution.notes, note))
    return replace(evolution, learning_rate=rate)


def record_in(directory: Path, command: str) -> Record | None:
    """The record that a command wrote in a directory; None if there is none."""
    file = directory / f"{command}.json"
    return load(file, [command], "result")[1] if file.exists() else None


def evolve(homes: Sequence[CheckpointResults], commands: Sequence[str]) -> Evolution:
    """The table of all results in these directories."""
    axis, steps = training_steps({home.label: home.checkpoint for home in homes})
    notes: dict[str, None] = {}  # each once, in their order
    results = [read_results(home, steps[home.label], commands, notes.setdefault) for home in homes]
    done = [{f.command for f in found} for found in results]
    unfinished = [home.name for home, some in zip(homes, done, strict=True) if some != set(commands)]
    found = sorted((f for some in results for f in some), key=lambda f: f.step)
    found = of_one_matrix(found, notes.setdefault)
    rows = [row for f in found for row in ROWS[f.command](f)]
    rows += [row for f in first_of_each(found, lambda f: (f.label, f.seed)) for row in problem_rows(f)]
    rows += between_checkpoints(found, notes.setdefault)
    of = [p for f in found if f.command in MEASURED and (p := f.problem.get("precondition"))]
    for reason in dict.fromkeys(p.get("threshold_reason") for p in of if p.get("threshold_reason")):
        notes.setdefault(f"threshold: no threshold of stability, because {reason}")
    return Evolution(
        rows=tuple(in_order(rows)),
        axis=axis,
        precondition=tuple(dict.fromkeys(p.get("optimizer") or p.spec for p in of)),
        unfinished=tuple(unfinished),
        notes=tuple(notes),
    )


def of_one_matrix(found: Sequence[ResultEntry], note: Callable[[str], Any]) -> list[ResultEntry]:
    """Leave out eigenvalues and traces of a plain matrix if there are preconditioned ones, or the other way round.

    Both have the same name. Shares below zero are kept: they are equal for both, by Sylvester's law of inertia.
    """

    def preconditioned(f: ResultEntry) -> bool:
        return f.problem.get("precondition") is not None

    wanted = {}
    for name, same in grouped([f for f in found if f.command in MEASURED], lambda f: f.curvature).items():
        wanted[name] = any(map(preconditioned, [f for f in same if f.command == "eig"] or same))
    kept = []
    for f in found:
        if f.command in MEASURED and preconditioned(f) != wanted[f.curvature]:
            plain, other = ("without", "with") if wanted[f.curvature] else ("with", "without")
            note(f"{f.curvature}: {f.command} {plain} a preconditioner is left out, as eigenvalues are {other} it")
        else:
            kept.append(f)
    return kept


def read_results(
    home: CheckpointResults, step: Number, commands: Sequence[str], note: Callable[[str], Any]
) -> list[ResultEntry]:
    """The results of one checkpoint; a file that lacks what the table needs is noted and left out."""
    found = []
    for command in commands:
        file = home.directory / f"{command}.json"
        try:
            if record := home.result(command):
                about = (home.label, step, home.checkpoint, file, command, record.problem)
                some = [ResultEntry(*about, entry) for entry in record.results]
                for one in some:
                    check(one)  # fails now, while it can be left out
                found += some
        except SpectraError as error:
            note(str(error))
        except Exception as error:  # an edited record may raise anything
            note(f"result {file}: lacks what the table needs ({error!r}); run spectra {command} again")
    return found


def check(found: ResultEntry) -> None:
    """Raise an error if the record lacks numbers for its rows."""
    for _ in (*ROWS[found.command](found), *problem_rows(found)):
        pass


def between_checkpoints(found: Sequence[ResultEntry], note: Callable[[str], Any]) -> Iterator[Row]:
    """Rows about how eigenspaces and weights move from one checkpoint to the next."""
    eig = [f for f in found if f.command == "eig"]
    named = [f for f in found if f.checkpoint and f.problem.shapes is not None]
    weights = Trajectory(note) if len(named) > 1 else lambda _: None
    for series in grouped(eig, lambda f: (f.curvature, f.seed)).values():
        yield from eigenspace_rows(series, weights, note)
    yield from update_rows(first_of_each(named, lambda f: f.label), weights)


def in_order(rows: Sequence[Row]) -> Iterator[Row]:
    """Sort rows by step, matrix, seed, quantity and rank, and replace numbers that are not finite by None."""
    matrices = list(dict.fromkeys([None, *(row.curvature for row in rows)]))
    quantities = list(QUANTITIES)

    def key(row: Row) -> tuple:
        seed, rank = -1 if row.seed is None else row.seed, row.index or 0
        series = matrices.index(row.curvature), seed, quantities.index(row.quantity)
        return row.step, row.checkpoint, series, (rank < 0, abs(rank))

    return (Row(**finite(asdict(row))) for row in sorted(rows, key=key))


def grouped(found: Iterable[ResultEntry], key: Callable[[ResultEntry], Hashable]) -> dict[Hashable, list[ResultEntry]]:
    """Group results by their keys, in order of appearance."""
    groups: dict[Hashable, list[ResultEntry]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def first_of_each(found: Iterable[ResultEntry], key: Callable[[ResultEntry], Hashable]) -> list[ResultEntry]:
    """The first result with each key."""
    return [group[0] for group in grouped(found, key).values()]
