"""Losses that name their density: a function of the output that returns a `torch.distributions.Distribution`.

The loss of an example is the mean of -log p(y|f) over what is left of the shape of `log_prob`, and its targets are y.
For the Fisher matrices the m terms of an example are one joint density with independent parts, times 1/m. The Fisher
information is known in the parameters of a distribution (`information`), and the output comes in by autograd. Labels
are drawn from numbers that belong to the example (`spectra.problem.draws`).

An object that is called with (output, target) and has a method `draw(output, uniform)` names its density by it: `draw`
returns targets, made of uniform numbers `uniform(j)` in (0, 1), (b,), of which each j gives new ones.
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
from spectra.problem.draws import drawn
from spectra.problem.information import information
from spectra.problem.losses import CustomLoss

Uniform = Callable[[int], Tensor]


def names_density(function: Any) -> bool:
    """Whether a function is of the output alone, and so returns its density."""
    try:
        parameters = list(inspect.signature(getattr(function, "forward", function)).parameters.values())
    except (TypeError, ValueError):  # some built-ins have none
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return not several and len(places) == 1 and places[0].default is places[0].empty


def validated(density: Any, switch: bool) -> None:
    """Switch on or off that a distribution looks at the values that it is asked for; torch.compile switches it off."""
    while density is not None:
        density._validate_args = switch
        density = getattr(density, "base_dist", None)


def is_traced() -> bool:
    """Whether operations are being traced, and so no values can be looked at."""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # whoever traces has it
    return tracer is not None and tracer.get_proxy_mode() is not None


@dataclass(frozen=True)
class DensityLoss(CustomLoss):
    """A user's loss that names its density: its function of the output returns a distribution of the targets."""

    def called(self, output: Any, targets: Any) -> Tensor:
        """The values -log p(y|f) of the batch's targets. Raises SpectraError."""
        density = self.density(output)
        validated(density, not is_traced())
        try:
            return -density.log_prob(targets)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise SpectraError(
                f"`loss` {self.name}: the targets do not fit its {type(density).__name__} ({describe(error)}); mend it "
                "there"
            ) from error

    def density(self, output: Any) -> Density:
        """The distribution of the targets. Raises SpectraError where the function returns none."""
        found = self.result(output)
        if not isinstance(found, Density):
            raise SpectraError(
                f"`loss` {self.name}: is a function of the output alone, and returned a {type(found).__name__}; return "
                "a torch.distributions.Distribution of the targets, or take (output, target)"
            )
        return found

    def distribution(self, restored: Callable[[Tensor], Any]) -> DensityRows:
        """The distribution as the Fisher matrices need it, of rows from which `restored` makes the output."""
        return DensityRows(self, restored)


@dataclass(frozen=True)
class DrawnLoss(CustomLoss):
    """A user's loss of (output, target) that names its density by a method `draw(output, uniform)`."""

    def distribution(self, restored: Callable[[Tensor], Any]) -> DrawnRows:
        """The distribution as fisher-mc needs it, of rows from which `restored` makes the output."""
        return DrawnRows(self, restored)

    def drawn(self, output: Any, uniform: Uniform) -> Any:
        """Targets from the loss's own method. Raises SpectraError where that fails."""
        owner: Any = self.function.func if isinstance(self.function, partial) else self.function
        try:
            return owner.draw(output, uniform)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise SpectraError(f"`loss` {self.name}: its draw fails ({describe(error)}); fix it there") from error


@dataclass(frozen=True)
class DrawnRows:
    """The density of rows (b, ...) by targets drawn from it, a `Distribution` without `expected`."""

    loss: DrawnLoss | DensityLoss
    restored: Callable[[Tensor], Any]

    def scales(self, rows: Tensor, targets: Any) -> Tensor:
        """One over the number m of terms that the loss is the mean of, (b, 1)."""
        with torch.no_grad():
            values = self.loss.called(self.restored(rows.detach()), targets)
        return rows.new_full((len(rows), 1), len(rows) / max(values.numel(), len(rows)))

    def draw(self, rows: Tensor, uniform: Uniform) -> Tensor:
        """Draw r, the derivative by the rows of -log p of targets drawn: of their shape."""
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
        """Targets drawn for an output."""
        assert isinstance(self.loss, DrawnLoss)
        return self.loss.drawn(output, uniform)


@dataclass(frozen=True)
class DensityRows(DrawnRows):
    """The density of rows (b, ...) of a loss that returns its distribution, a `Distribution`."""

    def targets(self, output: Any, uniform: Uniform, dtype: torch.dtype) -> Any:
        """Targets drawn for an output. Raises SpectraError where the family has no inverse."""
        assert isinstance(self.loss, DensityLoss)
        return drawn(self.loss.density(output), uniform, dtype)

    def expected(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The expectation E[r r'] u, J'F J u with J the derivative of the parameters by the rows, F their information.

        Raises SpectraError where F is not known for the family.
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
    """The derivative by a leaf of outputs that are weighted and summed; zero by those that do not depend on it."""
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
