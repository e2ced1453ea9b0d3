"""spectra eig."""

from __future__ import annotations

import click

from spectra.cli.layout import Command
from spectra.cli.options import Count, Positive, problem_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import TERMINAL, finish, prints_to_stderr
from spectra.defaults import TOLERANCE, K
from spectra.krylov.methods import EIG


@click.command(
    cls=Command,
    examples=(
        "spectra eig --model spectra.demo:mlp --data digits",
        "spectra eig --model nets.py:build --checkpoint last.pt --data digits \\",
        "    --curvature hessian --curvature ggn -k 20 --out run1",
    ),
)
@click.option("-k", metavar="K", type=Count(min=1), default=K, show_default=True, help="Number of eigenvalues.")
@click.option("--which", type=click.Choice(["LM", "LA", "SA", "BE"]), default="LM", show_default=True, help="Which eigenvalues: of largest magnitude (LM), largest (LA), smallest (SA), or from both ends (BE).")  # fmt: skip
@click.option("--method", type=click.Choice(list(EIG)), default="lanczos", show_default=True, help="Algorithm.")
@click.option(
    "--tol",
    metavar="X",
    type=Positive(),
    default=TOLERANCE,
    show_default=True,
    help="Tolerance of an eigenpair: its residual relative to |eigenvalue|.",
)
@click.option("--save-vectors", is_flag=True, help="Write the eigenvectors to --out even if they exceed 1 GiB.")
@problem_and_output
def eig(k, which, method, tol, save_vectors, **options) -> int:
    """Compute the extreme eigenvalues, each with its residual.

    The residual bounds the error: up to rounding, a true eigenvalue lies within
    that distance. With --out, the eigenvectors are saved too.
    """
    with prints_to_stderr():
        from spectra.quoting import readable
        from spectra.run.eig import EigSettings
        from spectra.run.eig import eig as eigenvalues
        from spectra.run.session import Session
        from spectra.tables.localisation import eig_parts
        from spectra.tables.results import rendered

        with Session(request(EigSettings(k, which, method, tol)), TERMINAL) as session:
            record = eigenvalues(session, save_vectors)
    return finish(record, options["as_json"], rendered(*eig_parts(readable(record))))
