"""spectra step."""

from __future__ import annotations

import click

from spectra.cli.figures import drawn
from spectra.cli.options import EIGENVECTORS, SAVE_EVERY, Count, Named, Positive, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import ADAPTIVE_RHO, ASCENT_STEPS, RHO, TOLERANCE, K


@click.command()
@click.option("--optimizer", metavar="PATH", help="A file that holds the optimizer's state; ?name=AdamW names its class where the state does not tell.  [default: the state in the checkpoint]")  # fmt: skip
@click.option("--to", metavar="PATH", multiple=True, default=(), type=Named(), help="Look along the way to this checkpoint of the same model too; repeatable.")  # fmt: skip
@click.option("-k", "k", metavar="K", type=Count(min=0), default=K, show_default=True, help="The share of a direction in the K leading eigenvectors; 0 leaves it out.")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Residual over |eigenvalue|.")  # fmt: skip
@click.option("--noise/--no-noise", default=True, show_default=True, help="Estimate the noise scales of the gradient: the batch sizes for which its noise and its signal weigh alike.")  # fmt: skip
@click.option("--population", is_flag=True, default=False, help="Take the data for all there are, and not for a sample of more, in noise scales.")  # fmt: skip
@click.option("--rho", metavar="R", type=Positive(), default=RHO, show_default=True, help="Radius of the ball in which the loss is raised by gradient ascent.")  # fmt: skip
@click.option("--adaptive-rho", metavar="R", type=Positive(), default=ADAPTIVE_RHO, show_default=True, help="Radius of the ball whose distances are relative to each parameter's size.")  # fmt: skip
@click.option("--ascent-steps", metavar="N", type=Count(min=0), default=ASCENT_STEPS, show_default=True, help="Steps of ascent in each ball, the first of which is SAM's; 0 leaves the balls out.")  # fmt: skip
@EIGENVECTORS
@with_data(SAVE_EVERY, curvature=("hessian", "ggn"), required=True)
def step(optimizer, to, k, tol, noise, population, rho, adaptive_rho, ascent_steps, **options) -> int:
    """What the next step of the optimizer meets.

    Along the gradient, the optimizer's own update, its momentum, and the way
    to another checkpoint: slope and curvature, the best step, the step at
    which the loss is back where it was, the curvature within and between
    layers, and the share of the direction in the leading eigenvectors. Then
    the noise scale of the gradient, and how far the loss rises in a ball.

    \b
    spectra step --model nets.py:build --checkpoint last.pt --data digits
    spectra step ... --optimizer optimizer.pt --to later.pt --out run1
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
