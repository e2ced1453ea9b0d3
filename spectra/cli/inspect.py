"""spectra inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spectra.cli.layout import Command
from spectra.cli.options import Count, Positive, model_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import Terminal, finish, prints_to_stderr
from spectra.defaults import RTOL, TOLERANCE, K

if TYPE_CHECKING:
    from spectra.records.problem import ProblemRecord


@click.command(
    cls=Command,
    examples=(
        "spectra inspect --model spectra.demo:mlp --data digits",
        "spectra inspect --model nets.py:build --checkpoint last.pt",
    ),
)
@click.option("-k", metavar="K", type=Count(min=1), default=K, show_default=True, help="Number of eigenvalues in the forecast for eig.")  # fmt: skip
@click.option(
    "--tol",
    metavar="X",
    type=Positive(),
    default=TOLERANCE,
    show_default=True,
    help="Tolerance in the forecast for eig.",
)
@click.option(
    "--rtol", metavar="X", type=Positive(), default=RTOL, show_default=True, help="Tolerance in the forecast for trace."
)
@model_and_output
def inspect(k, tol, rtol, **options) -> int:
    """Show what a checkpoint holds and what a run will cost.

    The tables list the layers of the model and the keys of the checkpoint. With
    --data they also show loss, accuracy and gradient, and forecast products,
    time and memory of eig, trace and density.
    """
    with prints_to_stderr():
        from spectra.run.inspection import InspectSettings, inspection
        from spectra.run.session import Session
        from spectra.tables.inspection import inspect_text

        with Session(request(InspectSettings(k, tol, rtol)), Terminal(known_so_far)) as session:
            record = inspection(session)
    return finish(record, options["as_json"], inspect_text(record))


def known_so_far(problem: ProblemRecord) -> str:
    """The part of the answer that is known before the forecasts: layers, checkpoint and, once evaluated, the data."""
    from spectra.tables.inspection import data_parts, model_parts
    from spectra.tables.results import rendered

    return rendered(*model_parts(problem), *(data_parts(problem) if hasattr(problem, "gradient_norm") else ()))
