"""Prepare the model of a problem: build a named one and load its checkpoint, or take the caller's own module."""

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
from spectra.inputs.hyper_parameters import fitting
from spectra.inputs.model import build, cast, renormalise_embeddings
from spectra.inputs.python_objects import own_model
from spectra.memory import explain_out_of_memory
from spectra.quoting import foreign

LARGE_MODEL = "use `dtype` float32 and `device` cpu, or a machine with more memory"


@dataclass(frozen=True)
class ModelWithWeights:
    """A model with its weights, and notes for the record."""

    model: nn.Module
    checkpoint: dict[str, Any] | None  # what load_checkpoint returned
    notes: Sequence[str]


def prepare_model(
    model: str | nn.Module,
    checkpoint: str | Path | None,
    checkpoint_key: str | None,
    seed: int,
    place: tuple[torch.device, torch.dtype],
    params: Sequence[str],
) -> ModelWithWeights:
    """Load a named model and its weights, or take the caller's own, on a device and in a dtype. Raises SpectraError."""
    if isinstance(model, nn.Module):
        refuse_of_names(
            {"checkpoint": checkpoint, "checkpoint_key": checkpoint_key}, "load the weights into `model` yourself"
        )
        network, notes = own_model(model, *place)
        return ModelWithWeights(network, None, notes)
    network, loaded, notes = load_model(model, checkpoint, checkpoint_key, seed, place[1], params)
    with explain_out_of_memory(f"`model` {model}", LARGE_MODEL):
        network = cast(network, *place)
    notes = [*notes, *renormalise_embeddings(network), *adapter_notes(loaded, network, params)]
    return ModelWithWeights(network, loaded, notes)


def load_model(
    model: str,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    params: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, Any] | None, Sequence[str]]:
    """Build the named model, load its weights, and return it with the result of `load_checkpoint` and with notes.

    An adapter freezes its base model, unless `params` choose the parameters. The model is cast to `dtype` before the
    weights are loaded, since float64 weights would be rounded otherwise, and is put in eval mode afterwards, since its
    own `eval()` may merge weights. Raises SpectraError.
    """
    if checkpoint_key is not None and not checkpoint:
        raise SpectraError(f"`checkpoint_key` {foreign(checkpoint_key)}: it needs a `checkpoint`; name one")
    with explain_out_of_memory(f"`model` {model}", LARGE_MODEL):
        try:
            built = build(model, seed)
        except SpectraError as error:
            if checkpoint and (name := fitting(model, checkpoint)):
                text = f"{error}; the hyper_parameters in `checkpoint` suggest `model` '{foreign(name)}'"
                raise SpectraError(text) from error
            raise
        network = cast(built.model, None, dtype)
    with explain_out_of_memory(f"`checkpoint` {checkpoint}", LARGE_MODEL):
        loaded = load_checkpoint(network, checkpoint, checkpoint_key, alone=not params) if checkpoint else None
    with suppress(NotImplementedError):  # a graph of torch.export cannot change its mode
        network.eval()
    return network, loaded, () if checkpoint else built.notes  # these notes are about weights that were replaced


def adapter_notes(loaded: dict[str, Any] | None, model: nn.Module, params: Sequence[str]) -> list[str]:
    """Return a note on the size of an adapter; nothing for another checkpoint."""
    if not loaded or not loaded["adapter"]:
        return []
    own, every = loaded["adapter_parameters"], sum(p.numel() for p in model.parameters())
    rest = "any of them can be chosen" if params else "those of the base model are frozen"
    return [f"{loaded['adapter']} adapter: {own:,} of {every:,} parameters are its own; {rest}"]


def refuse_of_names(given: dict[str, Any], way_out: str) -> None:
    """Raise SpectraError for an argument that applies only to a model or data given by name."""
    for name, value in given.items():
        if value is not None:
            raise SpectraError(
                f"`{name}` {value}: it applies only to what is given by name, as on the command line; {way_out}"
            )
