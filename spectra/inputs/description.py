"""Make the record that describes a problem: its arguments, its sizes, the loss over the data, and notes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.curvature.checks.notes import model_notes
from spectra.curvature.evaluation import Evaluation, evaluate
from spectra.devices import name_of_device
from spectra.inputs.devices import recorded_device
from spectra.inputs.loss_options import loss_name
from spectra.inputs.python_objects import GIVEN, data_name, unwrapped
from spectra.problem.input_problem import INPUTS, PARAMETERS, InputProblem
from spectra.problem.losses import Loss
from spectra.problem.problem import Problem
from spectra.records.problem import ProblemRecord
from spectra.wording import dtype_name


def describe_problem(problem: Problem, memory: int | None = None) -> ProblemRecord:
    """Make the record of a Problem that was made in Python; this evaluates the loss. Raises SpectraError."""
    typed = names_of(problem.model, problem.loss, problem.batches) | {
        "checkpoint_key": None,
        "transform": None,
        "output": problem.output_key,
        "loss_part": getattr(problem.loss, "part", None),
        "memory": memory,
        "recompute_activations": problem.recompute_activations,
        "wrt": INPUTS if isinstance(problem, InputProblem) else PARAMETERS,
        "params": [] if isinstance(problem, InputProblem) else list(problem.parameters),
        "mc_samples": problem.mc_samples,
        "weight_decay": problem.weight_decay,
        "dtype": dtype_name(problem.dtype),
        "seed": problem.seed,
        "checkpoint_prefix": None,
        "checkpoint_ignored": None,
        "checkpoint_sha256": None,
    }
    return problem_record(problem, typed, evaluate(problem))


def problem_record(
    problem: Problem, typed: dict[str, Any], value: Evaluation, remarks: Sequence[str] = ()
) -> ProblemRecord:
    """Make the record of a problem from its arguments as typed, the loss over the data, and remarks."""
    place, sizes = problem.device, [len(batch) for batch in problem.batches]
    device = recorded_device(place, typed.get("device"))
    return ProblemRecord.known(
        **parameter_sizes(problem),
        examples=problem.examples,
        precondition=None,
        **typed | {"samples": sum(sizes), "batch_size": max(sizes), "device": device},
        device_name=name_of_device(place),
        threads=torch.get_num_threads(),
        ranks=problem.processes.count,
        loss_value=value.loss,
        accuracy=value.accuracy,
        notes=[*remarks, *model_notes(problem)],
        versions=versions(),
    )


def parameter_sizes(problem: Problem) -> dict[str, Any]:
    """Return the numbers and shapes of the parameters (or inputs) to differentiate by, and the size of the model."""
    if isinstance(problem, InputProblem):
        (inputs,) = problem.leaves
        every = sum(p.numel() for p in problem.model.parameters() if p is not inputs)
        shape = {INPUTS: list(inputs.shape[1:])}
        return {"parameters": every, "parameters_in_all": every, "shapes": shape, "input_size": problem.input_size}
    return {
        "parameters": problem.size,
        "shapes": {name: list(parameter.shape) for name, parameter in problem.parameters.items()},
        "parameters_in_all": sum(p.numel() for p in problem.model.parameters()),
    }


def names_of(model: str | nn.Module, objective: Loss, data: Any, loss: Any = None) -> dict[str, Any]:
    """Return the names of model, data and loss for a record: as typed, or the types of objects given in Python."""
    if isinstance(model, str):
        found: dict[str, Any] = {"model": model}
    else:
        name = type(unwrapped(model)).__name__
        found = {"model": name, "checkpoint": f"{name} {GIVEN}"}
    found["data"] = data if isinstance(data, str) else f"{data_name(data)} {GIVEN}"
    return found | {"loss": loss if isinstance(loss, str) else loss_name(objective)}


def versions() -> dict[str, str]:
    """Return the versions of spectra, torch, NumPy and Python."""
    from spectra import __version__

    return {
        "spectra": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
