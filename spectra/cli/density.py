"""spectra density."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from spectra.cli.options import DEFLATE, Count, Positive, problem_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import DENSITY_PROBES, DENSITY_STEPS


@click.command()
@click.option(
    "--steps", metavar="M", type=Count(min=2), default=DENSITY_STEPS, show_default=True, help="Products a probe."
)
@click.option(
    "--probes", metavar="P", type=Count(min=1), default=DENSITY_PROBES, show_default=True, help="Random vectors."
)
@click.option("--log", is_flag=True, help="A logarithmic axis for the eigenvalues.")
@click.option("--damping", metavar="X", type=Positive(), help="Tell of A + X I: effective dimension, condition number.")
@DEFLATE
@problem_and_output
def density(steps, probes, log, damping, **options) -> int:
    """Spectral density, drawn in density.png here or in --out.

    Without --out the figure is written to the current directory, and nothing else.
    The tables also tell how many eigenvalues stand apart from the bulk.

    \b
    spectra density --model nets.py:build --checkpoint last.pt --data digits
    spectra density ... --curvature hessian --curvature ggn --log --out run1
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
