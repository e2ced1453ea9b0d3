"""The record that describes a problem: what was typed or given, sizes, the loss over the data, and notes."""

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
from spectra.inputs.given import GIVEN, data_name, unwrapped
from spectra.inputs.loss_options import loss_name
from spectra.problem.by_inputs import INPUTS, PARAMETERS, InputProblem
from spectra.problem.losses import Loss
from spectra.problem.problem import Problem
from spectra.records.problem import ProblemRecord


def describe_problem(problem: Problem, memory: int | None = None) -> ProblemRecord:
    """The record of a Problem that was made in Python, with the loss over its data. Raises SpectraError."""
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
    device = recorded_device(place, typed.get("device"))
    return ProblemRecord.known(
        **sizes_of(problem),
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


def sizes_of(problem: Problem) -> dict[str, Any]:
    """The sizes of what a problem is differentiated by, and of its model."""
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
    """The names of model, data and loss in a record: as they were typed, or the types of objects."""
    if isinstance(model, str):
        found: dict[str, Any] = {"model": model}
    else:
        name = type(unwrapped(model)).__name__
        found = {"model": name, "checkpoint": f"{name} {GIVEN}"}
    found["data"] = data if isinstance(data, str) else f"{data_name(data)} {GIVEN}"
    return found | {"loss": loss if isinstance(loss, str) else loss_name(objective)}


def versions() -> dict[str, str]:
    """The versions of spectra, torch, NumPy and Python."""
    from spectra import __version__

    return {
        "spectra": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
