"""The options and the state that an optimizer holds for one parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.quoting import foreign
from spectra.vectors import full_tensor


def refusal(text: str) -> SpectraError:
    """The error for an optimizer with a preconditioner that cannot be computed."""
    return SpectraError(f"`optimizer`: {text}")


class NotStepped(SpectraError):
    """The error for a parameter for which the optimizer has no state yet."""


def as_number(value: Any, what: str) -> float:
    """A number that is saved as one, or as a tensor of one entry. Raises SpectraError for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = full_tensor(value.detach()).item()
    if not isinstance(value, Real) or not math.isfinite(number := float(value)):
        came = value if isinstance(value, Real) else type(value).__name__
        raise refusal(f"{foreign(what)} is saved as {came}, not a finite number; save it as a Python float")
    return number


@dataclass(frozen=True)
class ParameterState:
    """The options and the state that an optimizer holds for the parameter `name`."""

    name: str
    shape: torch.Size
    options: Mapping[str, Any]
    state: Mapping[str, Any]
    values: Tensor | None = None  # current values of the parameter, by which some optimizers scale their steps

    def number(self, option: str) -> float:
        """An option that is a number. Raises SpectraError if it is missing or not a number."""
        if option not in self.options:
            raise refusal(f"its param_groups have no {option}; save the whole optimizer.state_dict()")
        return as_number(self.options[option], option)

    def betas(self) -> tuple[float, float]:
        """The pair of decays of Adam and related optimizers. Raises SpectraError if they are not in [0, 1)."""
        given = self.options.get("betas")
        if not (isinstance(given, list | tuple) and len(given) == 2):
            raise refusal("its betas are not a pair of numbers; save the whole optimizer.state_dict()")
        first, second = (as_number(beta, "betas") for beta in given)
        if not (0 <= first < 1 and 0 <= second < 1):
            raise refusal(f"its betas are {first:g} and {second:g}, not in [0, 1); save it again")
        return first, second

    def on(self, option: str) -> bool:
        """Whether an option is on; an option that an older torch did not have is off."""
        return bool(self.options.get(option, False))

    def scalar(self, key: str) -> float:
        """A number of the state, which older and `capturable` optimizers hold as a number or as a tensor."""
        return as_number(self._held(key), key)

    @property
    def step(self) -> float:
        """The number of steps that the parameter has taken. Raises SpectraError if it has taken none."""
        if (count := self.scalar("step")) < 1:
            raise NotStepped(f"`optimizer`: {foreign(self.name)} has not taken a step yet; give a later checkpoint")
        return count

    def root_mean_square(self) -> float:
        """The root mean square of the parameter's current values. Raises SpectraError if they are not loaded."""
        if self.values is None or self.values.is_meta:
            raise refusal(f"its steps scale with the values of {foreign(self.name)}, which are not loaded; load them")
        return full_tensor(self.values.detach()).double().square().mean().sqrt().item()

    def tensor(self, key: str, shape: torch.Size | None = None) -> Tensor:
        """A tensor of the state, of the parameter's shape or another, in float64 on the CPU. Raises SpectraError."""
        value = self._held(key)
        if not isinstance(value, Tensor) or value.is_meta or value.layout is not torch.strided:
            raise refusal(f"{key} of {foreign(self.name)} is not a dense tensor with values; save it as one")
        value = full_tensor(value.detach())
        if value.shape != (self.shape if shape is None else shape):
            shapes = f"{tuple(value.shape)}, but the parameter has shape {tuple(self.shape)}"
            raise refusal(f"{key} of {foreign(self.name)} has shape {shapes}; check `model`")
        return value.cpu().double()

    def _held(self, key: str) -> Any:
        if self.state.get(key) is None:
            raise NotStepped(
                f"`optimizer`: {foreign(self.name)} has no state ({key} is missing): it has not taken a step, or was "
                "added later; give a later checkpoint, or leave the parameter out with `params`"
            )
        return self.state[key]
