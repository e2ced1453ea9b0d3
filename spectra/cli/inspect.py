"""spectra inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spectra.cli.options import Count, Positive, model_and_output
from spectra.cli.requests import request
from spectra.cli.terminal import Terminal, finish, prints_to_stderr
from spectra.defaults import RTOL, TOLERANCE, K

if TYPE_CHECKING:
    from spectra.records.problem import ProblemRecord


@click.command()
@click.option("-k", metavar="K", type=Count(min=1), default=K, show_default=True, help="Eigenvalues that eig is to find.")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=TOLERANCE, show_default=True, help="Tolerance of eig.")
@click.option("--rtol", metavar="X", type=Positive(), default=RTOL, show_default=True, help="Tolerance of trace.")
@model_and_output
def inspect(k, tol, rtol, **options) -> int:
    """What a checkpoint holds, and what a run will cost.

    Layers and keys of the checkpoint; with --data also loss, accuracy and
    gradient, and products, time and memory of eig, trace and density.

    \b
    spectra inspect --model nets.py:build --checkpoint last.pt
    spectra inspect --model nets.py:build --checkpoint last.pt --data digits
    """
    with prints_to_stderr():
        from spectra.run.inspection import InspectSettings, inspection
        from spectra.run.session import Session
        from spectra.tables.inspection import inspect_text

        with Session(request(InspectSettings(k, tol, rtol)), Terminal(known_so_far)) as session:
            record = inspection(session)
    return finish(record, options["as_json"], inspect_text(record))


def known_so_far(problem: ProblemRecord) -> str:
    """The text of the record before there are forecasts: layers and checkpoint, and with a gradient the data."""
    from spectra.tables.inspection import data_parts, model_parts
    from spectra.tables.results import rendered

    return rendered(*model_parts(problem), *(data_parts(problem) if hasattr(problem, "gradient_norm") else ()))
