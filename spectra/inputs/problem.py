"""What a user names, all of it -> a Problem, and the record that says what it was."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectra.arguments import LARGEST_SEED, require_choice, require_integer, require_number
from spectra.curvature.checks.notes import model_notes
from spectra.curvature.evaluation import cut_batches, evaluate, fitting_batch_size
from spectra.errors import SpectraError
from spectra.inputs.checkpoint import load_checkpoint
from spectra.inputs.data import Data, load_data
from spectra.inputs.examples import named
from spectra.inputs.loss import build_loss
from spectra.inputs.model import build_model, cast, renormalise_embeddings
from spectra.inputs.transform import choose_transform
from spectra.memory import taking_memory
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, Loss
from spectra.problem.problem import Problem, Processes, choose_parameters
from spectra.quoting import foreign

LARGE_MODEL = "take `dtype` float32 and `device` cpu, or a machine with more memory"
DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Loaded:
    """A problem, its record (sizes, the checkpoint's hash, versions, device, seed), and how the checkpoint fitted."""

    problem: Problem
    record: dict[str, Any]
    checkpoint: dict[str, Any] | None = None  # as load_checkpoint tells it


def unheard(_stage: str) -> None:
    """Nobody follows."""


def anything(_loss: Loss, _size: int) -> None:
    """All losses and models fit."""


def load_problem(
    *,
    model: str,
    data: str,
    loss: str = "cross_entropy",
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    transform: str | None = None,
    output: str | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    params: Sequence[str] = (),
    mc_samples: int = 1,
    weight_decay: float = 0.0,
    device: str = "auto",
    dtype: str = "float32",
    seed: int = 0,
    processes: Processes | None = None,
    begins: Callable[[str], None] = unheard,
    fits: Callable[[Loss, int], None] = anything,
) -> Loaded:
    """Build the model, load its weights and data, and check that they fit each other; specs as on the command line.

    The model sits in eval mode, its floating tensors and those of the data cast to `dtype`. Each of several `processes`
    loads all of it. `begins` is told of each stage; `fits` gets the loss and the number of parameters, and may raise
    before data are loaded. Raises SpectraError.
    """
    typed = {key: str(value) if isinstance(value, Path) else value for key, value in locals().items()}
    del typed["processes"], typed["begins"], typed["fits"]
    processes = processes or Processes()
    require_integer("batch_size", batch_size, optional=True)
    require_integer("memory", memory, least=0, optional=True)
    require_integer("seed", seed, 0, LARGEST_SEED)
    require_integer("mc_samples", mc_samples)
    require_number("weight_decay", weight_decay, finite=True)
    require_choice("device", device, DEVICES)
    require_choice("dtype", dtype, DTYPES)
    place, kind = choose_device(device), DTYPES[dtype]
    objective = build_loss(loss, place, kind)
    begins("building the model, reading its weights")
    network, loaded = load_model(model, checkpoint, checkpoint_key, seed, kind)
    with taking_memory(f"`model` {model}", LARGE_MODEL):
        network = cast(network, place, kind)
    renormalised = renormalise_embeddings(network)
    parameters = choose_parameters(network, params)
    fits(objective, sum(p.numel() for p in parameters.values()))
    begins("reading the data")
    with taking_memory(f"`data` {data}", "take fewer `samples`"):
        examples = load_data(data, samples, seed, choose_transform(transform, model))
        inputs = to_kind(examples.inputs, place, kind)
        targets, indices = to_kind(examples.targets, place, kind), examples.indices.to(place)

    problem = Problem(
        network,
        objective,
        cut_batches(inputs, targets, indices, batch_size or min(len(examples), 256)),
        parameters,
        weight_decay=weight_decay,
        seed=seed,
        mc_samples=mc_samples,
        output_key=output,
        processes=processes,
    )
    begins("the loss over the data")
    value = evaluate(problem)
    if batch_size is None:
        begins("the memory of a product")
        batch_size = fitting_batch_size(problem, len(examples), memory)
        problem = replace(problem, batches=cut_batches(inputs, targets, indices, batch_size))
        if isinstance(objective, CustomLoss):  # whose mean over a batch may be another in other batches
            value = evaluate(problem)
    record = {
        "parameters": problem.size,
        "shapes": {name: list(parameter.shape) for name, parameter in parameters.items()},
        "parameters_in_all": sum(p.numel() for p in network.parameters()),
        "examples": problem.examples,
        **typed,
        "params": list(params),
        "transform": examples.transform,
        "checkpoint_key": loaded and loaded["key"],
        "checkpoint_prefix": loaded and loaded["prefix"],
        "checkpoint_ignored": loaded and len(loaded["ignored"]),
        "checkpoint_sha256": loaded and loaded["sha256"],
        "samples": len(examples),
        "batch_size": min(batch_size, len(examples)),
        "device": place.type,
        "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "ranks": processes.count,
        "loss_value": value.loss,
        "accuracy": value.accuracy,
        "notes": [*notes(examples), *renormalised, *model_notes(problem)],
        "versions": versions(),
    }
    return Loaded(problem, record, loaded)


def load_model(
    model: str,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The model that is named, with its weights, and what `load_checkpoint` tells of them. Raises SpectraError.

    It is brought to `dtype` before weights are loaded, or those of float64 would be rounded on their way, and to eval
    mode after, since an `eval()` of its own may merge them.
    """
    if checkpoint_key is not None and not checkpoint:
        raise SpectraError(f"`checkpoint_key` {foreign(checkpoint_key)}: there is no `checkpoint` to look in; name one")
    with taking_memory(f"`model` {model}", LARGE_MODEL):
        network = cast(build_model(model, seed), None, dtype)
    with taking_memory(f"`checkpoint` {checkpoint}", LARGE_MODEL):
        loaded = load_checkpoint(network, checkpoint, checkpoint_key) if checkpoint else None
    with suppress(NotImplementedError):  # a graph of torch.export has the one mode in which it was made
        network.eval()
    return network, loaded


def notes(data: Data) -> list[str]:
    """What may be a slip, though it can be computed: labels of tokens as transformers takes them, not yet shifted."""
    y, way_out = data.targets, "if the model shifts labels inside its own loss, shift them in the data"
    counted = y != CrossEntropy.ignore_index
    return [
        f"y equals {what} at every position: {way_out}"
        for what, x in named(data.inputs)
        if x.dtype == y.dtype == torch.int64 and x.shape == y.shape and y.ndim > 1 and x[counted].equal(y[counted])
    ]


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SpectraError("`device` cuda: torch sees no CUDA device here; use `device` cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def to_kind(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors on the device, floating ones in the dtype; integers and booleans as they are."""
    if isinstance(tree, Tensor):
        return tree.to(device, dtype) if tree.is_floating_point() else tree.to(device)
    if isinstance(tree, dict):
        return {key: to_kind(value, device, dtype) for key, value in tree.items()}
    return tuple(to_kind(value, device, dtype) for value in tree)


def versions() -> dict[str, str]:
    from spectra import __version__

    return {
        "spectra": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
