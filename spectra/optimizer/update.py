"""The next step of an optimizer of torch, and its momentum, as vectors in the order of the chosen parameters.

The update is that of torch's own class, which is run on float64 copies of the parameters, one at a time, with the saved
state and options and a given gradient. It includes all that the class does, such as decoupled weight decay and bias
correction, but not what a training loop does before, such as gradient clipping.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectra.errors import describe
from spectra.optimizer.adafactor import torch_eps, torch_shape
from spectra.optimizer.parameter_state import ParameterState, as_number, refusal
from spectra.optimizer.preconditioner import is_decoupled, parameter_states_of
from spectra.optimizer.state_dict import SCALARS
from spectra.quoting import foreign

BY_SPEED = {"foreach", "fused", "capturable", "differentiable"}  # options that change the speed, not the result
MOMENTA = ("exp_avg", "momentum_buffer")  # names in a state; steps go against these


def next_update(
    optimizer: Optimizer | Mapping,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    gradient: Tensor,
    *,
    name: str | None = None,
    unused: Collection[str] = (),
) -> Tensor:
    """Compute the change of the parameters by the optimizer's next step, given the gradient.

    Args:
        optimizer: a torch.optim optimizer, or what its `state_dict()` returned. Neither it nor the model is changed.
        model: the model whose parameters were optimized.
        parameters: the chosen parameters, by their names in the model.
        gradient: the gradient (n,) of the loss with respect to these parameters, one after the other.
        name: the name of torch's class, such as `AdamW`, if a state dict does not show it.
        unused: names of parameters that the loss does not depend on: they have no gradient, and are not changed.

    Returns:
        The update (n,), after minus before, in float64 on the CPU. A parameter without steps takes its first.

    Raises:
        SpectraError: the optimizer is not supported, a parameter is not certainly among its parameters, or torch's
            class cannot continue from its state.
    """
    held = parameter_states_of(optimizer, model, parameters, name)
    given = gradient.detach().cpu().double().split([p.numel() for p in parameters.values()])
    return torch.cat(
        [
            torch.zeros_like(g) if own in unused else _stepped(held.by_name[own], held.kind, name, p, g).flatten()
            for (own, p), g in zip(parameters.items(), given, strict=True)
        ]
    )


def momentum(
    optimizer: Optimizer | Mapping,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    *,
    name: str | None = None,
    unused: Collection[str] = (),
) -> Tensor:
    """Compute the direction -m of the optimizer's momentum, where m is its average or sum of gradients.

    It is `exp_avg` in Adam and related optimizers, and `momentum_buffer` in SGD and in RMSprop, where gradients are
    already preconditioned. If gradients change little, -m points along -g, in which the loss falls.

    Args:
        optimizer, model, parameters, name: as for `next_update`.
        unused: names of parameters that the loss does not depend on, and which may have no momentum.

    Returns:
        The direction (n,), in float64 on the CPU.

    Raises:
        SpectraError: as for `next_update`, or the optimizer keeps no momentum, or none yet for a parameter.
    """
    held = parameter_states_of(optimizer, model, parameters, name)
    entries = [held.by_name[own] for own in parameters]
    keys = {key for entry in entries for key in MOMENTA if entry.state.get(key) is not None}
    if not keys:
        raise refusal(
            f"{held.kind} keeps no momentum with these options, or has not taken a step yet; leave momentum out"
        )
    (key,) = keys if len(keys) == 1 else (MOMENTA[0],)
    none = {entry.name for entry in entries if entry.name in unused and not entry.state}
    return -torch.cat([(torch.zeros(e.shape).double() if e.name in none else e.tensor(key)).flatten() for e in entries])


def _stepped(entry: ParameterState, kind: str, name: str | None, p: Tensor, gradient: Tensor) -> Tensor:
    """The change of one parameter by a step of torch's class."""
    own = nn.Parameter(p.detach().cpu().double().clone())
    before = own.detach().clone()
    own.grad = gradient.view_as(own).clone()
    made = _optimizer(entry, kind, name, own)
    try:
        made.step()
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        text = f"torch's {kind} cannot continue from the state of {foreign(entry.name)} ({describe(error)})"
        raise refusal(f"{text}; save the whole optimizer.state_dict()") from error
    return own.detach() - before


def _optimizer(entry: ParameterState, kind: str, name: str | None, own: nn.Parameter) -> Optimizer:
    """An optimizer of torch for one parameter, with its saved options and state."""
    options = dict(entry.options)
    if kind in ("Adam", "AdamW"):  # one class in all but this
        kind, options["decoupled_weight_decay"] = "Adam", is_decoupled(entry, kind, name)
    if kind == "Adafactor":  # its eps may be that of the dtype in training
        options["eps"] = torch_eps(entry)
    cls: Any = getattr(torch.optim, kind, None)
    if cls is None:
        raise refusal(f"{kind} is not one of torch's, so its next update is not known; leave update out")
    known = inspect.signature(cls).parameters.keys() - BY_SPEED
    try:
        made = cls([own], **{key: _plain(value, key) for key, value in options.items() if key in known - {"params"}})
    except ValueError as error:
        raise refusal(f"torch's {kind} rejects its options ({describe(error)}); save it again") from error
    if state := {key: value for key, value in entry.state.items() if value is not None}:
        made.state[own] = {key: _restored(entry, key) for key in state}
    return made


def _plain(value: Any, key: str) -> Any:
    """An option with tensors, which `capturable` optimizers use for numbers, converted to numbers."""
    if isinstance(value, list | tuple):
        return tuple(_plain(part, key) for part in value)
    return value if value is None or isinstance(value, bool | str) else as_number(value, key)


def _restored(entry: ParameterState, key: str) -> Tensor:
    """A copy of a value of the state, in float64."""
    if key in SCALARS:
        return torch.tensor(entry.scalar(key), dtype=torch.float64)
    return entry.tensor(key, torch_shape(key, entry.shape)).clone()
