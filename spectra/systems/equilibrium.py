"""Networks whose output is a fixed point: deep equilibrium models, and the recurrent networks of recurrent
backpropagation.

    z = f(z, x; theta),  output = readout(z)

They are modules like any other: a Problem, and every command, takes them. A deep equilibrium model is that of Bai,
Kolter and Koltun (2019); recurrent backpropagation that of Almeida (1987) and Pineda (1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spectra.arguments import require_integer, wrong
from spectra.errors import ArgumentError, SpectraError
from spectra.problem.autograd_graph import leaf_of, names_behind, nodes_behind
from spectra.problem.problem import Problem
from spectra.systems.fixed_point import ParametricMap, fixed_point, leaf_like
from spectra.systems.relaxation import PLAIN, Relaxation, Relaxed, relax
from spectra.systems.relaxation_notes import relaxation_note
from spectra.wording import counted


@dataclass
class Relaxations:
    """The largest numbers in all relaxations of a module since it was made; assign a new object to reset them."""

    count: int = 0  # relaxations
    iterations: int = 0  # steps
    residual: float = 0.0  # |f(z) - z| relative to |f(z)|
    contraction: float = 0.0  # |f(z) - f(z')| / |z - z'| over the last steps
    distance: float = 0.0  # an estimate of |z - z*|, relative to |f(z)|

    def add(self, found: Relaxed) -> None:
        """Include one more relaxation."""
        self.count += 1
        self.iterations = max(self.iterations, found.iterations)
        self.residual = max(self.residual, found.residual)
        self.contraction = max(self.contraction, found.contraction)
        self.distance = max(self.distance, found.distance)


class Equilibrium(nn.Module):
    """A network whose state is the fixed point z = f(z, x), found by iteration, and differentiable as often as f is.

    Derivatives are those of the fixed point itself: linear equations are solved by iteration to the same tolerance.
    They do not depend on the iterations that led to the fixed point, and none of these is kept.

    Args:
        map: the module f, which is called as map(z, *inputs) and returns a tensor of the shape of z. All that it learns
            must be its parameters or inputs.
        state: the shape of one example's state, which then starts at zero, or a function of the inputs that returns the
            start (examples, ...). The first dimension counts examples, like that of the first input.
        readout: a module that computes the output from z; None: z itself.
        tolerance: the residual |f(z) - z| of an example, relative to |f(z)|, at which the iteration ends.
        iterations: the largest number of iterations.
        method: relaxation, which repeats z <- f(z), or anderson, which accelerates it.

    Raises:
        SpectraError: a call, or its derivatives, do not reach the tolerance.
    """

    def __init__(
        self,
        map: nn.Module,
        state: int | Sequence[int] | Callable[..., Tensor],
        readout: nn.Module | None = None,
        *,
        tolerance: float = 1e-10,
        iterations: int = 1000,
        method: str = PLAIN,
    ):
        super().__init__()
        if not isinstance(map, nn.Module):
            came = type(map).__name__
            raise ArgumentError(f"`map`: expected a torch.nn.Module that is called as map(z, x), got {came}")
        self.map, self.readout = map, readout
        self.state = state if callable(state) else shape_of(state)
        self.relaxation = Relaxation(tolerance, iterations, method)
        self.relaxations = Relaxations()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the output at the fixed point for these inputs."""
        z = self.solve(*inputs)
        return z if self.readout is None else self.readout(z)

    def solve(self, *inputs: Tensor) -> Tensor:
        """Compute the fixed point (examples, ...) for these inputs.

        Raises:
            SpectraError: the iteration does not reach the tolerance.
        """
        named = dict(self.map.named_parameters())
        parametric = ModuleMap(self.map, list(named), len(inputs))
        given = [*inputs, *named.values()]
        start = self.start(*inputs)
        if torch.is_grad_enabled():
            parametric.functions = functions_of(parametric, given, start)
        return fixed_point(parametric, given, start, self._relax)

    def start(self, *inputs: Tensor) -> Tensor:
        """Compute the state with which the iteration starts."""
        if callable(self.state):
            return self.state(*inputs).detach()
        like = next((t for t in (*self.map.parameters(), *inputs) if t.is_floating_point()), torch.zeros(()))
        return like.new_zeros(len(inputs[0]), *self.state)

    def spectra_notes(self, problem: Problem) -> list[str]:
        """Notes for a result on how accurate this module's relaxations are."""
        return relaxation_note(self, problem)

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return ", ".join(f"{name}={value}" for name, value in vars(self.relaxation).items())

    def _relax(self, parametric: ParametricMap, function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        found = relax(function, start, self.relaxation)
        if found.unsolved:
            raise SpectraError(self._refusal(parametric.name, found, start))
        self.relaxations.add(found)
        return found.state

    def _refusal(self, name: str, found: Relaxed, start: Tensor) -> str:
        settings = self.relaxation
        examples = f"{found.unsolved:,} of {counted(len(start), 'example')}"
        if not found.iterations and not math.isfinite(found.residual):
            return (
                f"`model`: the relaxation of {name} did not reach its tolerance for {examples}: its first step is not "
                "finite; check the inputs, and what `map` returns for them"
            )
        return (
            f"`model`: the relaxation of {name} did not reach its tolerance for {examples}: residual "
            f"{found.residual:.2g} after {counted(found.iterations, 'step')}, tolerance "
            f"{settings.tolerance_in(start.dtype):.2g}; |f(z) - f(z')| / |z - z'| is {found.contraction:.2g} there "
            f"and must be below 1; give {type(self).__name__} {WAYS_OUT[settings.method]}, or smaller weights"
        )


WAYS_OUT = {PLAIN: "more `iterations` or `method` anderson", "anderson": "more `iterations`"}


class ModuleMap:
    """A module's map z -> f(z, *inputs) with the inputs and the module's parameters as its parameters."""

    name = "a fixed point"
    functions: frozenset[str] = frozenset()

    def __init__(self, module: nn.Module, names: Sequence[str], inputs: int):
        self.module, self.names, self.inputs = module, names, inputs

    def at(self, *parameters: Tensor) -> Callable[[Tensor], Tensor]:
        """The map for these inputs and parameters."""
        inputs, own = parameters[: self.inputs], parameters[self.inputs :]
        named = dict(zip(self.names, own, strict=True))

        def function(z: Tensor) -> Tensor:
            image = functional_call(self.module, named, (z, *inputs))
            if not isinstance(image, Tensor) or image.shape != z.shape:
                came = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
                shape = tuple(z.shape)
                raise SpectraError(f"`map` returns {came} for a state of shape {shape}; return a tensor of that shape")
            return image

        return function


def functions_of(parametric: ModuleMap, parameters: Sequence[Tensor], start: Tensor) -> frozenset[str]:
    """The names of the autograd functions in a map.

    Raises SpectraError if the map depends on a tensor that requires gradients and is not one of its parameters.
    """
    own = [leaf_like(p) for p in parameters]
    images = [parametric.at(*own)(start)]
    if outsiders(images[0], own):  # only those in two calls count: a tool may add new leaves to each call
        images.append(parametric.at(*own)(start))
        for _, leaf in outsiders(images[0], own).keys() & outsiders(images[1], own).keys():
            raise SpectraError(
                f"`map` uses a tensor of shape {tuple(leaf)} that requires gradients, but is neither an input nor a "
                "parameter of it; register it as a parameter of the map, or pass it as an input"
            )
    return frozenset(names_behind(images))


def outsiders(image: Tensor, own: Sequence[Tensor]) -> dict[tuple[int, torch.Size], Tensor]:
    """The leaves in the graph of `image` that are not in `own`, by identity and shape."""
    known, leaves = {id(p) for p in own}, map(leaf_of, nodes_behind([image]))
    return {(id(leaf), leaf.shape): leaf for leaf in leaves if leaf is not None and id(leaf) not in known}


class RecurrentNetwork(Equilibrium):
    """The recurrent network y = sigma(W y) + I, whose state is a fixed point (Almeida 1987; Pineda 1987).

    This is the network of Pearlmutter (1994), section 4.1. Inputs are added to the first units, and the last units are
    the output. There are no biases; a unit with input 1 can replace them.

    Args:
        inputs: the number of inputs, each to one unit.
        units: the number of units in all.
        outputs: the number of units that form the output.
        activation: the function sigma, which acts on each element.
        **relaxation: tolerance, iterations and method, as `Equilibrium` takes them.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        outputs: int,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        **relaxation: Any,
    ):
        require_integer("inputs", inputs, most=units)
        require_integer("outputs", outputs, most=units)
        super().__init__(RecurrentMap(units, activation), units, LastUnits(outputs), **relaxation)


class RecurrentMap(nn.Module):
    """The map y -> sigma(W y) + I, with the input (examples, inputs) at the first units."""

    def __init__(self, units: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(units, units) / (2 * units**0.5))  # contracts by a half, for tanh
        self.activation = activation

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute one step of the map."""
        return self.activation(y @ self.weight.T) + nn.functional.pad(x, (0, y.shape[1] - x.shape[1]))


class LastUnits(nn.Module):
    """The state of the last units."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs

    def forward(self, y: Tensor) -> Tensor:
        """The output (examples, outputs)."""
        return y[:, -self.outputs :]


def shape_of(state: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of one example's state. Raises ArgumentError if it is not a size or a shape."""
    sizes = (state,) if isinstance(state, int) else tuple(state) if isinstance(state, Sequence) else None
    if sizes is None or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise wrong("state", state, "a size, a shape without the examples, or a function of the inputs")
    return sizes
