"""`spectra landscape`: its settings, and the function that takes a request to its record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from spectra.defaults import TOLERANCE
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.placement import Placement
from spectra.krylov.results import Eigenpairs
from spectra.operator import Counting, Shaped, SymmetricOperator, checkpointed
from spectra.records.files import read_arrays
from spectra.records.record import Record
from spectra.run.known import eigenpairs, end_of
from spectra.run.measurement import Measurement
from spectra.run.session import Session
from spectra.run.together import Prepared, Together
from spectra.surfaces.directions import LOWEST, find_directions, numbered, refuse_ranks
from spectra.surfaces.landscape import Grid, Point, landscape
from spectra.surfaces.recording import landscape_results


@dataclass(frozen=True)
class LandscapeSettings:
    """Lines and planes, each by the names of its directions; coordinates; the tolerance of eigenvectors."""

    along: tuple[tuple[str, ...], ...]
    grid: Grid
    tolerance: float = TOLERANCE

    command = "landscape"
    less_memory = ("`along`", "name fewer at a time, or choose fewer parameters with `params`")

    @property
    def ranks(self) -> list[int]:
        """The eigenvectors that are asked for, by |eigenvalue|."""
        return [int(name) for names in self.along for name in names if name.isdigit()]

    def refuse(self, matrices: Sequence[str]) -> None:
        pass

    def refuse_size(self, size: int, products: int | None) -> None:
        refuse_ranks(self.ranks, size)

    def basis(self, space: Shaped) -> Placement | None:
        k = max(self.ranks, default=int(any(LOWEST in names for names in self.along)))
        return basis_of(space, k) if k else None


def landscapes(session: Session[LandscapeSettings]) -> Record:
    """Look at the loss along the directions that are asked for, beside each matrix, and return the record."""
    session.load()
    problem, asked = session.problem, session.request.settings
    with session.resumable():
        together, products = Together(session, 1), 20 + 3 * max(asked.ranks, default=0)
        matrices = [together.matrix(problem, name, products) for name in session.names]
        earlier, found = session.arrays_of_earlier(), []
        look = Look(session, Point.of(problem), earlier)
        while matrices:  # each gives its memory back in the end
            found.append(look(matrices.pop(0)))
        record = session.record([], landscape_results(found))
    if earlier and any(d.source not in ("computed", "drawn") for m in found for d in m.answer.directions.values()):
        options = (record.problem.options or {}) | {"eigenvectors": str(earlier.with_suffix(".json"))}
        return record.changed(problem=record.problem.changed(options=options))  # for --config elsewhere
    return record


@dataclass(frozen=True)
class Look:
    """A look at the loss from one point, beside one matrix after the other."""

    session: Session[LandscapeSettings]
    point: Point
    earlier: Path | None  # arrays of an earlier eig

    def __call__(self, matrix: Prepared) -> Measurement:
        """The landscape of one matrix, with what it cost."""
        problem, name, limit = self.session.problem, matrix.curvature.name, self.session.request.max_products
        asked, generator = self.session.request.settings, torch.Generator().manual_seed(self.session.request.seed)
        along = numbered(asked.along)
        wanted = list(dict.fromkeys(direction for one in along for direction in one))
        matrix.check(generator, limit)
        start, counted = time.perf_counter(), Counting(matrix.operator)
        left = None if limit is None else max(0, limit - matrix.checks - len(wanted))
        with self.session.listener.work(name) as progress:
            room = None if left is None else left // 2  # for the checks of known eigenpairs
            known = {} if room == 0 else self.taken(counted, name, wanted, room)
            directions, good = find_directions(
                problem, counted, wanted, known, generator, asked.tolerance, left, progress
            )
            if limit is not None and matrix.checks + counted.products + len(directions) > limit:
                directions = {}

            def step(compute: Callable[[], Any]) -> Any:
                return checkpointed(counted, compute, generator)

            def watch() -> None:
                progress(products=counted.products)

            found = landscape(problem, counted, name, self.point, directions, along, asked.grid, step, watch)
        found = replace(found, converged=found.converged and good)
        return matrix.measured(found, counted.products, time.perf_counter() - start)

    def taken(
        self, operator: SymmetricOperator, name: str, wanted: Sequence[str], room: int | None
    ) -> dict[str, tuple[Eigenpairs, str]]:
        """Eigenpairs of an earlier `eig` that serve all names of a kind, and their file, by end of the spectrum."""
        earlier, note = self.earlier, self.session.listener.note
        ranks = [int(direction) for direction in wanted if direction.isdigit()]
        needed = {which: k for which, k in (("LM", max(ranks, default=0)), ("SA", int("lowest" in wanted))) if k}
        if earlier is None or not needed:
            return {}
        which, agree = end_of(earlier), self.session.processes.least
        if not agree(which in needed) or which is None:
            note(f"{name}: {earlier} holds eigenvectors of `which` {which or 'unknown'}, so those named are computed")
            return {}
        most = min(needed["LM"], needed[which] if room is None else room) if which == "LM" else room
        pairs = eigenpairs(earlier, operator, name, note, agree, use="taken", most=most)
        if pairs is None:
            return {}
        stored = (read_arrays(earlier, [f"eigenvalues_{name}"]) or {})[f"eigenvalues_{name}"].tolist()
        tolerance = self.session.request.settings.tolerance
        rows = zip(stored, pairs.values.tolist(), pairs.residuals.tolist(), strict=False)
        good = takewhile(lambda row: max(abs(row[0] - row[1]), row[2]) <= tolerance * abs(row[1]), rows)
        count = sum(1 for _ in good)
        if count < needed[which]:
            held = f"{earlier} holds {count} eigenvectors within `tolerance`, not {needed[which]}"
            note(f"{name}: {held}, so they are computed")
            return {}
        return {which: (pairs, str(earlier.with_suffix(".json")))}
