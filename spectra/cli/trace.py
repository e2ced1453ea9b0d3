"""spectra trace."""

from __future__ import annotations

from functools import partial

import click

from spectra.cli.options import Positive, problem_and_output
from spectra.cli.session import Session, finish, prints_to_stderr
from spectra.krylov.methods import TRACE


@click.command()
@click.option("--method", type=click.Choice(list(TRACE)), default="xtrace", show_default=True, help="How.")
@click.option(
    "--rtol", metavar="X", type=Positive(), default=0.01, show_default=True, help="Standard error over |trace|."
)
@click.option(
    "--probes", metavar="P", type=click.IntRange(min=2), help="Exactly P random vectors.  [default: as --rtol needs]"
)
@problem_and_output
def trace(method, rtol, probes, **options) -> int:
    """The trace, with its standard error.

    \b
    spectra trace --model nets.py:build --checkpoint last.pt --data digits
    """
    with prints_to_stderr():
        from pkgutil import resolve_name

        from spectra.report import trace_results, trace_text
        from spectra.results import make_record

        session = Session("trace", options)
        loaded = session.load()
        found = session.measure(loaded.problem, partial(resolve_name(TRACE[method]), rtol=rtol, probes=probes))
        request = {"method": method, "rtol": rtol, "probes": probes, "max_products": options["max_products"]}
        record = make_record("trace", loaded.record | request, trace_results(found, method))
        session.write(record, {})
    return finish(record, options["as_json"], trace_text(record))
