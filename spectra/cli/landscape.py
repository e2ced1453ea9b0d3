"""spectra landscape."""

from __future__ import annotations

import time
from itertools import takewhile
from pathlib import Path

import click

from spectra.cli.options import EIGENVECTORS, SAVE_EVERY, Count, Positive, with_data
from spectra.cli.progress import progress_line
from spectra.cli.reuse import eigenpairs, end_of, source
from spectra.cli.session import Session
from spectra.cli.terminal import finish, note, prints_to_stderr
from spectra.cli.together import Prepared, Together

NAMES = "name 1, 2, ... (eigenvectors by |eigenvalue|), lowest or random; one, or two with a comma"
FURTHEST = 1e6  # far beyond |theta| of any network


class Along(str):
    """The direction of a line, or the two of a plane, as they were typed."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.split(","))


class Directions(click.ParamType):
    """One direction, or two with a comma between them."""

    name = "directions"

    def convert(self, value, param, ctx):
        names = [part.strip() for part in str(value).split(",")]
        if not (len(names) < 3 and all(map(known, names))):
            self.fail(f"{value!r} is no direction and no two; {NAMES}.", param, ctx)
        names = [str(int(name)) if name.isdigit() else name for name in names]
        if len(set(names)) < len(names) and names[0] != "random":
            self.fail(f"{value!r} is one direction twice, and no plane; name two.", param, ctx)
        return Along(",".join(names))


def known(name: str) -> bool:
    return name in ("lowest", "random") or (name.isascii() and name.isdigit() and len(name) < 10 and int(name) > 0)


class Odd(click.ParamType):
    """An odd number, 3 or more, so that one point is in the middle."""

    name = "integer"

    def convert(self, value, param, ctx):
        number = Count(3, 9999).convert(value, param, ctx)
        if number % 2 == 0:
            self.fail(f"{value} is even; give an odd number, so that the middle one is the checkpoint.", param, ctx)
        return number


class Radius(Positive):
    """A distance whose square does not overflow."""

    wanted = f"a number above 0, at most {FURTHEST:g}"

    def holds(self, number: float) -> bool:
        return 0 < number <= FURTHEST


@click.command()
@click.option("--along", metavar="D[,D]", multiple=True, type=Directions(), default=("1",), show_default=True, help="A line along one direction or a plane of two; repeatable. 1, 2, ...: eigenvectors by |eigenvalue|; lowest: that of the lowest one; random: filter-normalised.")  # fmt: skip
@click.option("--radius", metavar="R", type=Radius(), help="How far from the checkpoint, in units of |d|.  [default: where the quadratic term is 4 times the loss; random: 1]")  # fmt: skip
@click.option("--points", metavar="P", type=Odd(), help="How many on a line or a side of a plane, odd.  [default: 41; of a plane 25]")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=1e-3, show_default=True, help="Residual over |eigenvalue|.")  # fmt: skip
@EIGENVECTORS
@with_data(SAVE_EVERY, required=True)
def landscape(along, radius, points, tol, **options) -> int:
    """The loss along eigenvectors, and how far its quadratic form holds.

    The mean loss on lines and planes through the checkpoint, in eval mode (so
    BatchNorm keeps its running statistics), with what slope and curvature
    predict there, and how the curvature spreads over the examples.

    \b
    spectra landscape --model nets.py:build --checkpoint last.pt --data digits
    spectra landscape ... --along 1 --along lowest --along 1,2 --out run1
    """
    with prints_to_stderr():
        from spectra.plots.landscape import landscape_figures
        from spectra.records.files import finite
        from spectra.surfaces.landscape import Grid
        from spectra.tables.landscape import landscape_arrays, landscape_text

        session = Session()
        session.load()
        with session.resumable():
            record = answered(session, along, Grid(radius, points), tol)
        record["figures"] = session.draw(landscape_figures(finite(record))) if options["out"] else []
        session.write(record, landscape_arrays(record))
    return finish(record, options["as_json"], landscape_text(record))


def answered(session: Session, along, grid, tol: float) -> dict:
    """The record: every matrix in turn."""
    from spectra.surfaces.directions import numbered
    from spectra.surfaces.landscape import Point
    from spectra.tables.landscape import landscape_results

    lines, names = numbered([one.names for one in along]), list(dict.fromkeys(session.options["curvature"]))
    problem, together = session.loaded.problem, Together(session, 1)
    ranks = [int(name) for one in along for name in one.names if name.isdigit()]
    matrices = [together.matrix(problem, name, 20 + 3 * max(ranks, default=0)) for name in names]
    earlier = source(session.options, "eigenvectors")
    if not session.processes.least(earlier is not None):
        earlier = None
    point, found = Point.of(problem), []
    while matrices:  # each gives its memory back in the end
        found.append(looked_at(session, matrices.pop(0), point, lines, grid, tol, earlier))
    record = session.record([], landscape_results(found))
    if any(d.source not in ("computed", "drawn") for m in found for d in m.answer.directions.values()):
        record["problem"]["options"]["eigenvectors"] = str(earlier.with_suffix(".json"))  # for --config elsewhere
    return record


def looked_at(session: Session, matrix: Prepared, point, along, grid, tol: float, earlier: Path | None):
    """The landscape of one matrix, with what it cost."""
    from dataclasses import replace

    import torch

    from spectra.operator import Counting, once
    from spectra.surfaces.directions import find_directions
    from spectra.surfaces.landscape import landscape

    problem, name, limit = session.loaded.problem, matrix.curvature.name, session.options["max_products"]
    generator = torch.Generator().manual_seed(session.options["seed"])
    wanted = list(dict.fromkeys(direction for one in along for direction in one))
    matrix.check(generator, limit)
    start, counted = time.perf_counter(), Counting(matrix.operator)
    left = None if limit is None else max(0, limit - matrix.checks - len(wanted))
    with progress_line(name) as progress:
        room = None if left is None else left // 2  # for the checks of known eigenpairs
        known = {} if room == 0 else taken(session, earlier, counted, name, wanted, tol, room)
        directions, good = find_directions(problem, counted, wanted, known, generator, tol, left, progress)
        if limit is not None and matrix.checks + counted.products + len(directions) > limit:
            directions = {}

        def step(compute):
            return once(counted, compute, generator)

        def watch():
            progress(products=counted.products)

        found = landscape(problem, counted, name, point, directions, along, grid, step, watch)
    found = replace(found, converged=found.converged and good)
    return matrix.measured(found, counted.products, time.perf_counter() - start)


def taken(session: Session, earlier: Path | None, operator, name: str, wanted: list[str], tol: float, room) -> dict:
    """Eigenpairs of an earlier `eig` that serve all names of a kind, and their file, by the end that they are of."""
    from spectra.records.files import read_arrays

    ranks = [int(direction) for direction in wanted if direction.isdigit()]
    needed = {which: k for which, k in (("LM", max(ranks, default=0)), ("SA", int("lowest" in wanted))) if k}
    if earlier is None or not needed:
        return {}
    which, agree = end_of(earlier), session.processes.least
    if not agree(which in needed):
        note(f"{name}: {earlier} holds eigenvectors of --which {which or 'unknown'}, so those named are computed")
        return {}
    most = min(needed["LM"], needed[which] if room is None else room) if which == "LM" else room
    pairs = eigenpairs(earlier, operator, name, agree, use="taken", most=most)
    if pairs is None:
        return {}
    stored = read_arrays(earlier, [f"eigenvalues_{name}"])[f"eigenvalues_{name}"].tolist()
    rows = zip(stored, pairs.values.tolist(), pairs.residuals.tolist(), strict=False)
    count = sum(1 for _ in takewhile(lambda row: max(abs(row[0] - row[1]), row[2]) <= tol * abs(row[1]), rows))
    if count < needed[which]:
        note(f"{name}: {earlier} holds {count} eigenvectors within --tol, not {needed[which]}, so they are computed")
        return {}
    return {which: (pairs, str(earlier.with_suffix(".json")))}
