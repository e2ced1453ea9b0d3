"""spectra landscape."""

from __future__ import annotations

import click

from spectra.cli.figures import drawn
from spectra.cli.layout import Command
from spectra.cli.options import EIGENVECTORS, SAVE_EVERY, Count, Positive, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import TOLERANCE
from spectra.surfaces.names import named

FURTHEST = 1e6  # far beyond |theta| of any network


class LineOrPlane(str):
    """One direction (a line) or two (a plane), as typed on the command line."""

    @property
    def names(self) -> tuple[str, ...]:
        return named(self)


class Directions(click.ParamType):
    """One direction, or two separated by a comma."""

    name = "directions"

    def convert(self, value, param, ctx):
        try:
            return LineOrPlane(",".join(named(str(value))))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class OddInteger(click.ParamType):
    """An odd number, 3 or more, so that one point is in the middle."""

    name = "integer"

    def convert(self, value, param, ctx):
        number = Count(3, 9999).convert(value, param, ctx)
        if number % 2 == 0:
            self.fail(f"{value} is even; give an odd number, so that the middle point is the checkpoint.", param, ctx)
        return number


class Radius(Positive):
    """A distance that is small enough for its square not to overflow."""

    wanted = f"a number above 0, at most {FURTHEST:g}"

    def holds(self, number: float) -> bool:
        return 0 < number <= FURTHEST


def alone(context, parameter, value):
    """The checkpoint, or a tuple if several are given."""
    return value if len(value) > 1 else next(iter(value), None)


@click.command(
    cls=Command,
    examples=(
        "spectra landscape --model spectra.demo:mlp --data digits",
        "spectra landscape --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --along 1 --along 1,2 --along checkpoint:other.pt --out run1",
    ),
)
@click.option("--along", metavar="D[,D]", multiple=True, type=Directions(), default=("1",), show_default=True, help="The direction of a line, or two directions of a plane. Repeatable. 1, 2, ...: eigenvectors by |eigenvalue|. lowest: eigenvector of the lowest eigenvalue. random: a random direction, filter-normalised. gradient: the negative gradient. update: the optimizer's next step. momentum: its negative momentum. checkpoint:PATH: from this checkpoint to another. path:GLOB: the plane of the first two principal components of several checkpoints.")  # fmt: skip
@click.option("--radius", metavar="R", type=Radius(), help="Largest |t| at which the loss at theta + t d is evaluated, for a direction d. Towards another checkpoint (t = 1) it is how far the line goes on beyond both.  [default: where the quadratic term is 4 times the loss; for gradient, update and momentum somewhat beyond the point where the loss is back at its value; for random 1]")  # fmt: skip
@click.option("--points", metavar="P", type=OddInteger(), help="Number of points on a line, or along each side of a plane. It must be odd.  [default: 41; for planes 25]")  # fmt: skip
@click.option("--optimizer", metavar="PATH", help="File with the optimizer's state, for update and momentum. Append ?name=AdamW if the state does not name its class.  [default: the state in the checkpoint]")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Tolerance of an eigenpair: its residual relative to |eigenvalue|.")  # fmt: skip
@EIGENVECTORS
@with_data(SAVE_EVERY, required=True, checkpoints=alone)
def landscape(along, radius, points, optimizer, tol, **options) -> int:
    """Evaluate the loss along directions from the checkpoint.

    A direction is, for example, an eigenvector, the optimizer's next step, or the
    difference to another checkpoint. The mean loss on lines and planes is compared
    with its quadratic model, from slope and curvature. The tables also show how
    the curvature varies over examples, and the loss barrier between checkpoints.
    The model is in eval mode, so BatchNorm uses its running statistics.
    """
    with prints_to_stderr():
        from spectra.plots.landscape import landscape_figures
        from spectra.run.session import Session
        from spectra.surfaces.landscape import Grid
        from spectra.surfaces.run import LandscapeSettings, landscapes
        from spectra.tables.landscape import landscape_text

        several = options["checkpoint"] if isinstance(options["checkpoint"], tuple) else ()
        others = tuple(map(str, several[1:]))
        settings = LandscapeSettings(tuple(one.names for one in along), Grid(radius, points), tol, others, optimizer)
        with Session(request(settings), TERMINAL) as session:
            record = drawn(session, landscapes(session), landscape_figures)
            session.save_record(record)
    return finish(record, options["as_json"], landscape_text(record))
