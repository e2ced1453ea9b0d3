"""Make a Problem from everything that a user names, and the record that describes it."""

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

from spectra.arguments import LARGEST_SEED, require_integer, require_number
from spectra.curvature.checks.loss_checks import takes_whole_batches
from spectra.curvature.checks.notes import model_notes
from spectra.curvature.evaluation import Evaluation, cut_batches, evaluate, fitting_batch_size
from spectra.errors import ArgumentError, SpectraError, describe
from spectra.inputs.checkpoint import load_checkpoint
from spectra.inputs.data import load_data
from spectra.inputs.examples import Data
from spectra.inputs.given import GIVEN, data_name, device_and_dtype, own_data, own_loss, own_model, unwrapped
from spectra.inputs.graphs import graph_notes
from spectra.inputs.hyper_parameters import fitting
from spectra.inputs.items import refuse_other_names, wanted_by
from spectra.inputs.loss import build_loss
from spectra.inputs.loss_options import loss_name
from spectra.inputs.model import build, cast, renormalise_embeddings
from spectra.inputs.model_loss import recognise
from spectra.inputs.stacking import named
from spectra.inputs.transform import choose_transform
from spectra.inputs.user_loss import part_of
from spectra.memory import taking_memory
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import CustomLoss, Loss
from spectra.problem.model_inputs import map_tensors
from spectra.problem.model_loss import ModelLoss
from spectra.problem.problem import Batch, Problem, Processes, choose_parameters
from spectra.quoting import foreign
from spectra.records.problem import ProblemRecord

LARGE_MODEL = "take `dtype` float32 and `device` cpu, or a machine with more memory"
DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Loaded:
    """A problem, its record (sizes, the checkpoint's hash, versions, device, seed), and how the checkpoint
    matched the model.
    """

    problem: Problem
    record: ProblemRecord
    checkpoint: dict[str, Any] | None = None  # as load_checkpoint tells it
    told: tuple[str, ...] = ()  # how the data were read, which the user should know before the work


def unheard(_stage: str) -> None:
    """Ignore the stages of loading."""


def anything(_loss: Loss, _size: int) -> None:
    """Accept every loss and model."""


def load_problem(
    *,
    model: str | nn.Module,
    data: Any,
    loss: Any = "cross_entropy",
    loss_part: str | None = None,
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
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    processes: Processes | None = None,
    begins: Callable[[str], None] = unheard,
    fits: Callable[[Loss, int], None] = anything,
) -> Loaded:
    """Build the model, load its weights and data, and check that they fit each other.

    Args:
        model: a name as on the command line, or a module. A named model is in eval mode; a module is used as it is, or
            copied where its dtype or device has to be another.
        data: a name, or an object as `own_data` takes it.
        loss: a name, or an object as `own_loss` takes it.
        loss_part: the part to take alone of a user's loss that returns a mapping; None for the sum of all.
        checkpoint: the file of the weights of a named model.
        checkpoint_key: the place of the weights in that file.
        transform: the name of the function applied to every x of named data.
        output: the path of the output tensor, for a model that returns several.
        samples: the number of examples to choose by the seed; None for all.
        batch_size: the number of examples in a batch; by default what fits memory.
        memory: bytes for products beyond model and data.
        params: glob patterns of parameter names; empty for all that require gradients.
        mc_samples: the number of labels that fisher-mc draws for each example.
        weight_decay: the coefficient of |theta|^2 / 2, added to the loss.
        device: auto, cpu, cuda or a torch device; by default that of a module, else auto.
        dtype: float32 or float64, of parameters, data and vectors; by default that of a module, else float32.
        seed: the random seed.
        processes: the processes among which batches are dealt; each loads everything.
        begins: called with the name of each stage as it begins.
        fits: called with the loss and the number of parameters before data are loaded; it may raise.

    Returns:
        The problem, its record, and how the checkpoint matched.

    Raises:
        SpectraError: a part cannot be made, or the parts do not fit each other.
    """
    typed = {key: str(value) if isinstance(value, Path) else value for key, value in locals().items()}
    del typed["processes"], typed["begins"], typed["fits"]
    processes = processes or Processes()
    require_integer("batch_size", batch_size, optional=True)
    require_integer("memory", memory, least=0, optional=True)
    require_integer("seed", seed, 0, LARGEST_SEED)
    require_integer("mc_samples", mc_samples)
    require_number("weight_decay", weight_decay, finite=True)

    place, kind = choose_own_device(model, device), choose_dtype(model, dtype)
    objective = build_loss(loss, place, kind) if isinstance(loss, str) else own_loss(loss, place, kind)
    objective = part_of(objective, loss_part)

    begins("building the model, reading its weights")
    if isinstance(model, nn.Module):
        refuse_of_names(
            {"checkpoint": checkpoint, "checkpoint_key": checkpoint_key}, "`model` load its weights into it"
        )
        network, renormalised, loaded = *own_model(model, place, kind), None
    else:
        network, loaded, built = load_model(model, checkpoint, checkpoint_key, seed, kind, params)
        with taking_memory(f"`model` {model}", LARGE_MODEL):
            network = cast(network, place, kind)
        renormalised = [*built, *renormalise_embeddings(network)]
    parameters = choose_parameters(network, params)
    size = sum(p.numel() for p in parameters.values())
    if not isinstance(objective, ModelLoss):  # what that is, the data will show
        fits(objective, size)

    begins("reading the data")
    typed |= names_of(model, objective, data, loss) | {"dtype": str(kind).removeprefix("torch.")}
    with taking_memory(f"`data` {typed['data']}", "take fewer `samples`"):
        wanted = wanted_by(objective, network, typed["model"])
        if isinstance(data, str):
            view = choose_transform(transform, typed["model"])
            examples = load_data(data, samples, seed, view, wanted, batch_size)
        else:
            refuse_of_names({"transform": transform}, "`data` apply it to them")
            examples = own_data(data, samples, seed, batch_size, wanted)
        whole = isinstance(examples, Data)
        given = [Batch(examples.inputs, examples.targets, examples.indices)] if whole else examples.batches
        if not wanted.whole or wanted.forwards:
            refuse_other_names(given[0].inputs, wanted.takes, typed["data"])
        given = [
            Batch(cast_tensors(b.inputs, place, kind), cast_tensors(b.targets, place, kind), b.indices.to(place))
            for b in given
        ]
    remarks: list[str] = []
    if isinstance(objective, ModelLoss):
        found = recognise(network, given, list(parameters.values())) if loss_part is None and output is None else None
        if found:
            objective, given, output, remarks = found.loss, found.batches, found.output, [found.note]
        fits(objective, size)
    count = sum(map(len, given))

    def cut(size: int) -> list[Batch]:
        """The examples in batches of this size, if they did not come in batches."""
        return cut_batches(given[0].inputs, given[0].targets, given[0].indices, size) if whole else given

    problem = Problem(
        network,
        objective,
        cut(batch_size or min(count, 256)),
        parameters,
        weight_decay=weight_decay,
        seed=seed,
        mc_samples=mc_samples,
        output_key=output,
        processes=processes,
    )

    begins("the loss over the data")
    value = evaluate(problem)
    if batch_size is None and whole:
        begins("the memory of a product")
        size = count if takes_whole_batches(problem) else fitting_batch_size(problem, count, memory)
        problem = replace(problem, batches=cut(size))
        if isinstance(objective, CustomLoss | BatchLoss):  # whose mean over a batch may be another in other batches
            value = evaluate(problem)

    typed |= {
        "params": list(params),
        "transform": examples.transform,
        "checkpoint_key": loaded and loaded["key"],
        "checkpoint_prefix": loaded and loaded["prefix"],
        "checkpoint_added": loaded and loaded["added"],
        "checkpoint_ignored": loaded and len(loaded["ignored"]),
        "checkpoint_sha256": loaded and loaded["sha256"],
    }
    told = (*remarks, *examples.notes)
    remarks += [*examples.notes, *(notes(examples) if whole else ()), *graph_notes(network, given), *renormalised]
    remarks += adapter_notes(loaded, network, params)
    return Loaded(problem, problem_record(problem, typed, value, remarks), loaded, told)


def describe_problem(problem: Problem, memory: int | None = None) -> ProblemRecord:
    """The record of a Problem that was made in Python, with the loss over its data. Raises SpectraError."""
    typed = names_of(problem.model, problem.loss, problem.batches) | {
        "checkpoint_key": None,
        "transform": None,
        "output": problem.output_key,
        "loss_part": getattr(problem.loss, "part", None),
        "memory": memory,
        "params": list(problem.parameters),
        "mc_samples": problem.mc_samples,
        "weight_decay": problem.weight_decay,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "seed": problem.seed,
        "checkpoint_prefix": None,
        "checkpoint_ignored": None,
        "checkpoint_sha256": None,
    }
    return problem_record(problem, typed, evaluate(problem))


def problem_record(
    problem: Problem, typed: dict[str, Any], value: Evaluation, remarks: Sequence[str] = ()
) -> ProblemRecord:
    """The record of a problem: what was typed, the sizes, the loss over the data, and notes."""
    place, sizes = problem.device, [len(batch) for batch in problem.batches]
    return ProblemRecord.known(
        parameters=problem.size,
        shapes={name: list(parameter.shape) for name, parameter in problem.parameters.items()},
        parameters_in_all=sum(p.numel() for p in problem.model.parameters()),
        examples=problem.examples,
        **typed | {"samples": sum(sizes), "batch_size": max(sizes), "device": place.type},
        device_name=torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        threads=torch.get_num_threads(),
        ranks=problem.processes.count,
        loss_value=value.loss,
        accuracy=value.accuracy,
        notes=[*remarks, *model_notes(problem)],
        versions=versions(),
    )


def names_of(model: str | nn.Module, objective: Loss, data: Any, loss: Any = None) -> dict[str, Any]:
    """The names of model, data and loss in a record: as they were typed, or the types of objects."""
    if isinstance(model, str):
        found: dict[str, Any] = {"model": model}
    else:
        name = type(unwrapped(model)).__name__
        found = {"model": name, "checkpoint": f"{name} {GIVEN}"}
    found["data"] = data if isinstance(data, str) else f"{data_name(data)} {GIVEN}"
    return found | {"loss": loss if isinstance(loss, str) else loss_name(objective)}


def refuse_of_names(given: dict[str, Any], way_out: str) -> None:
    """Raise SpectraError where there is an argument that goes with names alone."""
    for name, value in given.items():
        if value is not None:
            raise SpectraError(f"`{name}` {value}: goes with names, as on the command line; of your own {way_out}")


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


def notes(data: Data) -> list[str]:
    """Notes on what may be a slip, though it can be computed: labels of tokens as transformers takes them, not
    yet shifted.
    """
    y, way_out = data.targets, "if the model shifts labels inside its own loss, shift them in the data, or write "
    way_out += "cross_entropy?shift=true"
    if not isinstance(y, Tensor):
        return []
    counted = y != CrossEntropy.ignore_index
    return [
        f"y equals {what} at every position: {way_out}"
        for what, x in named(data.inputs)
        if isinstance(x, Tensor)
        and x.dtype == y.dtype == torch.int64
        and x.shape == y.shape
        and y.ndim > 1
        and x[counted].equal(y[counted])
    ]


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name: auto, cpu, cuda, or as PyTorch names it. Raises SpectraError where it is not there."""
    if str(name) not in ("auto", "cpu", "cuda"):
        try:
            return torch.empty(0, device=name).device
        except Exception as error:
            raise ArgumentError(f"`device` {name}: is not there ({describe(error)}); use cpu, or auto") from error
    if str(name) == "cuda" and not torch.cuda.is_available():
        raise SpectraError("`device` cuda: torch sees no CUDA device here; use `device` cpu, or auto")
    return torch.device("cuda" if str(name) != "cpu" and torch.cuda.is_available() else "cpu")


def choose_own_device(model: str | nn.Module, device: str | torch.device | None) -> torch.device:
    """The device of a problem: the one asked for, else that of a module, else auto. Raises SpectraError."""
    if device is None and isinstance(model, nn.Module):
        return device_and_dtype(model)[0]
    return choose_device("auto" if device is None else device)


def choose_dtype(model: str | nn.Module, dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype of a problem: the one asked for, else that of a module, else float32. Raises SpectraError."""
    if dtype is None and isinstance(model, nn.Module):
        own = device_and_dtype(model)[1]
        if own in (torch.bfloat16, torch.float16):
            return torch.float32
        if own not in DTYPES.values():
            text = f"its parameters are {own}, too short for eigenvalues; give `dtype` float32, for a copy in that"
            raise SpectraError(f"`model`: {text}")
        return own
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ArgumentError(f"`dtype` {dtype}: is none of {', '.join(DTYPES)}; give one of those")
    return DTYPES[name]


def cast_tensors(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The tensors of a tree on the device, floating ones in the dtype, complex ones in that of the same precision;
    integers and booleans keep theirs.
    """

    def moved(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else dtype.to_complex() if tensor.is_complex() else None
        return tensor.to(device=device, dtype=kind)

    return map_tensors(moved, tree)


def versions() -> dict[str, str]:
    """The versions of spectra, torch, NumPy and Python."""
    from spectra import __version__

    return {
        "spectra": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
