"""Build the problem of the same model, parameters and loss on other data."""

from __future__ import annotations

from dataclasses import replace

from spectra.curvature.evaluation import evaluate
from spectra.errors import SpectraError
from spectra.inputs.data import load_data
from spectra.inputs.devices import batch_to_device
from spectra.inputs.items import item_requirements
from spectra.inputs.transform import choose_transform
from spectra.memory import explain_out_of_memory
from spectra.problem.problem import Problem

OPTION = "`held_out`"


def on_other_data(problem: Problem, data: str, transform: str | None, model: str) -> tuple[Problem, dict]:
    """The problem on all examples of `data`, in batches of the same size, and the fields that describe it.

    Args:
        problem: the problem on the first data.
        data: the name of the other data, as for `data`.
        transform: the name of the transform; None: the one that belongs to the model.
        model: the name of the model.

    Raises:
        SpectraError: the data cannot be loaded, or the model fails on them.
    """
    try:
        with explain_out_of_memory(f"{OPTION} {data}", "name fewer examples"):
            wanted, width = item_requirements(problem.loss, problem.model, model), max(map(len, problem.batches))
            chosen = choose_transform(transform, model)
            examples = load_data(data, None, problem.seed, chosen, wanted, width)
            batches = [batch_to_device(batch, problem.device, problem.dtype) for batch in examples.cut(width)]
        other = replace(problem, batches=batches)
        value = evaluate(other)
    except SpectraError as error:
        fields = str(error)
        raise SpectraError(
            fields.replace("`data`", OPTION) if "`data`" in fields else f"{OPTION} {data}: {fields}"
        ) from error
    fields = {"data": data, "examples": other.examples, "loss_value": value.loss, "accuracy": value.accuracy}
    return other, fields
