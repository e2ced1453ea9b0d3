"""Functions that are computed anew for their first and for their second derivative, so that nothing inside is kept.

Of y = f(x) the graph keeps x alone; of its derivative x' = f'(x)'y' it keeps (x, y'); and the derivative of that
computes f once more. `torch.utils.checkpoint` spares memory in a first derivative alone: a graph for the second holds
what was computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from spectra.problem.autograd_graph import leaf_of, names_behind, nodes_behind

Function = Callable[..., Sequence[Tensor]]
Links = dict[int, Tensor]  # parameters by identity, each behind a node
_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)  # a function that is computed anew as a whole


def recomputed(
    function: Callable, *arguments: Any, again: Callable | None = None, links: Links | None = None, **keywords: Any
) -> Any:
    """What a function returns, with first and second derivatives for which it is computed anew.

    Arguments and the result are trees of tensors. The function may use parameters besides; where it uses other tensors
    that have a graph, which it is not given, it is called as it is.

    Args:
        function: the function.
        arguments: what it is called with.
        again: what is called in its place to compute it anew.
        links: the links to parameters, shared by calls whose derivatives are to be added up as they are made.
        keywords: what it is called with by name.
    """
    if _INSIDE.get() or not torch.is_grad_enabled():
        return function(*arguments, **keywords)
    values, structure = pytree.tree_flatten((arguments, keywords))
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.is_floating_point()]

    def call(function: Callable, tensors: Sequence[Tensor]) -> Any:
        filled = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        given, named = pytree.tree_unflatten(filled, structure)
        token = _INSIDE.set(True)
        try:
            return function(*given, **named)
        finally:
            _INSIDE.reset(token)

    given = [values[place] for place in places]
    before = sequence_number()
    copies = [copy_of(tensor) for tensor in given]
    found, shape = pytree.tree_flatten(call(function, copies))
    made = [i for i, value in enumerate(found) if isinstance(value, Tensor) and value.requires_grad]
    parameters = parameters_behind([found[i] for i in made], copies, before)
    if not made or parameters is None:
        del found
        return function(*arguments, **keywords)

    def differentiable(*tensors: Tensor) -> list[Tensor]:
        results = pytree.tree_leaves(call(again or function, tensors))
        return [results[i] for i in made]

    results, links = [found[i].detach() for i in made], {} if links is None else links
    inputs = [*map(linked, given), *(links.setdefault(id(p), linked(p)) for p in parameters)]
    about = About(differentiable, len(given), parameters, {*names_behind([found[i] for i in made])})
    for i, result in zip(made, Recomputed.apply(about, results, *inputs), strict=True):
        found[i] = result
    return pytree.tree_unflatten(found, shape)


class About:
    """A function of `count` tensors, the parameters that it uses besides, and the names of the nodes of its graph."""

    def __init__(self, function: Function, count: int, parameters: Sequence[Tensor], names: Set[str]):
        self.function, self.count, self.parameters, self.names = function, count, tuple(parameters), names

    def outputs(self, given: Sequence[Tensor], late: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        """The function's leaves for new copies of what it is given, and its outputs for these."""
        like = next((tensor for tensor in late if tensor is not None), None)
        copies = [copy_of(after(tensor.detach(), like), tensor.requires_grad) for tensor in given[: self.count]]
        return [*copies, *self.parameters], list(self.function(*copies))


class Recomputed(torch.autograd.Function):
    """The function: its results are known already, and what it is given is kept."""

    @staticmethod
    def forward(ctx, about: About, results: Sequence[Tensor], *given: Tensor) -> tuple[Tensor, ...]:
        """The results."""
        ctx.about, ctx.names = about, about.names
        ctx.save_for_backward(*given)
        return tuple(result.view_as(result) for result in results)

    @staticmethod
    def backward(ctx, *slopes: Tensor):
        """The derivative, as a function of what was given and of the slopes."""
        given = ctx.saved_tensors
        wanted = wanted_by_engine(ctx.next_functions)
        found = Pullback.apply(ctx.about, wanted, *map(linked, [*given, *slopes]))
        filled = iter(found if isinstance(found, tuple) else (found,))
        return None, None, *(next(filled) if want else None for want in wanted)


class Pullback(torch.autograd.Function):
    """The derivative of the function in the direction of slopes of its outputs."""

    @staticmethod
    def forward(ctx, about: About, wanted: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        """The derivative by each input that is wanted."""
        ctx.about, ctx.wanted = about, wanted
        ctx.save_for_backward(*tensors)
        given, slopes = tensors[: len(wanted)], tensors[len(wanted) :]
        with torch.enable_grad():
            leaves, outputs = about.outputs(given, slopes)
            inputs = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            return torch.autograd.grad(outputs, inputs, slopes, allow_unused=True, materialize_grads=True)

    @staticmethod
    def backward(ctx, *vectors: Tensor):
        """The derivative of the derivative, which has none itself."""
        return Pullback.twice(ctx, *vectors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def twice(ctx, *vectors: Tensor):
        """The derivative of the derivative, as it is computed."""
        tensors, count = ctx.saved_tensors, len(ctx.wanted)
        given, slopes = tensors[:count], [copy_of(slope) for slope in tensors[count:]]
        wanted = wanted_by_engine(ctx.next_functions)
        with torch.enable_grad():
            leaves, outputs = ctx.about.outputs(given, vectors)
            inputs = [leaf for leaf, want in zip(leaves, ctx.wanted, strict=True) if want]
            settings = {"allow_unused": True, "materialize_grads": True}
            first = torch.autograd.grad(outputs, inputs, slopes, create_graph=True, **settings)
            if "torch::autograd::Error" in names_behind(first):
                raise RuntimeError("a function marked with @once_differentiable cannot be differentiated twice")
            graphs = [(slope, vector) for slope, vector in zip(first, vectors, strict=True) if slope.requires_grad]
            by = [x for x, want in zip([*leaves, *slopes], wanted, strict=True) if want]
            if not graphs or not by:
                second = [torch.zeros_like(x) for x in by]
            else:
                outputs, weights = zip(*graphs, strict=True)
                second = torch.autograd.grad(outputs, by, weights, **settings)
        filled = iter(second)
        return None, None, *(next(filled) if want else None for want in wanted)


def copy_of(tensor: Tensor, graph: bool | None = None) -> Tensor:
    """The tensor as a new leaf, on the same memory."""
    return tensor.detach().requires_grad_(tensor.requires_grad if graph is None else graph)


def linked(tensor: Tensor) -> Tensor:
    """The tensor behind a node of its own, of which the engine tells whether it is wanted; it does not of leaves."""
    return tensor.view_as(tensor) if tensor.requires_grad and tensor.is_leaf else tensor


def after(tensor: Tensor, late: Tensor | None) -> Tensor:
    """The tensor, in a traced graph a copy that depends on `late`.

    Without it the tracer would find the same computation twice, and a graph that is split where it first depends on
    the vector would keep what is to be computed anew.
    """
    if late is None or not traced() or late.dtype != tensor.dtype:
        return tensor
    return torch.cat([tensor.reshape(-1), late.reshape(-1)[:0]]).view(tensor.shape)


def traced() -> bool:
    """Whether operations are being written to a graph: by a mode that says that it `records`."""
    return any(getattr(mode, "records", False) for mode in _get_current_dispatch_mode_stack())


def wanted_by_engine(edges: Sequence[tuple[Node | None, int]]) -> list[bool]:
    """For each input of a function whose derivative is being taken, whether anybody reads that by it."""
    return [node is not None and torch._C._will_engine_execute_node(node) for node, _ in edges]


def sequence_number() -> int:
    """A number between those of the nodes of graphs made before and after in this thread."""
    one = torch.ones((), requires_grad=True)
    node = one.view_as(one).grad_fn
    assert node is not None
    return node._sequence_nr()


def parameters_behind(outputs: Sequence[Tensor], copies: Sequence[Tensor], before: int) -> list[Tensor] | None:
    """The leaves that outputs are computed from, but for the copies; None where there are nodes from before."""
    own, found = {id(copy) for copy in copies}, {}
    for node in nodes_behind(outputs):
        if (leaf := leaf_of(node)) is not None:
            found[id(leaf)] = leaf
        elif node._sequence_nr() <= before:
            return None
    return [leaf for key, leaf in found.items() if key not in own]
