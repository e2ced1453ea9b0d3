"""Activation checkpointing for first and second derivatives: functions are recomputed, and their graphs not kept.

For y = f(x) the graph keeps x alone; for the derivative x' = f'(x)'y' it keeps (x, y'); the second derivative computes
f once more. `torch.utils.checkpoint` saves memory for first derivatives only: its graph for the second derivative holds
all that was recomputed.
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
_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)  # inside a function that is recomputed as a whole


def recomputed(
    function: Callable, *arguments: Any, again: Callable | None = None, links: Links | None = None, **keywords: Any
) -> Any:
    """Call a function so that its first and second derivatives recompute it, and no graph inside it is kept.

    Arguments and the result are trees of tensors. The function may use parameters that are not arguments. If it uses
    other tensors with a graph that are not arguments, it is called without recomputation.

    Args:
        function: the function.
        arguments: its positional arguments.
        again: the function that recomputes it; None: `function`.
        links: the views of parameters, shared by calls so that their derivatives are added up as they are computed.
        keywords: its keyword arguments.
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
    about = RecomputedFunction(differentiable, len(given), parameters, {*names_behind([found[i] for i in made])})
    for i, result in zip(made, Recomputed.apply(about, results, *inputs), strict=True):
        found[i] = result
    return pytree.tree_unflatten(found, shape)


class RecomputedFunction:
    """A function of `count` tensors, the parameters that it uses besides, and the names of the nodes of its graph."""

    def __init__(self, function: Function, count: int, parameters: Sequence[Tensor], names: Set[str]):
        self.function, self.count, self.parameters, self.names = function, count, tuple(parameters), names

    def outputs(self, given: Sequence[Tensor], late: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        """Call the function on new copies of its arguments; return its leaves (copies, parameters) and its outputs."""
        like = next((tensor for tensor in late if tensor is not None), None)
        copies = [copy_of(after(tensor.detach(), like), tensor.requires_grad) for tensor in given[: self.count]]
        return [*copies, *self.parameters], list(self.function(*copies))


class Recomputed(torch.autograd.Function):
    """The function with results that are computed already; it saves only its arguments."""

    @staticmethod
    def forward(ctx, about: RecomputedFunction, results: Sequence[Tensor], *given: Tensor) -> tuple[Tensor, ...]:
        """The results."""
        ctx.about, ctx.names = about, about.names
        ctx.save_for_backward(*given)
        return tuple(result.view_as(result) for result in results)

    @staticmethod
    def backward(ctx, *slopes: Tensor):
        """The derivative, as a function of the arguments and of the gradients of the outputs (`slopes`)."""
        given = ctx.saved_tensors
        wanted = wanted_by_engine(ctx.next_functions)
        found = Pullback.apply(ctx.about, wanted, *map(linked, [*given, *slopes]))
        filled = iter(found if isinstance(found, tuple) else (found,))
        return None, None, *(next(filled) if want else None for want in wanted)


class Pullback(torch.autograd.Function):
    """The vector-Jacobian product of the function with the gradients of its outputs (`slopes`)."""

    @staticmethod
    def forward(ctx, about: RecomputedFunction, wanted: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        """The gradient of each input that is wanted."""
        ctx.about, ctx.wanted = about, wanted
        ctx.save_for_backward(*tensors)
        given, slopes = tensors[: len(wanted)], tensors[len(wanted) :]
        with torch.enable_grad():
            leaves, outputs = about.outputs(given, slopes)
            inputs = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
            return torch.autograd.grad(outputs, inputs, slopes, allow_unused=True, materialize_grads=True)

    @staticmethod
    def backward(ctx, *vectors: Tensor):
        """The second derivative, which cannot be differentiated again."""
        return Pullback.twice(ctx, *vectors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def twice(ctx, *vectors: Tensor):
        """Compute the second derivative."""
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
    """A view of a leaf, since autograd tells for inner nodes, but not for leaves, whether their gradient is needed."""
    return tensor.view_as(tensor) if tensor.requires_grad and tensor.is_leaf else tensor


def after(tensor: Tensor, late: Tensor | None) -> Tensor:
    """The tensor; in a traced graph, a copy that depends on `late`.

    Without this dependence the tracer would merge the recomputation with the first computation, and a graph that is
    split where it first depends on the vector would keep what is to be recomputed.
    """
    if late is None or not traced() or late.dtype != tensor.dtype:
        return tensor
    return torch.cat([tensor.reshape(-1), late.reshape(-1)[:0]]).view(tensor.shape)


def traced() -> bool:
    """Whether operations are being traced, by a dispatch mode with the attribute `records`."""
    return any(getattr(mode, "records", False) for mode in _get_current_dispatch_mode_stack())


def wanted_by_engine(edges: Sequence[tuple[Node | None, int]]) -> list[bool]:
    """Whether autograd needs the gradient of each input of the function that is being differentiated."""
    return [node is not None and torch._C._will_engine_execute_node(node) for node, _ in edges]


def sequence_number() -> int:
    """A number between those of the nodes of graphs made before and after in this thread."""
    one = torch.ones((), requires_grad=True)
    node = one.view_as(one).grad_fn
    assert node is not None
    return node._sequence_nr()


def parameters_behind(outputs: Sequence[Tensor], copies: Sequence[Tensor], before: int) -> list[Tensor] | None:
    """The leaves that outputs depend on, except copies; None if they depend on nodes made before number `before`."""
    own, found = {id(copy) for copy in copies}, {}
    for node in nodes_behind(outputs):
        if (leaf := leaf_of(node)) is not None:
            found[id(leaf)] = leaf
        elif node._sequence_nr() <= before:
            return None
    return [leaf for key, leaf in found.items() if key not in own]
