"""spectra step."""

from __future__ import annotations

import click

from spectra.cli.figures import drawn
from spectra.cli.layout import Command
from spectra.cli.options import EIGENVECTORS, SAVE_EVERY, Count, Named, Positive, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import ADAPTIVE_RHO, ASCENT_STEPS, RHO, TOLERANCE, K


@click.command(
    cls=Command,
    examples=(
        "spectra step --model spectra.demo:mlp --data digits",
        "spectra step --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --optimizer optimizer.pt --to later.pt --out run1",
    ),
)
@click.option("--optimizer", metavar="PATH", help="File with the optimizer's state. Append ?name=AdamW if the state does not name its class.  [default: the state in the checkpoint]")  # fmt: skip
@click.option("--to", metavar="PATH", multiple=True, default=(), type=Named(), help="Another checkpoint of the same model. The direction to it is analysed too. Repeatable.")  # fmt: skip
@click.option("-k", "k", metavar="K", type=Count(min=0), default=K, show_default=True, help="Number of leading eigenvectors in which the share of each direction is measured. 0 skips this.")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Tolerance of an eigenpair: its residual relative to |eigenvalue|.")  # fmt: skip
@click.option("--noise/--no-noise", default=True, show_default=True, help="Estimate the noise scales of the gradient: the batch sizes at which its noise equals its signal.")  # fmt: skip
@click.option("--population", is_flag=True, default=False, help="For noise scales, treat the data as the whole population instead of a sample from it.")  # fmt: skip
@click.option("--rho", metavar="R", type=Positive(), default=RHO, show_default=True, help="Radius of the ball in which gradient ascent searches for the largest loss.")  # fmt: skip
@click.option("--adaptive-rho", metavar="R", type=Positive(), default=ADAPTIVE_RHO, show_default=True, help="Radius of a second ball, in which distances are relative to the size of each parameter.")  # fmt: skip
@click.option("--ascent-steps", metavar="N", type=Count(min=0), default=ASCENT_STEPS, show_default=True, help="Number of ascent steps in each ball. The first one is the step of SAM. 0 skips both balls.")  # fmt: skip
@EIGENVECTORS
@with_data(SAVE_EVERY, curvature=("hessian", "ggn"), required=True)
def step(optimizer, to, k, tol, noise, population, rho, adaptive_rho, ascent_steps, **options) -> int:
    """Analyse the loss along the next step of the optimizer.

    Directions are the negative gradient, the optimizer's update, its momentum, and
    those to other checkpoints. For each direction the tables show slope, curvature
    and its part within layers, the best step, the critical step (where the loss is
    back at its value), and the share in the leading eigenvectors. They also show
    the noise scale of the gradient, and the largest rise of the loss in a ball.
    """
    with prints_to_stderr():
        from spectra.plots.step import step_figures
        from spectra.run.session import Session
        from spectra.steps.run import StepSettings
        from spectra.steps.run import step as steps
        from spectra.tables.step import step_text

        settings = StepSettings(k, tol, optimizer, to, noise, population, rho, adaptive_rho, ascent_steps)
        with Session(request(settings), TERMINAL) as session:
            record = drawn(session, steps(session), step_figures)
            session.save_record(record)
    return finish(record, options["as_json"], step_text(record))
