"""Rewrite plain ATen graphs of derivatives into cheaper forms, which change values by rounding only."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from spectra.curvature.engine.graphs import (
    add_call,
    eliminate,
    find_value,
    first_input,
    narrow_outputs,
    sharing,
    storage,
    substitute,
    value,
    without_repetition,
)

aten = torch.ops.aten


def improve(graph: Graph) -> None:
    """Apply all rewrites that keep the graph free of mutation."""
    zero_summands(graph)
    late_expansions(graph)
    small_factors(graph)
    merged_sums(graph)
    gathered_slices(graph)
    known_slopes(graph)
    transposed_products(graph)
    sums_of_products(graph)
    weight_gradients(graph)
    eliminate(graph)
    narrow_outputs(graph)  # fewer of them are read now
    without_repetition(graph)


def zero_summands(graph: Graph) -> None:
    """Rewrite x + 0 as x; autograd fills in zeros for derivatives that do not exist."""
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        for zero, rest in (node.args, node.args[::-1]) if not node.kwargs else ():
            if getattr(zero, "target", None) is aten.zeros_like.default and alike(rest, node):
                substitute(node, rest)
                break


def late_expansions(graph: Graph) -> None:
    """Delay expansions until an operation has a large operand, since elementwise operations broadcast by themselves."""
    for node in graph.nodes:
        args = tuple(unexpanded(x) for x in node.args)
        tensors = [x for x in args if isinstance(x, Node)]
        if node.target not in BROADCAST or args == node.args or not of_one_type(node, *tensors):
            continue
        shape = torch.broadcast_shapes(*(value(x).shape for x in tensors))
        if shape == value(node).shape:
            node.args = args
            continue
        with graph.inserting_before(node):
            small = call(graph, node.target, args, value(node).new_empty(shape))
            small.kwargs = node.kwargs
            substitute(node, call(graph, aten.expand.default, (small, [*value(node).shape]), value(node)))


def unexpanded(x):
    """The argument of an expansion; any other argument as it is."""
    return x.args[0] if is_call(x, aten.expand.default) else x


def small_factors(graph: Graph) -> None:
    """Rewrite (X a) b as X (a b) for a large X, a small tensor a (one number per channel or row), and a small b."""
    for node in graph.nodes:
        for large, a, b in islice(twice_scaled(node), 1):
            shape = torch.broadcast_shapes(*(value(x).shape for x in (a, b) if isinstance(x, Node)))
            with graph.inserting_before(node):
                small = call(graph, node.target, (a, b), value(a).new_empty(shape))
            node.target, node.args = aten.mul.Tensor, (large, small)


def twice_scaled(node: Node) -> Iterator[tuple]:
    """Yield the triples X, a, b for which the node is the product (X a) b and X a has no other use."""
    for x, b in scaled(node):
        if is_call(x, aten.mul.Tensor) and all(map(scaled, x.users)):
            yield from ((large, a, b) for large, a in scaled(x))


def scaled(node: Node) -> list[tuple]:
    """The pairs (X, b) for which the node is the product X b with a small tensor or a number b."""
    if is_call(node, aten.mul.Tensor):
        return [(x, b) for x, b in (node.args, node.args[::-1]) if is_small(b, node)]
    return [node.args] if is_call(node, aten.mul.Scalar, aten.div.Scalar) else []


def is_small(x, node: Node) -> bool:
    """Whether an argument is a tensor of the node's type and far smaller."""
    return of_one_type(x, node) and value(x).numel() < value(node).numel() / 8


def merged_sums(graph: Graph) -> None:
    """Rewrite a sum over one dimension after another as one sum over both."""
    for node in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        inner = node.args[0]
        plain = all(len(x.args) == 2 and not x.kwargs for x in (node, inner))
        if plain and is_call(inner, node.target) and len(inner.users) == 1:
            x, dims = inner.args
            left = [dim for dim in range(value(x).ndim) if dim not in dims]
            node.args = (x, [*dims, *(left[dim] for dim in node.args[1])])


def gathered_slices(graph: Graph) -> None:
    """Rewrite a sum of slices, each padded with zeros, as one stack; it is the derivative of reading slice by slice."""
    absorbed = set()
    for node in reversed(graph.find_nodes(op="call_function", target=aten.add.Tensor)):
        terms, inner = summands(node)
        slices = [x for x in terms if is_call(x, aten.select_backward.default)]
        if node in absorbed or len({str(x.args[1:3]) for x in slices}) != 1:
            continue

        _, sizes, dim, _ = slices[0].args
        pieces = {x.args[3] % sizes[dim]: x.args[0] for x in slices}
        if not 1 < len(pieces) == len(slices):
            continue

        absorbed |= inner
        with graph.inserting_before(node):
            nothing = call(graph, aten.zeros_like.default, (slices[0].args[0],), value(slices[0].args[0]))
            every = [pieces.get(i, nothing) for i in range(sizes[dim])]
            total = call(graph, aten.stack.default, (every, dim), value(slices[0]))
            for x in terms:
                if x not in slices:
                    total = call(graph, aten.add.Tensor, (total, x), value(node))
        substitute(node, total)


def summands(node: Node) -> tuple[list[Any], set[Node]]:
    """The terms of a sum of sums, and the sums within it."""
    terms: list[Any] = []
    inner: set[Node] = set()
    queue: list[Any] = [node]
    while queue:
        x = queue.pop()
        if x is node or (is_call(x, aten.add.Tensor) and not x.kwargs and len(x.users) == 1 and alike(x, node)):
            inner.add(x)
            queue.extend(x.args)
        else:
            terms.append(x)
    return terms, inner


def known_slopes(graph: Graph) -> None:
    """Rewrite f'(x) g as a product with f'(x), computed once, since an exponential costs more than reading it."""
    for node in graph.nodes:
        if node.target in SLOPES:
            slope, x, *rest = node.args
            with graph.inserting_before(node):
                ones = call(graph, aten.ones_like.default, (x,), value(x))
                known = call(graph, node.target, (ones, x, *rest), value(node))
                known.kwargs = node.kwargs
                substitute(node, call(graph, aten.mul.Tensor, (slope, known), value(node)))
        elif node.target is aten._log_softmax_backward_data.default and alike(*node.args[:2]):
            slope, logs, dim, _ = node.args
            with graph.inserting_before(node):
                known = call(graph, aten.exp.default, (logs,), value(logs))
                total = call(graph, aten.sum.dim_IntList, (slope, [dim], True), value(slope).sum(dim, True))
                less = call(graph, aten.addcmul.default, (slope, known, total), value(node))
                less.kwargs = {"value": -1}
                substitute(node, less)


def transposed_products(graph: Graph) -> None:
    """Rewrite (A B)' as B'A', which has the layout of its users; adding matrices of two layouts is slow."""
    for node in graph.find_nodes(op="call_function", target=aten.t.default):
        product = node.args[0]
        if product.target is aten.mm.default and len(product.users) == 1:
            with graph.inserting_before(node):
                a, b = (transposed(graph, factor) for factor in product.args)
            node.target, node.args = aten.mm.default, (b, a)


def transposed(graph: Graph, node: Node) -> Node:
    """The transpose of a node's value."""
    if node.target is aten.t.default:
        return first_input(node)
    return call(graph, aten.t.default, (node,), value(node).t())


def sums_of_products(graph: Graph) -> None:
    """Compute X + A B in one operation, for products of matrices or of elements."""
    for target, fused in FUSED.items():
        for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
            for rest, product in (node.args, node.args[::-1]) if not node.kwargs else ():
                single = is_call(product, target) and len(product.users) == 1 and alike(product, node)
                if single and of_one_type(rest, *product.args):
                    node.target, node.args = fused, (rest, *product.args)
                    break


def weight_gradients(graph: Graph) -> None:
    """Rewrite a convolution across the batch with images as kernels as the derivative of a convolution by its weight.

    Autograd writes the former in second derivatives of a model that does not use `convolutions.Convolution`, such as an
    exported one; libraries are tuned for the latter.
    """
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        images, kernels, bias, stride, padding, dilation, turned, _, groups = node.args
        images, kernels = (x.args[0] if is_call(x, aten.clone.default) else x for x in (images, kernels))  # on CUDA
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


BROADCAST = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
SLOPES = (aten.gelu_backward.default, aten.silu_backward.default, aten.mish_backward.default)
FUSED = {
    aten.mm.default: aten.addmm.default,
    aten.bmm.default: aten.baddbmm.default,
    aten.mul.Tensor: aten.addcmul.default,
}
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
    aten.addcmul.default: aten.addcmul_.default,
    aten.tanh_backward.default: aten.tanh_backward.grad_input,
}


def in_place(graph: Graph) -> None:
    """Write results over arguments that are no longer needed, since fresh memory costs as much as the arithmetic."""
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
    """Whether the memory of x was allocated in the graph, is all in x, and is last read by this node, and only as x."""
    owner = storage(x)
    others = [user for view in sharing(owner) for user in view.users if user is not node]
    made_here = owner.op == "call_function" and find_value(owner) is not None
    return (
        made_here
        and value(owner).numel() == value(x).numel()
        and all(place[user] < place[node] for user in others)
        and sum(storage(argument) is owner for argument in node.all_input_nodes) == 1
        and [*node.args].count(x) == 1
    )


def is_call(x, *targets) -> bool:
    """Whether an argument is a call of one of these functions."""
    return isinstance(x, Node) and x.target in targets


def of_one_type(*arguments) -> bool:
    """Whether all arguments are tensors of one dtype."""
    values = [find_value(x) for x in arguments]
    types = {None if x is None else x.dtype for x in values}
    return len(types) == 1 and None not in types


def alike(one, other) -> bool:
    """Whether two arguments are tensors of one shape and dtype."""
    return of_one_type(one, other) and value(one).shape == value(other).shape


def call(graph: Graph, target, args: tuple, val: Tensor | None = None) -> Node:
    """Add a node that calls a function, with a tensor of its result's shape and type."""
    node = add_call(graph, target, args)
    node.meta = {"val": val}
    return node
