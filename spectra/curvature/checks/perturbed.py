"""A problem on a few of its examples with parameters that can be moved: on a copy in float64, or on the model itself.

with copied(problem, batch) as local, local.moved(1e-6):
    ...  # the parameters of local.problem are theta + 1e-6 v
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spectra.curvature.displacement import displaced
from spectra.devices import device_of_vectors, in_float64
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import CustomLoss, Loss
from spectra.problem.problem import Problem
from spectra.random_numbers import normal_like

ASIDE = 1e-3  # of a parameter's size


class LocalProblem:
    """A problem of one batch, and a random direction v in which its parameters can be moved and put back."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.batch = problem.batches[0]
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.direction = random_direction(problem.leaves, self.generator)
        hold_padding(problem, self.direction)
        self.product: Tensor | None = None  # H v, once it is made
        self.gradients = 0  # the cost so far, in gradients

    def step_aside(self) -> None:
        """Move the parameters of a copy by a thousandth of their size, and leave them there."""
        for leaf, along in zip(self.problem.leaves, random_direction(self.problem.leaves, self.generator), strict=True):
            leaf.data = leaf.data.add(along, alpha=ASIDE)

    @contextmanager
    def moved(self, step: float) -> Iterator[None]:
        """Move the parameters to theta + step v inside this context.

        The parameters stay the same objects, and get their own memory back.
        """
        self.gradients += 1
        with displaced(self.problem.leaves, self.direction, step):
            yield


def random_direction(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction: normal entries, scaled to the size of each tensor; tensors of zeros get the usual size."""
    sizes = torch.stack([in_float64(tensor.detach()).square().mean().sqrt() for tensor in tensors]).cpu()
    usual = sizes[sizes > 0].mean().item() if (sizes > 0).any() else 1.0
    return [
        normal_like(tensor, generator) * (size or usual) for tensor, size in zip(tensors, sizes.tolist(), strict=True)
    ]


def hold_padding(problem: Problem, direction: Sequence[Tensor]) -> None:
    """Set a direction to zero in the padding rows of embeddings, which PyTorch keeps fixed in derivatives."""
    places = {id(leaf): along for leaf, along in zip(problem.leaves, direction, strict=True)}
    for module in problem.model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            along = places.get(id(module.weight))
            if along is not None:
                along[module.padding_idx] = 0


@contextmanager
def in_place(problem: Problem, batch: Batch) -> Iterator[LocalProblem]:
    """A context with the problem on one batch, with the user's own model and loss in their own precision."""
    yield LocalProblem(replace(problem, batches=[batch]))


@contextmanager
def copied(problem: Problem, batch: Batch) -> Iterator[LocalProblem]:
    """A context with the problem on one batch, with copies in float64 of the model and the loss.

    Raises any error of a model that can't be copied.
    """
    memo = {id(tensor): doubled(tensor) for tensor in held_tensors(problem.model)}
    model = deepcopy(problem.model, memo)
    model._apply(doubled)  # a ScriptModule is not reached by deepcopy's memo
    named = dict(model.named_parameters(remove_duplicate=False))
    yield LocalProblem(
        replace(
            problem,
            model=model,
            loss=loss_in_float64(problem.loss, memo),
            batches=[Batch(*pytree.tree_map(doubled, (batch.inputs, batch.targets, batch.indices)))],
            parameters={name: named[name] for name in problem.parameters},
        )
    )


def doubled(value: Any) -> Any:
    """The copy of a tensor in double precision, real or complex.

    Integers keep their dtype, and anything else is returned as it is.
    """
    if not isinstance(value, Tensor):
        return value
    dtype = torch.float64 if value.is_floating_point() else torch.complex128 if value.is_complex() else value.dtype
    made = value.detach().to(device_of_vectors(value.device)).to(dtype, copy=True)
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters, buffers, and the tensors that modules hold in plain attributes, lists, tuples and
    dictionaries.
    """
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def loss_in_float64(loss: Loss, memo: dict[int, Any]) -> Loss:
    """The copy of a loss in double precision."""
    if not isinstance(loss, CustomLoss | BatchLoss):
        return loss
    function = deepcopy(loss.function, memo)
    owner = function.func if isinstance(function, partial) else function
    owner = getattr(owner, "__self__", owner)
    if isinstance(owner, nn.Module):
        owner._apply(doubled)
    return replace(loss, function=function)
