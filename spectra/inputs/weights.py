"""The model of a problem with its weights: built from a name and loaded from a checkpoint, or the caller's own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectra.errors import SpectraError
from spectra.inputs.checkpoint import load_checkpoint
from spectra.inputs.given import own_model
from spectra.inputs.hyper_parameters import fitting
from spectra.inputs.model import build, cast, renormalise_embeddings
from spectra.memory import taking_memory
from spectra.quoting import foreign

LARGE_MODEL = "take `dtype` float32 and `device` cpu, or a machine with more memory"


@dataclass(frozen=True)
class Weighted:
    """A model with its weights, how the checkpoint matched, as `load_checkpoint` tells it, and notes."""

    model: nn.Module
    checkpoint: dict[str, Any] | None
    notes: Sequence[str]


def model_on(
    model: str | nn.Module,
    checkpoint: str | Path | None,
    checkpoint_key: str | None,
    seed: int,
    place: tuple[torch.device, torch.dtype],
    params: Sequence[str],
) -> Weighted:
    """The named model with its weights, or the caller's own, on a device and in a dtype. Raises SpectraError."""
    if isinstance(model, nn.Module):
        refuse_of_names(
            {"checkpoint": checkpoint, "checkpoint_key": checkpoint_key}, "`model` load its weights into it"
        )
        network, notes = own_model(model, *place)
        return Weighted(network, None, notes)
    network, loaded, notes = load_model(model, checkpoint, checkpoint_key, seed, place[1], params)
    with taking_memory(f"`model` {model}", LARGE_MODEL):
        network = cast(network, *place)
    notes = [*notes, *renormalise_embeddings(network), *adapter_notes(loaded, network, params)]
    return Weighted(network, loaded, notes)


def load_model(
    model: str,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    params: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, Any] | None, Sequence[str]]:
    """Build the named model and load its weights, and return it with what `load_checkpoint` returns and with notes.

    An adapter freezes the model that it is put on, unless `params` say what to differentiate by. Raises SpectraError.

    The model is brought to `dtype` before weights are loaded, or those of float64 would be rounded on their way, and to
    eval mode afterwards, since an `eval()` of its own may merge them.
    """
    if checkpoint_key is not None and not checkpoint:
        raise SpectraError(f"`checkpoint_key` {foreign(checkpoint_key)}: there is no `checkpoint` to look in; name one")
    with taking_memory(f"`model` {model}", LARGE_MODEL):
        try:
            built = build(model, seed)
        except SpectraError as error:
            if checkpoint and (name := fitting(model, checkpoint)):
                text = f"{error}; hyper_parameters in `checkpoint` have them: `model` '{foreign(name)}'"
                raise SpectraError(text) from error
            raise
        network = cast(built.model, None, dtype)
    with taking_memory(f"`checkpoint` {checkpoint}", LARGE_MODEL):
        loaded = load_checkpoint(network, checkpoint, checkpoint_key, alone=not params) if checkpoint else None
    with suppress(NotImplementedError):  # a graph of torch.export has the one mode in which it was made
        network.eval()
    return network, loaded, () if checkpoint else built.notes  # which tell of the weights


def adapter_notes(loaded: dict[str, Any] | None, model: nn.Module, params: Sequence[str]) -> list[str]:
    """The note that the checkpoint is an adapter, and how much of the model it is."""
    if not loaded or not loaded["adapter"]:
        return []
    own, every = loaded["adapter_parameters"], sum(p.numel() for p in model.parameters())
    rest = "any of them can be chosen" if params else "those of the base model are frozen"
    return [f"{loaded['adapter']} adapter: {own:,} of {every:,} parameters are its own; {rest}"]


def refuse_of_names(given: dict[str, Any], way_out: str) -> None:
    """Raise SpectraError where there is an argument that goes with names alone."""
    for name, value in given.items():
        if value is not None:
            raise SpectraError(
                f"`{name}` {value}: is for what is given by name, as on the command line; of your own {way_out}"
            )
