"""spectra trace."""

from __future__ import annotations

import click

from spectra.cli.options import DEFLATE, Count, Positive, problem_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import RTOL
from spectra.krylov.methods import TRACE


@click.command()
@click.option(
    "--method", type=click.Choice(list(TRACE)), help="How.  [default: gram where exact is cheaper, else xtrace]"
)
@click.option(
    "--rtol", metavar="X", type=Positive(), default=RTOL, show_default=True, help="Standard error over |trace|."
)
@click.option("--probes", metavar="P", type=Count(min=2), help="Exactly P random vectors.  [default: as --rtol needs]")
@DEFLATE
@problem_and_output
def trace(method, rtol, probes, **options) -> int:
    """The trace, with its standard error.

    \b
    spectra trace --model nets.py:build --checkpoint last.pt --data digits
    """
    with prints_to_stderr():
        from spectra.run.session import Session
        from spectra.run.trace import TraceSettings
        from spectra.run.trace import trace as traces
        from spectra.tables.results import trace_text

        with Session(request(TraceSettings(rtol, method, probes)), TERMINAL) as session:
            record = traces(session)
    return finish(record, options["as_json"], trace_text(record))
