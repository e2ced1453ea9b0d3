"""spectra layers."""

from __future__ import annotations

import click

from spectra.cli.figures import drawn
from spectra.cli.options import EIGENVECTORS, PRECISION, PRECONDITION, SAVE_EVERY, Count, Positive, with_data
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import LAYERS_PROBES, LAYERS_STEPS, TOLERANCE

SORTS = ("order", "trace", "mean", "eigenvalue", "mass", "sensitivity")


@click.command()
@click.option("--by", type=click.Choice(["layer", "module", "channel"]), default="layer", show_default=True, help="Blocks: modules that own parameters, the model's branches, or output channels.")  # fmt: skip
@click.option("-k", metavar="K", type=Count(min=0), help="Leading eigenvalues of each block; 0: none.  [default: 1; of channels 0]")  # fmt: skip
@click.option("--sort", type=click.Choice(SORTS), help="Order of the table, falling.  [default: order; of channels sensitivity]")  # fmt: skip
@click.option("--method", type=click.Choice(["xdiag", "hutchinson"]), default="xdiag", show_default=True, help="How diagonal and traces are estimated.")  # fmt: skip
@click.option("--rtol", metavar="X", type=Positive(), help="Standard error of each trace over that of all, and of channels' saliencies.  [default: 0.01; of channels 0.05]")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Residual over |eigenvalue|.")  # fmt: skip
@click.option("--density", is_flag=True, help="The spectral density of each block too.")
@click.option("--steps", metavar="M", type=Count(min=2), default=LAYERS_STEPS, show_default=True, help="Products a probe of a density.")  # fmt: skip
@click.option("--probes", metavar="P", type=Count(min=1), default=LAYERS_PROBES, show_default=True, help="Random vectors of a density.")  # fmt: skip
@EIGENVECTORS
@with_data(PRECONDITION, PRECISION, SAVE_EVERY, required=True)
def layers(by, k, sort, method, rtol, tol, density, steps, probes, **options) -> int:
    """The same, layer by layer.

    Trace, diagonal, leading eigenvalues and density of each diagonal block, and
    how much of the whole matrix's leading eigenvector lies in it.

    \b
    spectra layers --model nets.py:build --checkpoint last.pt --data digits
    spectra layers ... --by channel --sort sensitivity --out run1
    """
    with prints_to_stderr():
        from spectra.layerwise.run import LayersSettings, layerwise
        from spectra.plots.layers import layers_figures
        from spectra.run.session import Session
        from spectra.tables.layers import layers_text

        settings = LayersSettings(by, k, sort, method, rtol, tol, steps if density else 0, probes)
        with Session(request(settings), TERMINAL) as session:
            record = drawn(session, layerwise(session), layers_figures)
            session.keep(record)
    return finish(record, options["as_json"], layers_text(record))
