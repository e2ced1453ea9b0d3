"""spectra trace."""

from __future__ import annotations

from functools import partial

import click

from spectra.cli.options import DEFLATE, Positive, problem_and_output
from spectra.cli.session import Session
from spectra.cli.terminal import finish, prints_to_stderr
from spectra.krylov.methods import TRACE


@click.command()
@click.option("--method", type=click.Choice(list(TRACE)), default="xtrace", show_default=True, help="How.")
@click.option(
    "--rtol", metavar="X", type=Positive(), default=0.01, show_default=True, help="Standard error over |trace|."
)
@click.option(
    "--probes", metavar="P", type=click.IntRange(min=2), help="Exactly P random vectors.  [default: as --rtol needs]"
)
@DEFLATE
@problem_and_output
def trace(method, rtol, probes, **options) -> int:
    """The trace, with its standard error.

    \b
    spectra trace --model nets.py:build --checkpoint last.pt --data digits
    """
    with prints_to_stderr():
        from pkgutil import resolve_name

        from spectra.krylov.deflation import trace_beside
        from spectra.report import trace_results, trace_text

        session = Session()
        session.load()
        estimate, reuse = resolve_name(TRACE[method]), method != "gram"  # which finds all of the trace at once
        if reuse:
            estimate = trace_beside(estimate)
        found = session.measure(partial(estimate, rtol=rtol, probes=probes), reuse=reuse)
        record = session.record(found, trace_results(found, method))
        session.write(record, {})
    return finish(record, options["as_json"], trace_text(record))
