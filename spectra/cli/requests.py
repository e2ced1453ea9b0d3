"""The options of the running command as a request to `spectra.run`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from spectra.cli.config import NOT_RECORDED, plain, refuse_changed
from spectra.defaults import EXACT, IEEE

if TYPE_CHECKING:
    from spectra.run.request import Request, S

# What names the problem: arguments of `load_problem`.
PROBLEM = (
    *("model", "checkpoint", "checkpoint_key", "data", "transform", "output", "loss", "loss_part"),
    *("samples", "batch_size"),
    *("memory", "recompute_activations", "params", "mc_samples", "weight_decay", "device", "dtype", "seed"),
)
EARLIER = ("deflate", "eigenvectors")  # options that name a result of eig


def request(settings: S, home: Path | None = None) -> Request[S]:
    """The request of the running command: `settings` of its own, the rest as typed; see `Request`."""
    from spectra.run.request import Request

    context = click.get_current_context()
    options = context.params
    named = {name: options[name] for name in PROBLEM}
    if isinstance(named["loss_part"], tuple):
        named["loss_part"] = None  # the command has them among its settings, each beside the sum
    option = next((name for name in EARLIER if name in options), None)
    return Request(
        settings,
        named,
        tuple(options["curvature"]),
        options=asked(context),
        seed=options["seed"],
        max_products=options["max_products"],
        memory=options["memory"],
        basis=options["basis"],
        check=not options["no_check"],
        precision=options.get("precision", IEEE),
        products=options.get("products", EXACT),
        difference_step=options.get("difference_step"),
        compile=options["compile"],
        out=options["out"],
        home=home,
        save_every=options.get("save_every"),
        earlier=options[option] if option else None,
        earlier_option=option or EARLIER[0],
        lenient=context.get_parameter_source("curvature") is ParameterSource.DEFAULT,
        ranks=True,
        verify=partial(refuse_changed, context),
    )


def asked(context: click.Context) -> dict[str, Any]:
    """The options that say what is to be computed, as a record lists them."""
    return {name: plain(value) for name, value in context.params.items() if name not in NOT_RECORDED}
