"""spectra landscape."""

from __future__ import annotations

import click

from spectra.cli.figures import drawn
from spectra.cli.options import EIGENVECTORS, SAVE_EVERY, Count, Positive, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import TOLERANCE

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
    """Whether this names a direction: lowest, random or a rank."""
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
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Residual over |eigenvalue|.")  # fmt: skip
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
        from spectra.run.session import Session
        from spectra.surfaces.landscape import Grid
        from spectra.surfaces.run import LandscapeSettings, landscapes
        from spectra.tables.landscape import landscape_text

        settings = LandscapeSettings(tuple(one.names for one in along), Grid(radius, points), tol)
        with Session(request(settings), TERMINAL) as session:
            record = drawn(session, landscapes(session), landscape_figures)
            session.keep(record)
    return finish(record, options["as_json"], landscape_text(record))
