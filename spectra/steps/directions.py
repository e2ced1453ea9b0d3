"""Directions in which training goes on from a checkpoint: the gradient's, the optimizer's own step, and others.

    gradient      -g, so that t in theta + t d is a learning rate of gradient descent
    update        the next step of the optimizer with the gradient of all data: t = 1 is that step
    momentum      -m, the average or sum of gradients that the optimizer keeps: t is a learning rate
    checkpoint    theta_other - theta: t = 1 is the other checkpoint

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
from spectra.errors import SpectraError
from spectra.optimizer.preconditioner import refuse_second_decay
from spectra.optimizer.update import momentum, next_update
from spectra.problem.problem import Problem
from spectra.quoting import foreign, quoted
from spectra.surfaces.elsewhere import elsewhere
from spectra.vectors import norm
from spectra.wording import counted, outline

GRADIENT, UPDATE, MOMENTUM, CHECKPOINT = "gradient", "update", "momentum", "checkpoint"
RATE, STEP, WAY = "learning rate", "step of the optimizer", "way to the other checkpoint"  # units of t
UNITS = {GRADIENT: RATE, UPDATE: STEP, MOMENTUM: RATE, CHECKPOINT: WAY}


@dataclass(frozen=True)
class Direction:
    """d, which is not zero, in the order of `problem.parameters`; its length is what makes t a learning rate or so."""

    name: str  # as its kind, or `checkpoint last.pt` where there are several of them
    kind: str  # of UNITS
    vector: Tensor  # (n,), whole on every process, of the problem's dtype on the device of its vectors
    norm: float
    note: str = ""  # what a reader has to know of it

    __repr__ = outline

    @property
    def unit(self) -> str:
        """What t = 1 in theta + t d is."""
        return UNITS[self.kind]


def gradient_direction(gradient: Tensor) -> Direction:
    """-g for the gradient (n,) of the mean loss, weight decay included. Raises SpectraError where it is zero."""
    return direction(
        GRADIENT, -gradient, "gradient: it is zero, so no step follows from it; look at `loss` and `params`"
    )


def update_direction(
    problem: Problem, gradient: Tensor, optimizer: Any, name: str | None = None, model: nn.Module | None = None
) -> Direction:
    """The next step of an optimizer with this gradient, as `spectra.optimizer.update.next_update` makes it.

    The optimizer's `model` is that of the problem, or one of the same names, of which the problem's is a copy. Raises
    SpectraError as that does, where the step is zero, and where weight decay is both in the loss and the optimizer's.
    """
    model = model or problem.model
    refuse_second_decay(problem.weight_decay, optimizer, model, problem.parameters, name)
    zero = {own for own, part in zip(problem.parameters, problem.tensors(gradient), strict=True) if not part.any()}
    unused = zero.intersection(unused_parameters(problem)) if zero else ()
    made = next_update(optimizer, model, problem.parameters, gradient, name=name, unused=unused)
    return direction(
        UPDATE, like(problem, made), "update: the optimizer's next step is zero; look at its learning rate"
    )


def momentum_direction(
    problem: Problem, optimizer: Any, name: str | None = None, model: nn.Module | None = None
) -> Direction:
    """-m for the momentum m that an optimizer keeps, see `spectra.optimizer.update.momentum`.

    Arguments are those of `update_direction`. Raises SpectraError as that does, and where it is zero.
    """
    unused = unused_parameters(problem)
    kept = momentum(optimizer, model or problem.model, problem.parameters, name=name, unused=unused)
    return direction(MOMENTUM, like(problem, kept), "momentum: it is zero; leave it out")


def checkpoint_direction(
    problem: Problem, other: str | Path | nn.Module | Mapping[str, Tensor], key: str | None = None, name: str = ""
) -> Direction:
    """theta_other - theta over the chosen parameters, for a file, a module or a mapping of the same model's parameters.

    Buffers, and parameters that are not chosen, are not part of it; of a file a note tells where they differ. Raises
    SpectraError where a parameter is missing or of another shape, and where both are the same.
    """
    if isinstance(other, str | Path):
        shown, there = quoted(other), elsewhere(problem, str(other), key, "`to` ")
        way, stays = there.step(problem), [*there.staying(problem), *there.buffers(problem)]
    else:
        shown, stays = type(other).__name__, []
        way = _way(problem, dict(other.named_parameters()) if isinstance(other, nn.Module) else dict(other), shown)
    if not way.isfinite().all():
        raise SpectraError(f"`to` {shown}: it holds values that are not finite; take another checkpoint")
    same = f"`to` {shown}: its parameters are those of this checkpoint; name another"
    found = direction(CHECKPOINT, like(problem, way), same, name)
    if not stays:
        return found
    some = f"{counted(len(stays), 'tensor')} ({', '.join(map(foreign, stays[:3]))}{', ...' if len(stays) > 3 else ''})"
    note = f"{found.name}: {some} of {shown} differ and stay as they are here, so t = 1 is not that checkpoint itself"
    return replace(found, note=note)


def _way(problem: Problem, held: Mapping[str, Tensor], shown: str) -> Tensor:
    """The way (n,) to these parameters, in float64 on the CPU. Raises SpectraError where one is missing."""
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
        problem: the problem at the parameters where all is looked at.
        names: gradient, update, momentum, checkpoint.
        gradient: (n,), of the mean loss with the problem's weight decay.
        optimizer: for update and momentum: a torch.optim optimizer, or what its `state_dict()` returned.
        optimizer_name: the name of torch's class, where a state dict does not tell.
        to: for checkpoint: the file, module or mapping of the other parameters.
        to_key: where they are in the file.

    Raises:
        SpectraError: a direction is zero, or cannot be told.
    """
    for name in names:
        if name in (UPDATE, MOMENTUM) and optimizer is None:
            raise SpectraError(f"`optimizer`: {name} needs its state; name a file that holds it")
        if name == CHECKPOINT and to is None:
            raise SpectraError("`to`: is missing; name the file of another checkpoint")
    make = {
        GRADIENT: lambda: gradient_direction(gradient),
        UPDATE: lambda: update_direction(problem, gradient, optimizer, optimizer_name),
        MOMENTUM: lambda: momentum_direction(problem, optimizer, optimizer_name),
        CHECKPOINT: lambda: checkpoint_direction(problem, to, to_key),
    }
    return [make[name]() for name in names]


def direction(kind: str, vector: Tensor, zero: str, name: str = "") -> Direction:
    """The direction of a vector (n,). Raises SpectraError, with the text `zero`, where it is zero or not finite."""
    length = norm(vector)
    if length == 0:
        raise SpectraError(zero)
    if not length < math.inf:
        raise SpectraError(f"{name or kind}: the direction is not finite; take another checkpoint")
    return Direction(name or kind, kind, vector, length)


def like(problem: Problem, vector: Tensor) -> Tensor:
    """The vector in the problem's dtype, on the device of its vectors."""
    return vector.to(device_of_vectors(problem.device), problem.dtype)
