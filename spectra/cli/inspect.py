"""spectra inspect."""

from __future__ import annotations

from functools import partial

import click

from spectra.cli.options import Count, Positive, model_and_output
from spectra.cli.progress import progress_line, tell_heading
from spectra.cli.session import Session
from spectra.cli.terminal import finish, prints_to_stderr


@click.command()
@click.option("-k", metavar="K", type=Count(min=1), default=10, show_default=True, help="Eigenvalues that eig is to find.")  # fmt: skip
@click.option("--tol", metavar="X", type=Positive(), default=1e-3, show_default=True, help="Tolerance of eig.")
@click.option("--rtol", metavar="X", type=Positive(), default=0.01, show_default=True, help="Tolerance of trace.")
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
        from spectra.run.inspection import look_ahead
        from spectra.tables.inspection import inspect_results, inspect_text

        session = Session()
        if options["data"] is not None:
            session.load(heading=with_layers)
            tell_heading(with_gradient(session.loaded))
            found = session.measure(partial(look_ahead, k=k, tolerance=tol, rtol=rtol))
        else:
            session.prepare(options["out"])
            session.loaded, found = without_data(options), []
        record = session.record(found, inspect_results(found))
        session.write(record, {})
    return finish(record, options["as_json"], inspect_text(record))


def with_layers(loaded) -> str:
    """What the layers and the checkpoint are, into the record; and how that reads."""
    from dataclasses import asdict

    from spectra.run.inspection import layers
    from spectra.tables.inspection import model_parts
    from spectra.tables.results import rendered

    problem = loaded.problem
    found = [asdict(layer) for layer in layers(problem.model, problem.parameters)]
    loaded.record.update(layers=found, checkpoint_match=loaded.checkpoint)
    return rendered(*model_parts(loaded.record))


def with_gradient(loaded) -> str:
    """The same with the gradient's norm, for all the data."""
    from spectra.curvature.engine.gradients import mean_gradient
    from spectra.operator import norm
    from spectra.tables.inspection import data_parts, model_parts
    from spectra.tables.results import rendered

    with progress_line("gradient"):
        loaded.record.update(gradient_norm=norm(mean_gradient(loaded.problem)))
    return rendered(*model_parts(loaded.record), *data_parts(loaded.record))


def without_data(options):
    """The same of a model alone."""
    from dataclasses import asdict

    from spectra.inputs.problem import Loaded, load_model, versions
    from spectra.problem.problem import choose_parameters
    from spectra.run.inspection import layers

    model, match = load_model(*(options[name] for name in ("model", "checkpoint", "checkpoint_key", "seed")))
    chosen = choose_parameters(model, options["params"])
    record = {
        "parameters": sum(p.numel() for p in chosen.values()),
        "parameters_in_all": sum(p.numel() for p in model.parameters()),
        "model": options["model"],
        "checkpoint": options["checkpoint"] and str(options["checkpoint"]),
        "checkpoint_key": match and match["key"],
        "checkpoint_sha256": match and match["sha256"],
        "params": list(options["params"]),
        "seed": options["seed"],
        "data": None,
        "notes": [],
        "versions": versions(),
        "layers": [asdict(layer) for layer in layers(model, chosen)],
        "checkpoint_match": match,
    }
    return Loaded(None, record, match)
