"""spectra trace."""

from __future__ import annotations

from functools import partial

import click

from spectra.cli.options import DEFLATE, Count, Positive, problem_and_output
from spectra.cli.session import Session
from spectra.cli.terminal import finish, prints_to_stderr
from spectra.krylov.methods import TRACE


@click.command()
@click.option(
    "--method", type=click.Choice(list(TRACE)), help="How.  [default: gram where exact is cheaper, else xtrace]"
)
@click.option(
    "--rtol", metavar="X", type=Positive(), default=0.01, show_default=True, help="Standard error over |trace|."
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
        from spectra.tables.results import trace_results, trace_text

        session = Session()
        session.load()
        found, results = [], []
        for name, chosen in methods(session, method).items():
            answer = measure(session, name, chosen, rtol=rtol, probes=probes)
            found += answer
            results += trace_results(answer, chosen)
        record = session.record(found, results)
        session.write(record, {})
    return finish(record, options["as_json"], trace_text(record))


def methods(session: Session, method: str | None) -> dict[str, str]:
    """What each matrix's trace is found by. Options that are XTrace's own ask for it."""
    from spectra.krylov.gram import exact_trace_pays
    from spectra.operator import CHECKS

    options, matrices = session.options, session.matrices()
    if method or options["probes"] or options["deflate"]:
        return {matrix.name: method or "xtrace" for matrix in matrices}
    left = options["max_products"] and options["max_products"] - CHECKS
    return {matrix.name: "gram" if exact_trace_pays(matrix, left) else "xtrace" for matrix in matrices}


def measure(session: Session, name: str, method: str, **settings) -> list:
    """One matrix's trace: beside eigenpairs of an earlier run, but for gram, which needs no products but the checks."""
    from pkgutil import resolve_name

    from spectra.krylov.deflation import trace_beside
    from spectra.operator import CHECKS

    found = resolve_name(TRACE[method])
    if method == "gram":
        return session.measure(partial(found, **settings), products=CHECKS, names=[name])
    return session.measure(partial(trace_beside(found), **settings), reuse=True, names=[name])
