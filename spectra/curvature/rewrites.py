"""Cheaper forms of what autograd writes: rewrites of plain ATen graphs that change values by rounding alone."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Graph, Node

from spectra.curvature.graphs import eliminate, sharing, storage, substitute, value

aten = torch.ops.aten


def improve(graph: Graph) -> None:
    """All that keep the graph free of mutation."""
    zero_summands(graph)
    small_factors(graph)
    transposed_products(graph)
    sums_of_products(graph)
    weight_gradients(graph)
    eliminate(graph)


def zero_summands(graph: Graph) -> None:
    """x + 0 = x, where autograd fills in a derivative that is nowhere."""
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        for zero, rest in (node.args, node.args[::-1]) if not node.kwargs else ():
            if getattr(zero, "target", None) is aten.zeros_like.default and alike(rest, node):
                substitute(node, rest)
                break


def small_factors(graph: Graph) -> None:
    """(X a) b = X (a b), where a and b are numbers of channels and X is large."""
    for node in graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        inner = node.args[0]
        if getattr(inner, "target", None) is not aten.mul.Tensor or len(inner.users) > 1 or not alike(inner, node):
            continue
        large, *factors = inner.args[0], unexpanded(inner.args[1]), unexpanded(node.args[1])
        values = [value(x) if isinstance(x, Node) else None for x in factors]
        if not alike(large, node) or any(x is None or x.dtype != value(node).dtype for x in values):
            continue
        shape = torch.broadcast_shapes(*(x.shape for x in values))
        if len(shape) == value(node).ndim and shape.numel() < value(node).numel() / 8:
            with graph.inserting_before(node):
                node.args = (large, call(graph, aten.mul.Tensor, tuple(factors), value(node).new_empty(shape)))


def unexpanded(node: Node) -> Node:
    return node.args[0] if getattr(node, "target", None) is aten.expand.default else node


def transposed_products(graph: Graph) -> None:
    """(A B)' = B'A', which is laid out as its users are: to add matrices of two layouts is slow."""
    for node in graph.find_nodes(op="call_function", target=aten.t.default):
        product = node.args[0]
        if product.target is aten.mm.default and len(product.users) == 1:
            with graph.inserting_before(node):
                a, b = (transposed(graph, factor) for factor in product.args)
            node.target, node.args = aten.mm.default, (b, a)


def transposed(graph: Graph, node: Node) -> Node:
    return node.args[0] if node.target is aten.t.default else call(graph, aten.t.default, (node,), value(node).t())


def sums_of_products(graph: Graph) -> None:
    """X + A B in one operation."""
    fused = {aten.mm.default: aten.addmm.default, aten.bmm.default: aten.baddbmm.default}
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        for rest, product in (node.args, node.args[::-1]) if not node.kwargs else ():
            if getattr(product, "target", None) in fused and len(product.users) == 1 and alike(rest, product):
                node.target, node.args = fused[product.target], (rest, *product.args)
                break


def weight_gradients(graph: Graph) -> None:
    """A convolution across the batch, whose kernels are images, as the derivative of a convolution by its weight.

    Autograd writes the first in second derivatives; the second is what libraries are tuned for.
    """
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        images, kernels, bias, stride, padding, dilation, turned, _, groups = node.args
        across = all(x.target is aten.transpose.int and x.args[1:] == (0, 1) for x in (images, kernels))
        if not across or bias is not None or turned or groups != 1:
            continue
        inputs, slopes = images.args[0], kernels.args[0]
        shape = value(node).transpose(0, 1).shape
        room = zip(value(inputs).shape[2:], shape[2:], padding, stride, dilation, strict=True)
        sizes = [(size + 2 * pad - step * (width - 1) - 1) // apart + 1 for size, width, pad, step, apart in room]
        if sizes != [*value(slopes).shape[2:]]:
            continue  # a forward convolution with such a weight would have another output
        with graph.inserting_before(node):
            weight = call(graph, aten.new_empty.default, (inputs, shape), value(node).new_empty(shape))
            settings = ([0], dilation, padding, stride, False, [0] * len(padding), 1, [False, True, False])
            slope = call(graph, aten.convolution_backward.default, (slopes, inputs, weight, *settings))
            slope = call(graph, operator.getitem, (slope, 1), value(weight))
            substitute(node, call(graph, aten.transpose.int, (slope, 0, 1), value(node)))


IN_PLACE = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.div.Tensor: aten.div_.Tensor,
    aten.div.Scalar: aten.div_.Scalar,
    aten.neg.default: aten.neg_.default,
    aten.addmm.default: aten.addmm_.default,
    aten.baddbmm.default: aten.baddbmm_.default,
    aten.threshold_backward.default: aten.threshold_backward.grad_input,
    aten.gelu_backward.default: aten.gelu_backward.grad_input,
    aten.tanh_backward.default: aten.tanh_backward.grad_input,
}


def in_place(graph: Graph) -> None:
    """Results written over arguments that nobody reads again: fresh memory costs as much as the arithmetic."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.target not in IN_PLACE:
            continue
        commutes = node.target in (aten.add.Tensor, aten.mul.Tensor) and not node.kwargs
        for args in (node.args, node.args[::-1])[: 1 + commutes]:
            if alike(args[0], node) and is_spare(args[0], node, place):
                node.target, node.args = IN_PLACE[node.target], args
                out = [argument.name for argument in node.target._schema.arguments if argument.is_out]
                node.kwargs = {**node.kwargs, **dict.fromkeys(out, args[0])}
                break


def is_spare(x: Node, node: Node, place: dict[Node, int]) -> bool:
    """Whether the memory of x was made here, is all in x, and is read by this node last, as x and nothing else."""
    owner = storage(x)
    others = [user for view in sharing(owner) for user in view.users if user is not node]
    made_here = owner.op == "call_function" and value(owner) is not None
    return (
        made_here
        and value(owner).numel() == value(x).numel()
        and all(place[user] < place[node] for user in others)
        and sum(storage(argument) is owner for argument in node.all_input_nodes) == 1
        and [*node.args].count(x) == 1
    )


def alike(one, other) -> bool:
    """Whether two nodes are tensors of one shape and type."""
    values = [value(x) if isinstance(x, Node) else None for x in (one, other)]
    return None not in values and len({(x.shape, x.dtype) for x in values}) == 1


def call(graph: Graph, target, args: tuple, val: Tensor | None = None) -> Node:
    node = graph.call_function(target, args)
    node.meta = {"val": val}
    return node
