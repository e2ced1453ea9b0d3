"""spectra layers."""

from __future__ import annotations

import click

from spectra.cli.figures import drawn
from spectra.cli.layout import Command
from spectra.cli.options import EIGENVECTORS, PRECISION, PRECONDITION, SAVE_EVERY, Count, Positive, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import LAYERS_PROBES, LAYERS_STEPS, TOLERANCE

SORTS = ("order", "trace", "mean", "eigenvalue", "mass", "sensitivity")


@click.command(
    cls=Command,
    examples=(
        "spectra layers --model spectra.demo:mlp --data digits",
        "spectra layers --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --by channel --sort sensitivity --out run1",
    ),
)
@click.option("--by", type=click.Choice(["layer", "module", "channel"]), default="layer", show_default=True, help="Blocks to analyse: layers, the model's main branches (module), or the output channels of layers (channel).")  # fmt: skip
@click.option("-k", metavar="K", type=Count(min=0), help="Number of leading eigenvalues of each block.  [default: 1; by channel 0]")  # fmt: skip
@click.option("--sort", type=click.Choice(SORTS), help="Sort the table by this column, largest first. order keeps the order of the model.  [default: order; by channel sensitivity]")  # fmt: skip
@click.option("--method", type=click.Choice(["xdiag", "hutchinson"]), default="xdiag", show_default=True, help="Estimator of the diagonal and the traces.")  # fmt: skip
@click.option("--rtol", metavar="X", type=Positive(), help="Tolerance: the standard error of each block's trace relative to the trace of the matrix. For channels it applies to their saliencies too.  [default: 0.01; by channel 0.05]")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Tolerance of an eigenpair: its residual relative to |eigenvalue|.")  # fmt: skip
@click.option("--density", is_flag=True, help="Also estimate the spectral density of each block.")
@click.option("--steps", metavar="M", type=Count(min=2), default=LAYERS_STEPS, show_default=True, help="Number of Lanczos steps for each random vector of a density.")  # fmt: skip
@click.option("--probes", metavar="P", type=Count(min=1), default=LAYERS_PROBES, show_default=True, help="Number of random vectors of a density.")  # fmt: skip
@EIGENVECTORS
@with_data(PRECONDITION, PRECISION, SAVE_EVERY, required=True)
def layers(by, k, sort, method, rtol, tol, density, steps, probes, **options) -> int:
    """Analyse each layer separately: trace, eigenvalues and density.

    A layer is a diagonal block of the matrix. The tables also show how much of the
    leading eigenvector of the full matrix lies in each block.
    """
    with prints_to_stderr():
        from spectra.layerwise.run import LayersSettings, layerwise
        from spectra.plots.layers import layers_figures
        from spectra.run.session import Session
        from spectra.tables.layers import layers_text

        settings = LayersSettings(by, k, sort, method, rtol, tol, steps if density else 0, probes)
        with Session(request(settings), TERMINAL) as session:
            record = drawn(session, layerwise(session), layers_figures)
            session.save_record(record)
    return finish(record, options["as_json"], layers_text(record))
