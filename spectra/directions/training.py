"""Directions of training at a checkpoint: negative gradient, optimizer step, momentum, and other checkpoints.

    gradient      -g, so that t in theta + t d is a learning rate of gradient descent
    update        the next step of the optimizer with the gradient of all data; t = 1 is that step
    momentum      -m, with m the average or sum of gradients that the optimizer keeps; t is a learning rate
    checkpoint    theta_other - theta; t = 1 is the other checkpoint

The loss falls at first along -g, and usually along the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectra.curvature.engine.used_parameters import unused_parameters
from spectra.devices import device_of_vectors, in_float64
from spectra.directions.other_checkpoint import read_other_checkpoint
from spectra.errors import SpectraError
from spectra.optimizer.preconditioner import refuse_second_decay
from spectra.optimizer.update import momentum, next_update
from spectra.problem.problem import Problem
from spectra.quoting import foreign, quoted
from spectra.vectors import norm
from spectra.wording import counted, outline

GRADIENT, UPDATE, MOMENTUM, CHECKPOINT = "gradient", "update", "momentum", "checkpoint"
RATE, STEP, WAY = "learning rate", "step of the optimizer", "way to the other checkpoint"  # units of t
UNITS = {GRADIENT: RATE, UPDATE: STEP, MOMENTUM: RATE, CHECKPOINT: WAY}


@dataclass(frozen=True)
class Direction:
    """A direction d, not zero, in the order of `problem.parameters`; its length determines the unit of t."""

    name: str  # its kind, or `checkpoint last.pt` if there are several of them
    kind: str  # a key of UNITS
    vector: Tensor  # (n,), whole on every process, of the problem's dtype on the device of its vectors
    norm: float
    note: str = ""  # for the reader of the result

    __repr__ = outline

    @property
    def unit(self) -> str:
        """The meaning of t in theta + t d."""
        return UNITS[self.kind]


def gradient_direction(gradient: Tensor) -> Direction:
    """The direction -g for the gradient g (n,) of the mean loss with weight decay. Raises SpectraError if it is 0."""
    return direction(GRADIENT, -gradient, "gradient: it is zero, so it gives no direction; check `loss` and `params`")


def update_direction(
    problem: Problem, gradient: Tensor, optimizer: Any, name: str | None = None, model: nn.Module | None = None
) -> Direction:
    """The next step of an optimizer with this gradient, see `spectra.optimizer.update.next_update`.

    Args:
        problem: the problem, at the current parameters.
        gradient: the gradient (n,) of the mean loss.
        optimizer: a torch.optim optimizer, or its state dict.
        name: the class of the optimizer, if the state does not name it.
        model: the model of the optimizer, if the problem has a copy of it with the same parameter names.

    Raises:
        SpectraError: the state does not fit, the step is zero, or weight decay is both in the loss and the optimizer.
    """
    model = model or problem.model
    refuse_second_decay(problem.weight_decay, optimizer, model, problem.parameters, name)
    zero = {own for own, part in zip(problem.parameters, problem.tensors(gradient), strict=True) if not part.any()}
    unused = zero.intersection(unused_parameters(problem)) if zero else ()
    made = next_update(optimizer, model, problem.parameters, gradient, name=name, unused=unused)
    return direction(UPDATE, like(problem, made), "update: the optimizer's next step is zero; check its learning rate")


def momentum_direction(
    problem: Problem, optimizer: Any, name: str | None = None, model: nn.Module | None = None
) -> Direction:
    """The direction -m for the momentum m of an optimizer, see `spectra.optimizer.update.momentum`.

    It takes the arguments of `update_direction`. Raises SpectraError if the state does not fit or the momentum is zero.
    """
    unused = unused_parameters(problem)
    kept = momentum(optimizer, model or problem.model, problem.parameters, name=name, unused=unused)
    return direction(MOMENTUM, like(problem, kept), "momentum: it is zero; leave it out")


def checkpoint_direction(
    problem: Problem, other: str | Path | nn.Module | Mapping[str, Tensor], key: str | None = None, name: str = ""
) -> Direction:
    """The direction theta_other - theta over the chosen parameters.

    Buffers and parameters that are not chosen are not part of it; for a file, a note says which of them differ.

    Args:
        problem: the problem, at the current parameters.
        other: a checkpoint file, a module, or a mapping from names to parameters of the same model.
        key: the entry of the file that holds the weights.
        name: the name of the direction; empty: its kind.

    Raises:
        SpectraError: a parameter is missing or has another shape, or both checkpoints have the same parameters.
    """
    if isinstance(other, str | Path):
        shown, there = quoted(other), read_other_checkpoint(problem, str(other), key, "`to` ")
        way, stays = there.step(problem), [*there.staying(problem), *there.buffers(problem)]
    else:
        shown, stays = type(other).__name__, []
        way = _way(problem, dict(other.named_parameters()) if isinstance(other, nn.Module) else dict(other), shown)
    if not way.isfinite().all():
        raise SpectraError(f"`to` {shown}: contains values that are not finite; name another checkpoint")
    same = f"`to` {shown}: has the same parameters as this checkpoint; name another one"
    found = direction(CHECKPOINT, like(problem, way), same, name)
    if not stays:
        return found
    some = f"{counted(len(stays), 'tensor')} ({', '.join(map(foreign, stays[:3]))}{', ...' if len(stays) > 3 else ''})"
    kept = "differ and keep their values from this checkpoint, so t = 1 is not exactly that checkpoint"
    note = f"{found.name}: {some} of {shown} {kept}"
    return replace(found, note=note)


def _way(problem: Problem, held: Mapping[str, Tensor], shown: str) -> Tensor:
    """The difference (n,) to these parameters, in float64 on the CPU. Raises SpectraError if one is missing."""
    parts = []
    for own, p in problem.parameters.items():
        if not isinstance(there := held.get(own), Tensor) or there.shape != p.shape:
            raise SpectraError(f"`to` {shown}: {foreign(own)} of shape {tuple(p.shape)} is missing; check the path")
        parts.append(there.detach().cpu().double().flatten() - in_float64(p.detach()).cpu().flatten())
    return torch.cat(parts)


def directions(
    problem: Problem,
    names: Sequence[str],
    gradient: Tensor,
    *,
    optimizer: Any = None,
    optimizer_name: str | None = None,
    to: Any = None,
    to_key: str | None = None,
) -> list[Direction]:
    """The directions of these names, in their order.

    Args:
        problem: the problem, at the current parameters.
        names: gradient, update, momentum or checkpoint.
        gradient: the gradient (n,) of the mean loss with the problem's weight decay.
        optimizer: for update and momentum, a torch.optim optimizer or its state dict.
        optimizer_name: the class of the optimizer, if the state dict does not name it.
        to: for checkpoint, the file, module or mapping with the other parameters.
        to_key: the entry of the file that holds them.

    Raises:
        SpectraError: a direction is zero, or cannot be determined.
    """
    for name in names:
        if name in (UPDATE, MOMENTUM) and optimizer is None:
            raise SpectraError(f"`optimizer`: the direction {name} needs the optimizer's state; give the argument")
        if name == CHECKPOINT and to is None:
            raise SpectraError("`to`: the direction checkpoint needs another checkpoint; give the argument")
    make = {
        GRADIENT: lambda: gradient_direction(gradient),
        UPDATE: lambda: update_direction(problem, gradient, optimizer, optimizer_name),
        MOMENTUM: lambda: momentum_direction(problem, optimizer, optimizer_name),
        CHECKPOINT: lambda: checkpoint_direction(problem, to, to_key),
    }
    return [make[name]() for name in names]


def direction(kind: str, vector: Tensor, zero: str, name: str = "") -> Direction:
    """The direction of a vector (n,). Raises SpectraError if it is not finite, and with the text `zero` if it is 0."""
    length = norm(vector)
    if length == 0:
        raise SpectraError(zero)
    if not length < math.inf:
        raise SpectraError(f"{name or kind}: the direction is not finite; name another checkpoint")
    return Direction(name or kind, kind, vector, length)


def like(problem: Problem, vector: Tensor) -> Tensor:
    """The vector in the problem's dtype, on the device of its vectors."""
    return vector.to(device_of_vectors(problem.device), problem.dtype)
