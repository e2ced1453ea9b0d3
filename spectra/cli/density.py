"""spectra density."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from spectra.cli.layout import Command
from spectra.cli.options import DEFLATE, Count, Positive, problem_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import DENSITY_PROBES, DENSITY_STEPS


@click.command(
    cls=Command,
    examples=(
        "spectra density --model spectra.demo:mlp --data digits",
        "spectra density --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --curvature hessian --curvature ggn --log --out run1",
    ),
)
@click.option(
    "--steps",
    metavar="M",
    type=Count(min=2),
    default=DENSITY_STEPS,
    show_default=True,
    help="Number of Lanczos steps for each random vector. One step costs one product.",
)
@click.option(
    "--probes",
    metavar="P",
    type=Count(min=1),
    default=DENSITY_PROBES,
    show_default=True,
    help="Number of random vectors.",
)
@click.option("--log", is_flag=True, help="Draw the eigenvalues on a logarithmic axis, which is linear around zero.")
@click.option(
    "--damping",
    metavar="X",
    type=Positive(),
    help="Also report effective dimension, condition number and log-determinant of A + X I.",
)
@DEFLATE
@problem_and_output
def density(steps, probes, log, damping, **options) -> int:
    """Estimate the spectral density and draw it.

    The figure is written to density.png, in --out or in the current directory.
    The tables also count the outliers, which are eigenvalues outside the bulk, and
    summarise the spectrum by effective ranks and fitted laws.
    """
    with prints_to_stderr():
        from spectra.plots.files import draw_density
        from spectra.quoting import readable
        from spectra.run.density import DensitySettings
        from spectra.run.density import density as densities
        from spectra.run.session import Session
        from spectra.tables.outliers import density_parts
        from spectra.tables.results import rendered

        settings, home = DensitySettings(steps, probes, damping), options["out"] or Path()
        with Session(request(settings, home), TERMINAL) as session:
            record = densities(session, partial(draw_density, log=log))
    return finish(record, options["as_json"], rendered(*density_parts(readable(record))))
