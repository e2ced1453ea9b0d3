"""spectra density."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from spectra.cli.options import DEFLATE, Count, Positive, problem_and_output
from spectra.cli.session import Session
from spectra.cli.terminal import finish, prints_to_stderr


@click.command()
@click.option("--steps", metavar="M", type=Count(min=2), default=80, show_default=True, help="Products a probe.")
@click.option("--probes", metavar="P", type=Count(min=1), default=10, show_default=True, help="Random vectors.")
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
        from spectra.krylov.quadrature import spectral_measure
        from spectra.plots import density_figure, save_figure
        from spectra.quoting import readable
        from spectra.records.files import write_atomically
        from spectra.spectrum.classes import class_count
        from spectra.tables.outliers import damped_entry, density_parts, outlier_entry
        from spectra.tables.results import density_arrays, density_results, rendered

        session = Session()
        home = options["out"] or Path()
        classes = class_count(session.load(home).problem)
        method = partial(spectral_measure, steps=steps, probes=probes)
        found = session.measure(method, reuse=True, products=(probes + 1) * steps)
        finite = {m.curvature: m.answer for m in found if m.answer.nodes.isfinite().all()}
        path = home / "density.png" if finite else None
        results = density_results(found, path)
        for entry, m in zip(results, found, strict=True):
            entry |= outlier_entry(m.answer, classes) | damped_entry(m.answer, damping, m.semidefinite)
        record = session.record(found, results)
        if path and session.first:
            figure = density_figure(finite, log=log)
            write_atomically(path, lambda file: save_figure(figure, file, "png"))
        session.write(record, density_arrays(found))
    return finish(record, options["as_json"], rendered(*density_parts(readable(record))))
