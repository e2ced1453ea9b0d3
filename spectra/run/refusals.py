"""What a command refuses before it works: arguments that do not suit each other, and then the model, before data are read.

Each refusal is made where the mechanism is, and again there; here is what can be judged sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from spectra.curvature.matrices import refuse_gram, refuse_unsuited, refuse_weight_decay, suits
from spectra.run.known import source

UP_TO_ALL = ("inspect", "layers")  # commands that take a -k beyond the number of eigenvalues for all of them


def refuse_at_once(options: dict[str, Any]) -> None:
    """Raise SpectraError where some arguments cannot go together, or name an earlier result that is none."""
    for name in options["curvature"]:
        refuse_weight_decay(name, options["weight_decay"])
        if options.get("method") == "gram":
            refuse_gram(name)
    for option in ("deflate", "eigenvectors"):
        if options.get(option):
            source(options, option)
    if options.get("method") == "power":
        from spectra.krylov.limits import refuse_which

        refuse_which(options["which"])


def refuse_for_model(context: click.Context, checks: int, loss: object, size: int) -> None:
    """Raise SpectraError where a matrix of this loss and so many rows is not what was asked for.

    `checks` are the products that are spent before the method's own.
    """
    from spectra.krylov.limits import refuse_dense, refuse_k

    options = context.params
    for name in options["curvature"]:
        refuse_unsuited(name, loss, options["weight_decay"])
    if options.get("k") and context.command.name not in UP_TO_ALL:
        refuse_k(options["k"], size)
    if options.get("method") == "dense":
        limit = options["max_products"]
        refuse_dense(size, None if limit is None else limit - checks)
    if options.get("along"):
        from spectra.surfaces.directions import refuse_ranks

        refuse_ranks([int(name) for one in options["along"] for name in one.names if name.isdigit()], size)


def load_suited(context: click.Context, checks: int, processes: Any, begins: Callable[[str], None]):
    """The problem, loaded; `begins` is told of each stage. Raises SpectraError.

    Where no matrix is named, the command takes those of its own that the loss has, and a note tells of the others.
    """
    from inspect import signature

    from spectra.inputs.problem import load_problem

    options, missing = context.params, []

    def fits(loss: object, size: int) -> None:
        if context.get_parameter_source("curvature") is ParameterSource.DEFAULT:
            missing.extend(name for name in options["curvature"] if not suits(name, loss))
            options["curvature"] = tuple(name for name in options["curvature"] if name not in missing)
        refuse_for_model(context, checks, loss, size)

    named = {name: options[name] for name in signature(load_problem).parameters if name in options}
    loaded = load_problem(**named, processes=processes, begins=begins, fits=fits)
    why = "is left out: a loss of your own has no distribution p(y|f) to expect labels of"
    loaded.record["notes"] += [f"{name} {why}" for name in missing]
    return loaded
