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
@click.option("--optimizer", metavar="PATH", help="File with the optimizer's state. Append ?name=AdamW to name its class, if the state does not.  [default: the state in the checkpoint]")  # fmt: skip
@click.option("--to", metavar="PATH", multiple=True, default=(), type=Named(), help="Another checkpoint of the same model, to which the direction is analysed too. Repeatable.")  # fmt: skip
@click.option("-k", "k", metavar="K", type=Count(min=0), default=K, show_default=True, help="Number of leading eigenvectors in which the share of each direction is measured. 0 leaves this out.")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Tolerance of an eigenpair: its residual relative to |eigenvalue|.")  # fmt: skip
@click.option("--noise/--no-noise", default=True, show_default=True, help="Estimate the noise scales of the gradient: the batch sizes at which its noise equals its signal.")  # fmt: skip
@click.option("--population", is_flag=True, default=False, help="For noise scales, treat the data as the whole population instead of a sample from it.")  # fmt: skip
@click.option("--rho", metavar="R", type=Positive(), default=RHO, show_default=True, help="Radius of the ball in which gradient ascent looks for the largest loss.")  # fmt: skip
@click.option("--adaptive-rho", metavar="R", type=Positive(), default=ADAPTIVE_RHO, show_default=True, help="Radius of a second ball, in which distances are relative to the size of each parameter.")  # fmt: skip
@click.option("--ascent-steps", metavar="N", type=Count(min=0), default=ASCENT_STEPS, show_default=True, help="Number of steps of ascent in each ball. The first is the step of SAM. 0 leaves the balls out.")  # fmt: skip
@EIGENVECTORS
@with_data(SAVE_EVERY, curvature=("hessian", "ggn"), required=True)
def step(optimizer, to, k, tol, noise, population, rho, adaptive_rho, ascent_steps, **options) -> int:
    """Analyse what the next step of the optimizer meets.

    Directions are the gradient, the optimizer's own update, its momentum, and
    the way to another checkpoint. For each: slope and curvature, the best step
    and the step after which the loss is back at its value, the curvature within
    and between layers, and the direction's share in the leading eigenvectors.
    Then the noise scale of the gradient, and the rise of the loss in a ball.
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
            session.keep(record)
    return finish(record, options["as_json"], step_text(record))
