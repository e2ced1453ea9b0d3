"""The fixed point z* = f(z*; p) as a function of p that can be differentiated as often as f.

With J = df/dz at z*, the derivative of g'z* by p is u'(df/dp), where u solves the adjoint equation u = J'u + g
(Almeida 1987; Pineda 1987). This u is again the fixed point of a map, which is affine and has the parameters
(g, z*, p), so one function gives derivatives of every order. In a product with the Hessian, reverse over reverse, the
second derivative relaxes the two equations that Pearlmutter (1994, section 4.1) writes as R{y} and R{z}:

    t = J t + (df/dp) v                     how z* moves along v
    s = J's + R{J'} u + R{g}                how u moves along v
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from spectra.curvature.engine.differentiation import gradient


class ParametricMap(Protocol):
    """A map z -> f(z; p)."""

    name: str  # of its fixed point, for messages
    functions: frozenset[str]  # names of the autograd functions in it, as far as known

    def at(self, *parameters: Tensor) -> Callable[[Tensor], Tensor]:
        """The map for these parameters; all that does not depend on z is computed once."""
        ...


# Finds the fixed point of a map from a start, or raises SpectraError.
Solve = Callable[[ParametricMap, Callable[[Tensor], Tensor], Tensor], Tensor]


def fixed_point(parametric: ParametricMap, parameters: Sequence[Tensor], start: Tensor, solve: Solve) -> Tensor:
    """Compute the fixed point of a map, differentiable with respect to its parameters to any order.

    Args:
        parametric: the map z -> f(z; p).
        parameters: the tensors p on which it depends; other tensors are treated as constants.
        start: the tensor to start from, which does not affect derivatives.
        solve: finds a fixed point; it solves the adjoint equations too.
    """
    return FixedPoint.apply(parametric, solve, start.detach(), *parameters)  # pyright: ignore[reportReturnType]


class FixedPoint(torch.autograd.Function):
    """The autograd function of `fixed_point`."""

    @staticmethod
    def forward(ctx, parametric: ParametricMap, solve: Solve, start: Tensor, *parameters: Tensor) -> Tensor:
        """Relax the map."""
        found = solve(parametric, parametric.at(*(p.detach() for p in parameters)), start)
        state = found.clone() if found is start else found
        ctx.parametric, ctx.solve, ctx.names = parametric, solve, parametric.functions  # `names_behind` reads these
        ctx.save_for_backward(state, *parameters)
        return state

    @staticmethod
    def backward(ctx, *slopes: Tensor):
        """Relax the adjoint equation, and differentiate one application of the map with respect to its parameters."""
        (slope,) = slopes
        state, *parameters = ctx.saved_tensors
        u = fixed_point(Adjoint(ctx.parametric), (slope, state, *parameters), slope, ctx.solve)
        again = torch.is_grad_enabled()  # whether this derivative is to be differentiated
        with torch.enable_grad():  # a partial derivative at fixed z, so the parameters get new nodes in the graph
            own = [alias_of(p) if again else leaf_like(p) for p in parameters]
            image = ctx.parametric.at(*own)(alias_of(state) if again else state.detach())
        places = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        found = gradient(image, [own[i] for i in places], u, create_graph=again)
        by_place = dict(zip(places, found, strict=True))
        return None, None, None, *(by_place.get(i) for i in range(len(own)))


class Adjoint:
    """The map u -> J'u + g of a map f, with J = df/dz; its parameters are g, z and those of f."""

    functions = frozenset()

    def __init__(self, parametric: ParametricMap):
        self.parametric = parametric
        self.name = f"the adjoint of {parametric.name}"

    def at(self, *parameters: Tensor) -> Callable[[Tensor], Tensor]:
        """The map for these parameters; f is linearised once."""
        slope, state, *others = parameters
        with torch.enable_grad():
            place = alias_of(state) if state.requires_grad else state.detach().requires_grad_()
            image = self.parametric.at(*others)(place)
        return lambda u: gradient(image, (place,), u, create_graph=torch.is_grad_enabled())[0] + slope


def alias_of(tensor: Tensor) -> Tensor:
    """A view of the tensor, with its own node in autograd's graph."""
    return tensor.view_as(tensor)


def leaf_like(tensor: Tensor) -> Tensor:
    """The tensor detached from its graph, with the same `requires_grad`."""
    return tensor.detach().requires_grad_(tensor.requires_grad)
