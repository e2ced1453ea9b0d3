"""Run `spectra landscape`: its settings, and the function that makes the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spectra.defaults import TOLERANCE
from spectra.directions.other_checkpoint import read_other_checkpoint, set_to, tensors_of
from spectra.directions.point import Point
from spectra.errors import SpectraError
from spectra.inputs.checkpoint_folder import parts, sha256, sha256_of_parts
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.placement import Placement
from spectra.krylov.results import Eigenpairs
from spectra.operator import Counting, Shaped, SymmetricOperator, checkpointed
from spectra.problem.problem import Problem
from spectra.records.directions import PATH
from spectra.records.record import Record
from spectra.run.earlier_eigenpairs import leading_eigenpairs
from spectra.run.matrix_set import MatrixSet, PreparedMatrix
from spectra.run.measurement import Measurement
from spectra.run.session import Session
from spectra.surfaces.directions import EIGENVECTOR, LOWEST, find_directions, numbered, refuse_ranks
from spectra.surfaces.landscape import Grid, landscape
from spectra.surfaces.recording import landscape_results
from spectra.surfaces.training_directions import (
    TrainingDirectionMaker,
    TrainingDirections,
    files_of,
    is_training_direction,
    refuse_missing,
)


@dataclass(frozen=True)
class LandscapeSettings:
    """The settings of `spectra landscape`.

    Attributes:
        along: the names of the direction of each line, or of the two of each plane.
        grid: the coordinates.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        others: further checkpoints that are analysed like the first one.
        optimizer: an optimizer, its state, or a file with it, for its step and momentum; None: the checkpoint.
    """

    along: tuple[tuple[str, ...], ...]
    grid: Grid
    tolerance: float = TOLERANCE
    others: tuple[str, ...] = ()
    optimizer: Any = None

    command = "landscape"
    less_memory = ("`along`", "name fewer at a time, or choose fewer parameters with `params`")

    @property
    def named(self) -> list[str]:
        """The names of all directions, each once."""
        return list(dict.fromkeys(name for names in self.along for name in names))

    @property
    def files(self) -> list[str]:
        """The files that are read in addition to those of the problem."""
        return [
            *self.others,
            *files_of(self.named),
            *([self.optimizer.partition("?")[0]] if isinstance(self.optimizer, str) else []),
        ]

    @property
    def ranks(self) -> list[int]:
        """The ranks of the requested eigenvectors, by |eigenvalue|."""
        return [int(name) for names in self.along for name in names if name.isdigit()]

    def fingerprint(self) -> dict[str, Any]:
        """The digests of the files, so that an interrupted run resumes only with the same files."""
        return {f"sha256 of {file}": digest for file, digest in digests(self.files).items()}

    def refuse(self, matrices: Sequence[str]) -> None:
        for names in self.along:
            if len(names) > 1 and any(name.startswith(PATH) for name in names):
                raise SpectraError(f"`along` {','.join(names)}: a trajectory is a plane of its own; name it alone")
        refuse_missing(self.named)

    def refuse_size(self, size: int, products: int | None) -> None:
        refuse_ranks(self.ranks, size)

    def basis(self, space: Shaped) -> Placement | None:
        k = max(self.ranks, default=int(any(LOWEST in names for names in self.along)))
        return basis_of(space, k) if k else None


def landscapes(session: Session[LandscapeSettings]) -> Record:
    """Evaluate the loss along the requested directions for each matrix, and return the record.

    Several checkpoints are analysed one after the other.
    """
    session.load(
        lambda: session.matrix_source.record.changed(options=session.recorded_options())
    )  # the heading counts checkpoints
    problem, others = session.problem, session.request.settings.others
    key, found, results, notes = session.request.named.get("checkpoint_key"), [], [], []
    with session.resumable():
        earlier = session.arrays_of_earlier()
        first = session.problem_record.checkpoint or (session.problem_record.model if others else None)
        for place, path in enumerate([first, *others]):
            there = read_other_checkpoint(problem, str(path), key, "`checkpoint` ") if place else None
            with set_to(tensors_of(problem.model), there.values) if there else nullcontext():
                source = path if place else session.request.named.get("checkpoint")
                analyse = Analysis(session, source, earlier if not place else None, f" {place + 1}" if place else "")
                measured, more = analyse()
            found += measured
            results += [entry.changed(checkpoint=path if others else None) for entry in landscape_results(measured)]
            notes += more
        session.problem_record = session.problem_record.changed(
            notes=[*(session.problem_record.notes or ()), *dict.fromkeys(notes)]
        )
        record = session.record([], results)
    used = [d for m in found for d in m.answer.directions.values() if d.kind == EIGENVECTOR]
    if earlier and any(d.source != "computed" for d in used):
        options = (record.problem.options or {}) | {"eigenvectors": str(earlier.with_suffix(".json"))}
        return record.changed(problem=record.problem.changed(options=options))  # for --config with another --out
    return record


def digests(files: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of files and folders of weights, by path; empty if one cannot be read."""
    found = {}
    for file in files:
        try:
            found[file] = sha256_of_parts({part.name: sha256(part) for part in parts(Path(file))})
        except OSError:
            found[file] = ""
    return found


@dataclass(frozen=True)
class Analysis:
    """The analysis of the loss around the checkpoint in the problem's model, for one matrix after the other."""

    session: Session[LandscapeSettings]
    checkpoint: str | None
    earlier: Path | None  # the arrays of an earlier result of eig
    mark: str  # appended to the names of matrices, unless this is the first checkpoint

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.session.problem

    def __call__(self) -> tuple[list[Measurement], list[str]]:
        """The landscapes of all matrices with their cost, and notes on the directions."""
        session, settings = self.session, self.session.request.settings
        matrix_set, products = MatrixSet(session, 1), 20 + 3 * max(settings.ranks, default=0)
        matrices = [
            matrix_set.matrix(self.problem, name, products, f"{name}{self.mark}" if self.mark else None)
            for name in session.names
        ]
        point, found = Point.of(self.problem), []
        given = self.training_directions(point)
        while matrices:  # each is released after use
            found.append(self.of_matrix(matrices.pop(0), point, given))
        return found, given.notes

    def training_directions(self, point: Point) -> TrainingDirections:
        """The directions of training among the requested ones."""
        session, settings = self.session, self.session.request.settings
        if not any(is_training_direction(name) for name in settings.named):
            return TrainingDirections()
        with session.listener.work("directions") as line:
            read = 0

            def watch() -> None:
                nonlocal read
                read += 1
                line.stage(f"checkpoint {read}")

            key = session.request.named.get("checkpoint_key")
            model = session.network.trained_model
            make = TrainingDirectionMaker(
                self.problem, point.gradient, self.checkpoint, key, settings.optimizer, watch, model
            )
            return make(settings.named)

    def of_matrix(self, matrix: PreparedMatrix, point: Point, given: TrainingDirections) -> Measurement:
        """The landscape of one matrix, with its cost."""
        name, limit = matrix.curvature.name, self.session.request.max_products
        settings, generator = self.session.request.settings, torch.Generator().manual_seed(self.session.request.seed)
        along = numbered(settings.along)
        wanted = list(dict.fromkeys(direction for one in along for direction in one))
        matrix.check(generator, limit)
        start, counted = time.perf_counter(), Counting(matrix.operator)
        left = None if limit is None else max(0, limit - matrix.checks - len(wanted))
        with self.session.listener.work(f"{name}{self.mark}") as progress:
            room = None if left is None else left // 2  # for the checks of known eigenpairs
            known = {} if room == 0 else self.known(counted, name, wanted, room)
            directions, good = find_directions(
                self.problem, counted, wanted, known, generator, settings.tolerance, left, progress, given.directions
            )
            if limit is not None and matrix.checks + counted.products + len(directions) > limit:
                directions = {}

            def step(compute: Callable[[], Any]) -> Any:
                return checkpointed(counted, compute, generator)

            def watch() -> None:
                progress(products=counted.products)

            asked_of = (along, settings.grid, step, watch, given.paths)
            found = landscape(self.problem, counted, name, point, directions, *asked_of)
        found = replace(found, converged=found.converged and good)
        return matrix.measured(found, counted.products, time.perf_counter() - start)

    def known(
        self, operator: SymmetricOperator, name: str, wanted: Sequence[str], room: int | None
    ) -> dict[str, tuple[Eigenpairs, str]]:
        """Eigenpairs from an earlier result of `eig`, if it has enough, and its file, by end of the spectrum."""
        ranks = [int(direction) for direction in wanted if direction.isdigit()]
        needed = {which: k for which, k in (("LM", max(ranks, default=0)), ("SA", int(LOWEST in wanted))) if k}
        if self.earlier is None or not needed:
            return {}
        found = leading_eigenpairs(self.session, self.earlier, operator, name, needed, room)
        return {} if found is None else {found[0]: (found[1], str(self.earlier.with_suffix(".json")))}
