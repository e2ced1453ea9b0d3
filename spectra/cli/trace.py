"""spectra trace."""

from __future__ import annotations

import click

from spectra.cli.layout import Command
from spectra.cli.options import DEFLATE, Count, Positive, problem_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import RTOL
from spectra.krylov.methods import TRACE


@click.command(
    cls=Command,
    examples=(
        "spectra trace --model spectra.demo:mlp --data digits",
        "spectra trace --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --curvature ggn --rtol 0.001 --out run1",
    ),
)
@click.option(
    "--method",
    type=click.Choice(list(TRACE)),
    help="Algorithm.  [default: gram, which is exact, if it is cheaper; else xtrace]",
)
@click.option(
    "--rtol",
    metavar="X",
    type=Positive(),
    default=RTOL,
    show_default=True,
    help="Tolerance: the standard error relative to |trace|.",
)
@click.option(
    "--probes", metavar="P", type=Count(min=2), help="Number of random vectors.  [default: as many as --rtol needs]"
)
@DEFLATE
@problem_and_output
def trace(method, rtol, probes, **options) -> int:
    """Estimate the trace, with its standard error.

    The number of random vectors grows until the standard error is small enough
    (--rtol). Small problems are computed exactly.
    """
    with prints_to_stderr():
        from spectra.run.session import Session
        from spectra.run.trace import TraceSettings
        from spectra.run.trace import trace as traces
        from spectra.tables.results import trace_text

        with Session(request(TraceSettings(rtol, method, probes)), TERMINAL) as session:
            record = traces(session)
    return finish(record, options["as_json"], trace_text(record))
