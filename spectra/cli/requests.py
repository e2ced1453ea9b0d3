"""Convert the options of the running command to a `Request` of `spectra.run`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from spectra.cli.config import OF_NETWORKS, recorded, refuse_changed
from spectra.defaults import EXACT, IEEE
from spectra.errors import SpectraError

if TYPE_CHECKING:
    from spectra.run.request import Request, S

# Options that describe the problem: arguments of `load_problem`.
PROBLEM = (
    *("model", "checkpoint", "checkpoint_key", "data", "transform", "output", "loss", "loss_part"),
    *("samples", "batch_size"),
    *("memory", "recompute_activations", "params", "mc_samples", "weight_decay", "device", "dtype", "seed"),
)
SOME = ("wrt",)  # likewise, but only some commands have them
EARLIER = ("deflate", "eigenvectors")  # options that name a result of eig


def request(settings: S, home: Path | None = None) -> Request[S]:
    """The request of the running command: its own `settings`, and the shared options from the command line."""
    from spectra.run.request import Request

    context = click.get_current_context()
    options = context.params
    if options.get("operator"):
        return of_operators(context, settings, home)
    named = {name: options[name] for name in PROBLEM} | {name: options[name] for name in SOME if name in options}
    if isinstance(named["checkpoint"], tuple):
        named["checkpoint"] = named["checkpoint"][0]  # the others are in the settings of the command
    if isinstance(named["loss_part"], tuple):
        named["loss_part"] = None  # the parts are in the settings of the command
    option = next((name for name in EARLIER if name in options), None)
    return Request(
        settings,
        named,
        tuple(options["curvature"]),
        options=recorded(context),
        seed=options["seed"],
        max_products=options["max_products"],
        memory=options["memory"],
        basis=options["basis"],
        check=not options["no_check"],
        precision=options.get("precision", IEEE),
        products=options.get("products", EXACT),
        precondition=options.get("precondition"),
        difference_step=options.get("difference_step"),
        compile=options["compile"],
        out=options["out"],
        artifacts_dir=home,
        save_every=options.get("save_every"),
        earlier=options[option] if option else None,
        earlier_option=option or EARLIER[0],
        lenient=context.get_parameter_source("curvature") is ParameterSource.DEFAULT,
        ranks=True,
        verify=partial(refuse_changed, context),
    )


def of_operators(context: click.Context, settings: S, home: Path | None) -> Request[S]:
    """The request of a command that analyses matrices given by --operator instead of a network."""
    from spectra.inputs.operators import Operators
    from spectra.run.request import Request

    options = context.params
    for name in OF_NETWORKS:
        source = context.get_parameter_source(name) if name in options else None
        if source not in (None, ParameterSource.DEFAULT):
            flag = next(max(p.opts, key=len) for p in context.command.params if p.name == name)
            raise SpectraError(f"{flag}: describes a network, but --operator names a matrix; leave one of them out")
    named = options["operator"]
    specs = named if isinstance(named, tuple) else (named,)
    if isinstance(named, tuple) and len(set(named)) < 2:
        raise SpectraError(f"--operator {named[0]}: there is no second matrix to compare with; give --operator again")
    dtype = recorded(context)["dtype"]
    return Request(
        settings,
        Operators(specs, options["device"], dtype, options["seed"]),
        specs,
        options=recorded(context),
        seed=options["seed"],
        max_products=options["max_products"],
        basis=options["basis"],
        out=options["out"],
        artifacts_dir=home,
        save_every=options.get("save_every"),
        earlier=options.get("deflate"),
        ranks=True,
        verify=partial(refuse_changed, context),
    )
