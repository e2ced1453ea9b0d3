"""spectra inspect."""

from __future__ import annotations

from functools import partial

import click

from spectra.cli.options import Positive, model_and_output
from spectra.cli.progress import progress_line, tell_heading
from spectra.cli.session import Session
from spectra.cli.terminal import finish, prints_to_stderr


@click.command()
@click.option("-k", metavar="K", type=click.IntRange(min=1), default=10, show_default=True, help="Eigenvalues that eig is to find.")  # fmt: skip
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
        from spectra.records.inspect import InspectResult
        from spectra.run.inspection import look_ahead
        from spectra.tables.inspection import inspect_text

        session = Session()
        if options["data"] is not None:
            session.load(heading=lambda loaded: told(with_layers(loaded)))
            session.loaded = with_gradient(with_layers(session.loaded))
            tell_heading(told(session.loaded))
            found = session.measure(partial(look_ahead, k=k, tolerance=tol, rtol=rtol))
        else:
            session.prepare(options["out"])
            session.loaded, found = without_data(options), []
        record = session.record(found, [InspectResult.of(m) for m in found])
        session.write(record)
    return finish(record, options["as_json"], inspect_text(record))


def with_layers(loaded):
    """The same with what the layers and the checkpoint are in its record."""
    from dataclasses import replace

    problem = loaded.problem
    return replace(
        loaded, record=loaded.record.changed(**model_fields(problem.model, problem.parameters, loaded.checkpoint))
    )


def model_fields(model, chosen, match) -> dict:
    """The fields of a record that tell of a model's layers, and how its checkpoint fitted them."""
    from dataclasses import asdict

    from spectra.records.problem import CheckpointMatch, LayerRecord
    from spectra.run.inspection import layers

    found = [LayerRecord(**asdict(layer) | {"tied": list(layer.tied)}) for layer in layers(model, chosen)]
    return {"layers": found, "checkpoint_match": match and CheckpointMatch(**match)}


def with_gradient(loaded):
    """The same with the gradient's norm."""
    from dataclasses import replace

    from spectra.curvature.engine.gradients import mean_gradient
    from spectra.operator import norm

    with progress_line("gradient"):
        return replace(loaded, record=loaded.record.changed(gradient_norm=norm(mean_gradient(loaded.problem))))


def told(loaded) -> str:
    """How that reads, as far as it is known."""
    from spectra.tables.inspection import data_parts, model_parts
    from spectra.tables.results import rendered

    record = loaded.record
    return rendered(*model_parts(record), *(data_parts(record) if hasattr(record, "gradient_norm") else []))


def without_data(options):
    """The same of a model alone."""
    from spectra.inputs.problem import Loaded, load_model, versions
    from spectra.problem.problem import choose_parameters
    from spectra.records.problem import ProblemRecord

    model, match = load_model(*(options[name] for name in ("model", "checkpoint", "checkpoint_key", "seed")))
    chosen = choose_parameters(model, options["params"])
    record = ProblemRecord.known(
        parameters=sum(p.numel() for p in chosen.values()),
        parameters_in_all=sum(p.numel() for p in model.parameters()),
        model=options["model"],
        checkpoint=options["checkpoint"] and str(options["checkpoint"]),
        checkpoint_key=match and match["key"],
        checkpoint_sha256=match and match["sha256"],
        params=list(options["params"]),
        seed=options["seed"],
        data=None,
        notes=[],
        versions=versions(),
        **model_fields(model, chosen, match),
    )
    return Loaded(None, record, match)
