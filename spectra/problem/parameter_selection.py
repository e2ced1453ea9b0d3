"""Choose the parameters of a problem, and refuse layers with outputs that change from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from spectra.errors import ArgumentError, SpectraError
from spectra.problem.parameter_checks import refuse_unsuitable_parameters
from spectra.quoting import foreign, quoted


def select_parameters(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters by name that require gradients and match a glob pattern, with tied parameters once.

    Raises SpectraError if there are none, or if a pattern matches nothing.
    """
    if isinstance(patterns, str):
        raise ArgumentError(
            f"`params` {quoted(patterns)}: expected a list of patterns, got a string; give [{patterns!r}]"
        )
    named = dict(model.named_parameters())
    if not named:
        raise SpectraError("`model`: has no parameters to differentiate; give a model with parameters")
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]  # any name of a tied one
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            some = ", ".join(list(named)[:4]) + (", ..." if len(named) > 4 else "")
            way_out = f"available: {foreign(some)}"
            if any(name.startswith(f"{pattern}.") for name in every):
                way_out = f"write '{foreign(pattern)}.*' for all of this layer"
            raise SpectraError(f"`params` {foreign(pattern)}: matches no parameter; {way_out}")
    wanted = {
        id(p)
        for name, p in model.named_parameters(remove_duplicate=False)
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    chosen = {name: p for name, p in named.items() if p.requires_grad and id(p) in wanted}
    integers = [name for name, p in named.items() if not p.is_floating_point()]
    if not chosen and integers:
        raise SpectraError(
            f"`model`: its parameter {foreign(integers[0])} is {named[integers[0]].dtype}, which has no derivative; "
            "load the model without quantisation, or convert it to floating point"
        )
    if not chosen:
        where = f"`params` {foreign(' '.join(patterns))}" if patterns else "`model`"
        raise SpectraError(f"{where}: all its parameters are frozen; set requires_grad=True on those to differentiate")
    refuse_unsuitable_parameters(chosen)
    kinds = {(p.dtype, p.device) for p in chosen.values()}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise SpectraError(f"`model`: its parameters differ in dtype or device ({found}); convert them to one of each")
    if not next(iter(chosen.values())).dtype.is_floating_point:
        raise SpectraError(f"`model`: its parameters are {next(iter(kinds))[0]}, not real floating point; convert them")
    return chosen


def refuse_training_layers(model: nn.Module) -> None:
    """Raise SpectraError if a layer would draw random numbers or use the statistics of its batch."""
    batch_norm, tracking = nn.modules.batchnorm._BatchNorm, nn.modules.batchnorm._NormBase
    chance = (nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention, nn.RReLU)
    for name, layer in model.named_modules():
        kind = f"{type(layer).__name__} '{name}'"
        dropping = isinstance(layer, chance) and getattr(layer, "p", getattr(layer, "dropout", 1)) > 0
        updating = isinstance(layer, batch_norm) or (isinstance(layer, tracking) and layer.track_running_stats)
        if layer.training and (dropping or updating):
            raise SpectraError(
                f"`model`: {kind} is in training mode, so the matrix would change with each batch; "
                "call model.eval() first"
            )
        if isinstance(layer, batch_norm) and layer.running_mean is None:
            raise SpectraError(
                f"`model`: {kind} has no running statistics, so the matrix would depend on the split into batches; "
                "build it with track_running_stats=True, or use GroupNorm"
            )
