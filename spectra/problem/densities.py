"""Losses that define a density: functions of the output that return a `torch.distributions.Distribution`.

The loss of an example with targets y is the mean of -log p(y|f) over the remaining dimensions of `log_prob`. For the
Fisher matrices, the m terms of an example are one joint density with independent parts, times 1/m. The Fisher
information in the parameters of a distribution is known (`information`), and autograd gives their derivative with
respect to the output. Labels are drawn from uniform numbers that belong to the example
(`spectra.problem.inverse_transform`).

An object that is called with (output, target) defines its density by a method `draw(output, uniform)`, which returns
targets computed from uniform numbers `uniform(j)` in (0, 1), of shape (b,) and new for each j.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution as Density
from torch.utils import _pytree as pytree

from spectra.errors import SpectraError, describe
from spectra.memory import out_of_memory
from spectra.problem.information import information
from spectra.problem.inverse_transform import inverse_transform
from spectra.problem.losses import CustomLoss

Uniform = Callable[[int], Tensor]


def returns_distribution(function: Any) -> bool:
    """Whether a function takes the output alone, and so returns a distribution of the targets."""
    try:
        parameters = list(inspect.signature(getattr(function, "forward", function)).parameters.values())
    except (TypeError, ValueError):  # some built-ins have no signature
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return not several and len(places) == 1 and places[0].default is places[0].empty


def set_validation(density: Any, switch: bool) -> None:
    """Switch the validation of arguments by a distribution on or off; torch.compile switches it off."""
    while density is not None:
        density._validate_args = switch
        density = getattr(density, "base_dist", None)


def is_traced() -> bool:
    """Whether operations are being traced, so that values of tensors cannot be read."""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # loaded by any tracing
    return tracer is not None and tracer.get_proxy_mode() is not None


@dataclass(frozen=True)
class DensityLoss(CustomLoss):
    """A user's loss given as a function of the output that returns a distribution of the targets."""

    def called(self, output: Any, targets: Any) -> Tensor:
        """The values -log p(y|f) of the batch's targets. Raises SpectraError if the targets do not fit."""
        density = self.density(output)
        set_validation(density, not is_traced())
        try:
            return -density.log_prob(targets)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise SpectraError(
                f"`loss` {self.name}: the targets do not fit its {type(density).__name__} ({describe(error)}); fix "
                "the loss or the targets"
            ) from error

    def density(self, output: Any) -> Density:
        """The distribution of the targets. Raises SpectraError if the function returns anything else."""
        found = self.result(output)
        if not isinstance(found, Density):
            raise SpectraError(
                f"`loss` {self.name}: takes the output alone, and returned a {type(found).__name__}; return "
                "a torch.distributions.Distribution of the targets, or take (output, target)"
            )
        return found

    def distribution(self, restored: Callable[[Tensor], Any]) -> DensityRows:
        """The distribution as a function of rows, for the Fisher matrices; `restored` turns rows into the output."""
        return DensityRows(self, restored)


@dataclass(frozen=True)
class SampledLoss(CustomLoss):
    """A user's loss of (output, target) that defines its density by a method `draw(output, uniform)`."""

    def distribution(self, restored: Callable[[Tensor], Any]) -> SampledRows:
        """The distribution as a function of rows, for fisher-mc; `restored` turns rows into the output."""
        return SampledRows(self, restored)

    def drawn(self, output: Any, uniform: Uniform) -> Any:
        """Draw targets with the loss's own method. Raises SpectraError if it fails."""
        owner: Any = self.function.func if isinstance(self.function, partial) else self.function
        try:
            return owner.draw(output, uniform)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise SpectraError(f"`loss` {self.name}: its method draw fails ({describe(error)}); fix it") from error


@dataclass(frozen=True)
class SampledRows:
    """A density given rows (b, ...) that can only be drawn from: a `Distribution` without `expected`."""

    loss: SampledLoss | DensityLoss
    restored: Callable[[Tensor], Any]

    def scales(self, rows: Tensor, targets: Any) -> Tensor:
        """The scale 1/m of a loss that is the mean of m terms, (b, 1)."""
        with torch.no_grad():
            values = self.loss.called(self.restored(rows.detach()), targets)
        return rows.new_full((len(rows), 1), len(rows) / max(values.numel(), len(rows)))

    def draw(self, rows: Tensor, uniform: Uniform) -> Tensor:
        """Draw targets, and return r, the derivative of their -log p with respect to the rows."""
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            output = self.restored(leaf)
            with torch.no_grad():
                targets = self.targets(pytree.tree_map(detached, output), uniform, rows.dtype)
            value = self.loss.called(output, targets)
            if value.ndim == 0:  # the mean over the batch
                value = value * len(rows)
            return torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)[0]

    def targets(self, output: Any, uniform: Uniform, dtype: torch.dtype) -> Any:
        """Draw targets for an output."""
        assert isinstance(self.loss, SampledLoss)
        return self.loss.drawn(output, uniform)


@dataclass(frozen=True)
class DensityRows(SampledRows):
    """The density given rows (b, ...) of a loss that returns a distribution: a `Distribution`."""

    def targets(self, output: Any, uniform: Uniform, dtype: torch.dtype) -> Any:
        """Draw targets for an output. Raises SpectraError if the family has no icdf."""
        assert isinstance(self.loss, DensityLoss)
        return inverse_transform(self.loss.density(output), uniform, dtype)

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u = J'F J u: J is the derivative of the parameters in the rows, F their information.

        Raises SpectraError if F is not known for the family.
        """
        assert isinstance(self.loss, DensityLoss)
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            found = information(self.loss.density(self.restored(leaf)))
            back = [torch.zeros_like(p, requires_grad=True) for p in found.parameters]
            slope = derivative(found.parameters, leaf, back, create_graph=True)
            along = [derivative((slope,), dummy, (vectors,)) for dummy in back]
            return derivative(found.parameters, leaf, found.times(along)).detach()


def derivative(
    outputs: Sequence[Tensor], leaf: Tensor, weights: Sequence[Tensor], create_graph: bool = False
) -> Tensor:
    """The derivative of a weighted sum of outputs with respect to a leaf; outputs that do not depend on it add zero."""
    pairs = [(x, w) for x, w in zip(outputs, weights, strict=True) if x.requires_grad]
    if not pairs:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(
        [x for x, _ in pairs],
        leaf,
        [w for _, w in pairs],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )[0]


def detached(leaf: Any) -> Any:
    """A tensor cut off from the graph; anything else is returned as it is."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
