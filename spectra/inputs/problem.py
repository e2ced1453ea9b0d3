"""Make a Problem, and the record that describes it, from all arguments of the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectra.arguments import LARGEST_SEED, require_boolean, require_integer, require_number
from spectra.curvature.checks.loss_checks import takes_whole_batches
from spectra.curvature.evaluation import cut_batches, evaluate, fitting_batch_size
from spectra.inputs.data import load_data
from spectra.inputs.description import names_of, problem_record
from spectra.inputs.devices import batch_to_device, choose_device_and_dtype
from spectra.inputs.examples import Data
from spectra.inputs.graphs import graph_notes
from spectra.inputs.items import item_requirements, refuse_other_names, refuse_weights, unnamed_arguments
from spectra.inputs.loss import build_loss
from spectra.inputs.model_loss import recognise
from spectra.inputs.python_objects import own_data, own_loss
from spectra.inputs.stacking import named
from spectra.inputs.transform import choose_transform
from spectra.inputs.user_loss import part_of
from spectra.inputs.weights import prepare_model, refuse_of_names
from spectra.memory import explain_out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.input_problem import INPUTS, PARAMETERS, InputProblem, refuse_wrt, separate_inputs
from spectra.problem.losses import CustomLoss, Loss
from spectra.problem.model_loss import ModelLoss
from spectra.problem.parameter_selection import select_parameters
from spectra.problem.problem import Problem, Processes
from spectra.records.problem import ProblemRecord
from spectra.wording import dtype_name

FIRST = 256  # examples in a batch, before what fits memory is known


@dataclass(frozen=True)
class Loaded:
    """A problem, its record (sizes, the checkpoint's hash, versions, device, seed), and how the checkpoint
    matched the model.
    """

    problem: Problem
    record: ProblemRecord
    checkpoint: dict[str, Any] | None = None  # what load_checkpoint returned
    data_notes: tuple[str, ...] = ()  # notes on how the data were read, shown before the work begins


def ignore_stage(_stage: str) -> None:
    """Ignore the name of a stage of loading."""


def accept_any(_loss: Loss, _size: int) -> None:
    """Accept every loss and number of parameters."""


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
    wrt: str = PARAMETERS,
    mc_samples: int = 1,
    recompute_activations: bool | None = None,
    weight_decay: float = 0.0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    processes: Processes | None = None,
    begins: Callable[[str], None] = ignore_stage,
    fits: Callable[[Loss, int], None] = accept_any,
) -> Loaded:
    """Build a model, load its weights and data, and check that they fit each other.

    Args:
        model: a torch.nn.Module, or a name as on the command line. A named model is in eval mode. A module is used as
            it is, or copied where its dtype or device has to change.
        data: a DataLoader, batches (x, y), tensors (x, y), or a name as on the command line.
        loss: a loss of spectra or PyTorch, a function, or a name.
        loss_part: the key of one part of a loss that returns a mapping of parts; None: the sum of all parts.
        checkpoint: the file with the weights of a named model.
        checkpoint_key: the entry of that file that holds the weights.
        transform: the name of a function that is applied to every x of named data.
        output: which tensor is the output of a model that returns several, such as `logits` or `0.hidden`.
        samples: the number of examples, chosen at random with the seed; None: all.
        batch_size: the number of examples in a batch; None: as many as fit memory.
        memory: bytes for products beyond model and data.
        params: glob patterns of parameter names; empty: all parameters that require gradients.
        wrt: parameters, or inputs: differentiate the loss of each example by its input; inputs:NAME where there are
            several. The problem is then an `InputProblem`.
        mc_samples: the number of labels that fisher-mc draws for each example.
        recompute_activations: recompute activations in the backward pass (checkpointing), which takes less memory and
            more time; None: only if memory is too small for a product of one example.
        weight_decay: the coefficient of |theta|^2 / 2, which is added to the loss; theta are the parameters.
        device: auto, cpu, cuda, cuda:1 or another torch device; None: that of a module, otherwise auto.
        dtype: float32 or float64, the type of parameters, data and vectors; None: that of a module, otherwise float32.
        seed: random seed.
        processes: the processes among which batches are shared; each loads everything.
        begins: a function that is called with the name of each stage as it begins.
        fits: a function that is called with the loss and the number of parameters before data are loaded, and may
            raise.

    Returns:
        An object with the `problem`, its record, and how the checkpoint matched the model.

    Raises:
        SpectraError: something cannot be built or read, or the parts do not fit each other.
    """
    typed = {key: str(value) if isinstance(value, Path) else value for key, value in locals().items()}
    del typed["processes"], typed["begins"], typed["fits"]
    require_integer("batch_size", batch_size, optional=True)
    require_integer("memory", memory, least=0, optional=True)
    require_integer("seed", seed, 0, LARGEST_SEED)
    require_integer("mc_samples", mc_samples)
    require_boolean("recompute_activations", recompute_activations, optional=True)
    require_number("weight_decay", weight_decay, finite=True)
    refuse_wrt(wrt, params, weight_decay)

    place = choose_device_and_dtype(model, device, dtype)
    objective = build_loss(loss, *place) if isinstance(loss, str) else own_loss(loss, *place)
    objective = part_of(objective, loss_part)

    begins("building the model, reading its weights")
    weighted = prepare_model(model, checkpoint, checkpoint_key, seed, place, params)
    network, parameters = weighted.model, select_parameters(weighted.model, params) if wrt == PARAMETERS else {}
    size = sum(p.numel() for p in parameters.values())
    if not isinstance(objective, ModelLoss) and wrt == PARAMETERS:  # a ModelLoss is recognised after the data are read
        fits(objective, size)

    begins("reading the data")
    typed |= names_of(model, objective, data, loss) | {"dtype": dtype_name(place[1])}
    with explain_out_of_memory(f"`data` {typed['data']}", "take fewer `samples`"):
        wanted = item_requirements(objective, network, typed["model"])
        if isinstance(data, str):
            view = choose_transform(transform, typed["model"])
            examples = load_data(data, samples, seed, view, wanted, batch_size)
        else:
            refuse_of_names({"transform": transform}, "apply it to `data` yourself")
            examples = own_data(data, samples, seed, batch_size, wanted)
        whole = isinstance(examples, Data)
        given = examples.cut(len(examples))
        if not wanted.whole or wanted.forwards:
            refuse_other_names(given[0].inputs, wanted.takes, typed["data"])
        ignored: list[str] = []
        if type(network).__module__.startswith("transformers.") and (wanted.forwards or not wanted.whole):
            if wanted.forwards:
                refuse_weights(given[0].inputs, wanted.takes, typed["data"])
            ignored = unnamed_arguments(given[0].inputs, wanted.takes)
        given = [batch_to_device(batch, *place) for batch in given]
    notes_on_data = [*ignored, *examples.notes, *(notes(examples) if isinstance(examples, Data) else ())]
    if isinstance(objective, CrossEntropy) and objective.shift:
        notes_on_data.append("labels are the next tokens: they were shifted by one place here")
    if wrt != PARAMETERS:
        network, objective, given = separate_inputs(network, objective, given, wrt.partition(":")[2] or None)
        parameters = {INPUTS: network.inputs}
        fits(objective, network.inputs[0].numel())
    elif isinstance(objective, ModelLoss):
        ours = recognise(network, given, list(parameters.values())) if loss_part is None and output is None else None
        if ours:
            objective, given, output, notes_on_data = ours.loss, ours.batches, ours.output, [ours.note, *notes_on_data]
        fits(objective, size)

    problem = (Problem if wrt == PARAMETERS else InputProblem)(
        network,
        objective,
        cut(given, batch_size or min(len(examples), FIRST), whole),
        parameters,
        weight_decay=weight_decay,
        seed=seed,
        mc_samples=mc_samples,
        recompute_activations=recompute_activations,
        output_key=output,
        processes=processes or Processes(),
    )
    begins("the loss over the data")
    value = evaluate(problem)
    if batch_size is None and whole:
        begins("the memory of a product")
        stays = takes_whole_batches(problem)
        fitting = len(examples) if stays else fitting_batch_size(problem, len(examples), memory)
        problem = replace(problem, batches=cut(given, fitting, whole))
        if isinstance(objective, CustomLoss | BatchLoss):  # their value may depend on the batches
            value = evaluate(problem)

    typed |= {"params": list(params), "transform": examples.transform, **checkpoint_fields(weighted.checkpoint)}
    remarks = [*notes_on_data, *graph_notes(network, given)]
    record = problem_record(problem, typed, value, [*remarks, *weighted.notes])
    return Loaded(problem, record, weighted.checkpoint, tuple(notes_on_data))


def cut(batches: Sequence[Batch], size: int, whole: bool) -> Sequence[Batch]:
    """Cut the examples into batches of `size` if they are one `whole`, else keep their batches."""
    if not whole:
        return batches
    (every,) = batches
    return cut_batches(every.inputs, every.targets, every.indices, size)


def checkpoint_fields(checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a problem's record that describe a checkpoint; all are None without one."""
    found = {f"checkpoint_{name}": checkpoint and checkpoint[name] for name in ("key", "prefix", "added", "sha256")}
    return found | {"checkpoint_ignored": checkpoint and len(checkpoint["ignored"])}


def notes(data: Data) -> list[str]:
    """Return a note where token labels equal the inputs, which suggests that they still have to be shifted."""
    y, way_out = data.targets, "if the model shifts labels inside its own loss, shift them in the data, or write "
    way_out += "cross_entropy?shift=true"
    if not isinstance(y, Tensor):
        return []
    counted = y != CrossEntropy.ignore_index
    return [
        f"y equals {what} at all positions: {way_out}"
        for what, x in named(data.inputs)
        if isinstance(x, Tensor)
        and x.dtype == y.dtype == torch.int64
        and x.shape == y.shape
        and y.ndim > 1
        and x[counted].equal(y[counted])
    ]
