"""Problems that differentiate with respect to the inputs in place of the parameters.

A module holds the inputs x (N, ...) of all examples as its parameter, and batches hold the indices of their examples in
place of inputs. The second derivative of the sum of l_i with respect to x is block-diagonal: block i is d2 l_i / dx_i2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from spectra.errors import SpectraError
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import Loss
from spectra.problem.model_inputs import Structured
from spectra.problem.outputs import tuple_like
from spectra.problem.problem import Problem
from spectra.quoting import foreign

INPUTS = "inputs"
PARAMETERS = "parameters"


@dataclass(frozen=True)
class InputProblem(Problem):
    """The sum of the losses l_i of the examples as a function of their inputs x (N, ...), its only parameter.

    The l_i are scaled so that their mean is the mean loss over the data, or their sum the loss if `reduction` is sum.
    """

    @cached_property
    def weight(self) -> float:
        """The number by which the sum of the batches' losses is divided to give the sum of all l_i."""
        summed = getattr(self.loss, "reduction", "mean") == "sum"
        return self.mean_weight if summed else self.mean_weight / sum(map(len, self.batches))

    @property
    def count(self) -> int:
        """The number N of inputs."""
        return len(self.leaves[0])

    @property
    def input_size(self) -> int:
        """The number d of entries of one input."""
        return self.leaves[0][0].numel()


class ModelOfInputs(nn.Module):
    """A model that holds its inputs x (N, ...) as a parameter, and is called with indices of examples in place of x."""

    def __init__(self, model: nn.Module, inputs: Tensor, place: Any):
        super().__init__()
        self.model = model
        self.inputs = nn.Parameter(inputs)
        self.place = place  # the key or index of x among the arguments; None if it is the only one
        self.train(model.training)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """The model's output for the inputs of these examples."""
        if keywords:
            return self.model(**self.restored(keywords))
        return self.model(*(self.restored(arguments) if self.place is not None else [self.restored(arguments[0])]))

    def restored(self, inputs: Any) -> Any:
        """The inputs of a batch, with the entries of x in place of the indices of its examples."""
        return with_entry(inputs, self.place, self.inputs.index_select(0, entry(inputs, self.place)))


def with_respect_to_inputs(problem: Problem, name: str | None = None) -> InputProblem:
    """Convert a problem to one that differentiates with respect to its inputs; `name` selects one of several inputs.

    Raises SpectraError as `separate_inputs` does, and for weight decay, which acts on parameters.
    """
    refuse_wrt(INPUTS, (), problem.weight_decay)
    model, loss, batches = separate_inputs(problem.model, problem.loss, problem.batches, name)
    return InputProblem(
        model,
        loss,
        batches,
        {INPUTS: model.inputs},
        seed=problem.seed,
        mc_samples=problem.mc_samples,
        output_key=problem.output_key,
        processes=problem.processes,
        recompute_activations=problem.recompute_activations,
    )


def refuse_wrt(wrt: str, params: Sequence[str], weight_decay: float) -> None:
    """Raise SpectraError if `wrt` is not valid, or is inputs together with an option that concerns parameters."""
    name, colon, which = wrt.partition(":") if isinstance(wrt, str) else ("", "", "")
    if wrt != PARAMETERS and (name != INPUTS or (colon and not which)):
        raise SpectraError(
            f"`wrt` {foreign(str(wrt))}: is not valid; give parameters, inputs, or inputs:NAME to select one of several"
        )
    if wrt == PARAMETERS:
        return
    if params:
        raise SpectraError(
            f"`params` {foreign(' '.join(params))}: chooses parameters, but `wrt` {foreign(wrt)} differentiates with "
            "respect to inputs; omit one of them"
        )
    if weight_decay:
        raise SpectraError(
            f"`weight_decay` {weight_decay:g}: acts on parameters, but `wrt` {foreign(wrt)} differentiates with "
            "respect to inputs; omit one of them"
        )


def separate_inputs(
    model: nn.Module, loss: Loss, batches: Sequence[Batch], name: str | None = None
) -> tuple[ModelOfInputs, Loss, list[Batch]]:
    """The model that holds its inputs as a parameter, its loss, and batches of the indices of examples.

    Args:
        model, loss, batches: those of a problem.
        name: the key of the input, or its index in a tuple, if several inputs are floating-point.

    Raises:
        SpectraError: no input is floating-point, several are and `name` is None, or examples differ in shape.
    """
    place = place_of(batches[0].inputs, name)
    parts = [entry(batch.inputs, place) for batch in batches]
    if len(shapes := {tuple(part.shape[1:]) for part in parts}) > 1:
        came = " and ".join(map(str, sorted(shapes)))
        raise SpectraError(f"`wrt` inputs: examples differ in shape ({came}); give all of them one shape")
    if not all(len(part) == len(batch) for part, batch in zip(parts, batches, strict=True)):
        raise SpectraError(
            "`wrt` inputs: the first dimension of the input is not the number of examples; give inputs of shape "
            "(examples, ...)"
        )
    numbers = torch.arange(sum(map(len, batches)), device=parts[0].device).split([len(batch) for batch in batches])
    numbered = [
        Batch(with_entry(batch.inputs, place, some), batch.targets, batch.indices)
        for batch, some in zip(batches, numbers, strict=True)
    ]
    if isinstance(loss, BatchLoss):
        loss = replace(loss, function=partial(called_inside, loss.function))
    return ModelOfInputs(model, torch.cat(parts).detach(), place), loss, numbered


def called_inside(function: Any, model: ModelOfInputs, batch: Any) -> Any:
    """Call a loss of (model, batch) with the wrapped model and the batch with its inputs."""
    return function(model.model, model.restored(batch))


def place_of(inputs: Any, name: str | None) -> Any:
    """The key or index of the input to differentiate with respect to; None if it is the only one.

    Raises SpectraError if there is no such input, or the choice is ambiguous.
    """
    if isinstance(inputs, Structured):
        raise SpectraError("`wrt` inputs: graphs have no input with one shape per example; give positions as a tensor")
    entries = named_entries(inputs)
    real = [key for key, value in entries.items() if isinstance(value, Tensor) and value.is_floating_point()]
    if name is not None:
        entries = {key: value for key, value in entries.items() if key is not None and str(key) == name}
        if not entries:
            held = ", ".join(str(key) for key in real if key is not None) or "one input without a name"
            raise SpectraError(f"`wrt` inputs:{foreign(name)}: the data have no such input; available: {foreign(held)}")
        real = [key for key in real if key in entries]
    if len(real) > 1:
        held = ", ".join(map(str, real))
        raise SpectraError(f"`wrt` inputs: the data have several ({foreign(held)}); choose one, e.g. inputs:{real[0]}")
    if not real:
        kinds = ", ".join(sorted({str(value.dtype) for value in entries.values() if isinstance(value, Tensor)}))
        raise SpectraError(
            f"`wrt` inputs: the inputs are {kinds or 'not tensors'}, which have no derivative; give floating-point "
            "inputs, e.g. embeddings in place of token ids"
        )
    return real[0]


def named_entries(inputs: Any) -> dict[Any, Any]:
    """The entries of a batch's inputs by key or index; a single tensor has the key None."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return dict(enumerate(inputs)) if isinstance(inputs, tuple) else {None: inputs}


def entry(inputs: Any, place: Any) -> Tensor:
    """The entry of the inputs at a place."""
    return inputs if place is None else inputs[place]


def with_entry(inputs: Any, place: Any, value: Tensor) -> Any:
    """The inputs with another value at a place."""
    if place is None:
        return value
    if isinstance(inputs, Mapping):
        return {**inputs, place: value}
    return tuple_like(inputs, (value if i == place else held for i, held in enumerate(inputs)))
