"""Rewrite a graph of one vector as a graph of k vectors at once: every value that depends on the vector gets k rows.

    together(second, k)(*residuals, V)[i] = second(*residuals, V[i]),   V of shape (k, n)

The k values of a node are stacked along a new first dimension. k products with one shared matrix become one product
with k times as many rows; operations without a rule here are vectorised by torch.func.vmap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from spectra.curvature.engine.graphs import (
    bare,
    constant,
    eliminate,
    first_input,
    substitute,
    value,
    without_repetition,
)
from spectra.curvature.engine.recorder import record
from spectra.curvature.engine.rewrites import is_call, merged_sums, sums_of_products
from spectra.curvature.engine.vectorized_convolutions import convolution, convolution_backward

aten = torch.ops.aten


def vectorized(module: GraphModule, width: int) -> GraphModule:
    """The graph for `width` vectors, the rows of its last argument. Raises RuntimeError where it cannot be written."""
    found = Vectorizer(module, width).graph()
    merged_reshapes(found)
    merged_sums(found)
    eliminate(found)
    without_repetition(found)
    sums_of_products(found)
    eliminate(found)
    return GraphModule(module, found)


class Vectorizer:
    """The graph for k vectors, written node by node.

    `rows` maps each node of the graph for one vector to the new node of its k values, and `shared` to the new node of
    its one value for all vectors.
    """

    def __init__(self, module: GraphModule, width: int):
        self.module, self.width = module, width
        self.device = module.graph.find_nodes(op="placeholder")[-1].meta["device"]
        self.new = Graph()
        self.rows: dict[Node, Any] = {}
        self.shared: dict[Node, Node] = {}

    def graph(self) -> Graph:
        """The whole graph."""
        nodes = [*self.module.graph.nodes]
        vector = [node for node in nodes if node.op == "placeholder"][-1]
        for node in nodes:
            if node is vector:
                self.rows[node] = self.placed(self.new.placeholder(node.name), self.row_value(node))
            elif node.op == "output":
                (product,) = node.all_input_nodes
                self.new.output(self.batched(product))
            elif self.rows.keys().isdisjoint(node.all_input_nodes):
                self.shared[node] = self.copied(node)
            else:
                self.write(node)
        return self.new

    def copied(self, node: Any) -> Node:
        """Copy a node that does not depend on the vectors."""
        copy = self.new.node_copy(node, self.shared.__getitem__)
        if node.op == "get_attr":
            copy.meta = {"val": constant(self.module, node.target)}
        found = copy.meta.get("val")
        copy.meta = {"val": pytree.tree_map_only(Tensor, bare, found)}
        return copy

    def write(self, node: Any) -> None:
        """Write the node of k values, by the rule for its operation."""
        if node.target is operator.getitem:
            self.rows[node] = self.rows[node.args[0]][node.args[1]]
            return
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) and node.target not in RULES:
            rule: Callable[..., Any] | None = pointwise
        else:
            rule = RULES.get(node.target)
        made = rule(self, node) if rule else None
        made = self.by_vmap(node) if made is None else made
        if isinstance(made, Shared):
            self.shared[node] = made.node
        else:
            self.rows[node] = made

    def by_vmap(self, node: Any) -> Any:
        """Write a call as torch.func.vmap does it, node by node."""
        leaves, structure = pytree.tree_flatten((node.args, dict(node.kwargs)))
        places = [i for i, x in enumerate(leaves) if isinstance(x, Node)]
        inputs = [self.of(leaves[i]) for i in places]
        dims = tuple(0 if self.is_batched(leaves[i]) else None for i in places)
        made: list[bool] = []  # whether each of several results is a tensor

        def function(*tensors):
            given = [*leaves]
            for i, tensor in zip(places, tensors, strict=True):
                given[i] = tensor
            args, kwargs = pytree.tree_unflatten(given, structure)
            found = node.target(*args, **kwargs)
            if isinstance(found, Tensor):
                return found
            made[:] = [isinstance(x, Tensor) for x in found]
            return tuple(x for x in found if isinstance(x, Tensor))

        with silent_fallback():
            _, graph = record(torch.func.vmap(function, dims), [x.meta["val"] for x in inputs])
        found = self.inlined(graph, inputs)
        if not made:
            return found
        rest = iter(found if isinstance(found, list | tuple) else [found])
        return tuple(next(rest) if is_tensor else None for is_tensor in made)

    def inlined(self, graph: Graph, inputs: Sequence[Any]) -> Any:
        """Copy a graph's nodes into the new graph, and return its results."""
        copies = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
        for node in graph.nodes:
            if node.op == "output":
                return pytree.tree_map_only(Node, copies.__getitem__, node.args[0])
            if node.op == "call_function":
                copy = copies[node] = self.new.node_copy(node, copies.__getitem__)
                copy.meta = {"val": pytree.tree_map_only(Tensor, bare, node.meta.get("val"))}
                if "device" in copy.kwargs:
                    copy.kwargs = {**copy.kwargs, "device": self.device}
            elif node.op != "placeholder":
                raise RuntimeError(f"vmap reads a constant ({node.target})")
        raise AssertionError("a graph without an output")

    # The building blocks of rules.

    def call(self, target, *args, **kwargs) -> Node:
        """A new node that calls a function, with a tensor of its result's shape and type."""
        node = self.new.call_function(target, args, kwargs)
        fakes = pytree.tree_map_only(Node, lambda x: x.meta["val"], (args, kwargs))
        fakes[1].pop("device", None)
        return self.placed(node, target(*fakes[0], **fakes[1]))

    def item(self, node: Node, place: int) -> Node:
        """One of the results of a call."""
        found = self.new.call_function(operator.getitem, (node, place))
        return self.placed(found, node.meta["val"][place])

    def placed(self, node: Node, value: Any) -> Node:
        node.meta = {"val": value}
        return node

    def row_value(self, node: Any) -> Tensor:
        value = bare(node.meta["val"])
        return value.new_empty((self.width, *value.shape))

    def is_batched(self, argument: Any) -> bool:
        """Whether an argument is a node of k values."""
        return isinstance(argument, Node) and argument in self.rows

    def one(self, argument: Any) -> Any:
        """The node of one value for all vectors; an argument that is not a node is returned as it is."""
        return self.shared[argument] if isinstance(argument, Node) else argument

    def of(self, argument: Any) -> Any:
        """The new node of an argument, whichever kind it is."""
        return self.rows[argument] if self.is_batched(argument) else self.one(argument)

    def batched(self, argument: Any) -> Node:
        """The node of k values; a shared value is repeated k times, without memory."""
        if argument in self.rows:
            return self.rows[argument]
        node = self.shared[argument]
        shape = node.meta["val"].shape
        return self.call(aten.expand.default, node, [self.width, *shape])

    def aligned(self, argument: Node, rank: int) -> Node:
        """The k values with dimensions of size 1 inserted, so that they broadcast with values of this rank."""
        node = self.rows[argument]
        width, *shape = node.meta["val"].shape
        if len(shape) == rank:
            return node
        return self.call(aten.reshape.default, node, [width, *[1] * (rank - len(shape)), *shape])


@dataclass(frozen=True)
class Shared:
    """The result of a rule that is one value for all vectors."""

    node: Node


@contextmanager
def silent_fallback() -> Iterator[None]:
    """A context in which vmap does not warn of operations that it runs k times, one by one."""
    switch = getattr(getattr(torch._C, "_functorch", None), "_set_vmap_fallback_warning_enabled", None)
    if switch:
        switch(False)
    try:
        yield
    finally:
        if switch:
            switch(True)


def rank_of(node: Any) -> int:
    """The number of dimensions of a node's value for one vector."""
    return node.meta["val"].ndim


def shape_of(node: Any) -> list[int]:
    """The shape of a node's value for one vector."""
    return [*node.meta["val"].shape]


def shifted(dim: int, rank: int) -> int:
    """The index of a dimension once the dimension of the k values is in front."""
    return dim % max(rank, 1) + 1


def is_transposed(node: Node) -> bool:
    """Whether folding the first two dimensions of (k, m, p) would copy it."""
    value = node.meta["val"]
    k, m, _ = value.shape
    return not (value.stride(0) == m * value.stride(1) or k == 1)


# Rules, each a function of the rewriting and a node; None leaves the node to vmap.


def pointwise(to: Vectorizer, node: Any) -> Node | None:
    """An elementwise operation, which broadcasts by itself."""
    rank = rank_of(node)

    def argument(x):
        return to.aligned(x, rank) if to.is_batched(x) else to.one(x)

    if any(isinstance(x, list | tuple) for x in node.args):
        return None
    kwargs = {key: to.of(x) for key, x in node.kwargs.items() if key != "memory_format"}
    return to.call(node.target, *map(argument, node.args), **kwargs)


def same(to: Vectorizer, node: Any) -> Node:
    """An operation that only changes the memory layout."""
    return to.rows[node.args[0]]


def reshape(to: Vectorizer, node: Any) -> Node:
    return to.call(aten.reshape.default, to.rows[node.args[0]], [to.width, *shape_of(node)])


def transposed(to: Vectorizer, node: Any) -> Node:
    x = node.args[0]
    if node.target is aten.t.default:
        return to.call(aten.transpose.int, to.rows[x], 1, 2) if rank_of(x) == 2 else to.rows[x]
    dims = [shifted(dim, rank_of(x)) for dim in node.args[1:]]
    return to.call(aten.transpose.int, to.rows[x], *dims)


def permute(to: Vectorizer, node: Any) -> Node:
    x, dims = node.args
    return to.call(aten.permute.default, to.rows[x], [0, *(shifted(dim, rank_of(x)) for dim in dims)])


def expand(to: Vectorizer, node: Any) -> Node:
    return to.call(aten.expand.default, to.aligned(node.args[0], rank_of(node)), [to.width, *shape_of(node)])


def along(to: Vectorizer, node: Any) -> Node | None:
    """An operation along a dimension, its second argument (the first where none is given), of one tensor."""
    x, dim, *rest = node.args if len(node.args) > 1 else (*node.args, 0)
    if not to.is_batched(x) or any(to.is_batched(y) for y in rest) or not isinstance(dim, int):
        return None
    return to.call(node.target, to.rows[x], shifted(dim, rank_of(x)), *map(to.one, rest), **node.kwargs)


def converted(to: Vectorizer, node: Any) -> Node:
    return to.call(node.target, to.rows[node.args[0]], **{key: x for key, x in node.kwargs.items() if key == "dtype"})


def unsqueeze(to: Vectorizer, node: Any) -> Node:
    x, dim = node.args
    return to.call(node.target, to.rows[x], shifted(dim, rank_of(x) + 1))


def reduced(to: Vectorizer, node: Any) -> Node:
    """A sum or the like over some dimensions, or over all."""
    x, dims, *rest = node.args if len(node.args) > 1 else (*node.args, None)
    dims = range(rank_of(x)) if dims is None or dims == [] else dims
    target = ALL.get(node.target, node.target)
    if not rank_of(x):
        return to.rows[x]
    return to.call(target, to.rows[x], [shifted(dim, rank_of(x)) for dim in dims], *rest, **node.kwargs)


def joined(to: Vectorizer, node: Any) -> Node | None:
    """A concatenation or a stack."""
    tensors, dim = node.args if len(node.args) == 2 else (node.args[0], 0)
    if node.target is aten.cat.default and len({rank_of(x) for x in tensors}) > 1:
        return None  # an empty vector may be among them
    return to.call(node.target, [to.batched(x) for x in tensors], shifted(dim, rank_of(node)))


def zeros(to: Vectorizer, node: Any) -> Shared:
    """A new tensor that takes only the type of its argument."""
    kwargs = {key: x for key, x in node.kwargs.items() if key != "memory_format"}
    return Shared(to.call(NEW[node.target], to.of(node.args[0]), shape_of(node), **kwargs))


def mm(to: Vectorizer, node: Any) -> Node:
    a, b = node.args
    return product(to, a, b)


def product(to: Vectorizer, a: Any, b: Any) -> Node:
    """k products of matrices."""
    if to.is_batched(a) and not to.is_batched(b) and not is_transposed(to.rows[a]):
        rows, inner = shape_of(a)
        tall = to.call(aten.reshape.default, to.rows[a], [to.width * rows, inner])
        tall = to.call(aten.mm.default, tall, to.one(b))
        return to.call(aten.reshape.default, tall, [to.width, rows, shape_of(b)[1]])
    return to.call(aten.bmm.default, to.batched(a), to.batched(b))


def addmm(to: Vectorizer, node: Any) -> Node | None:
    c, a, b = node.args
    if node.kwargs:
        return None
    if not (to.is_batched(a) or to.is_batched(b)):
        return to.call(aten.add.Tensor, to.aligned(c, 2), to.call(aten.mm.default, to.one(a), to.one(b)))
    if to.is_batched(a) and not to.is_batched(b) and not is_transposed(to.rows[a]) and rank_of(c) == 2:
        rows, numbers = shape_of(node)
        if to.is_batched(c) and shape_of(c) == [rows, numbers]:
            flat = [to.call(aten.reshape.default, to.rows[x], [to.width * rows, shape_of(x)[1]]) for x in (c, a)]
            found = to.call(aten.addmm.default, *flat, to.one(b))
            return to.call(aten.reshape.default, found, [to.width, rows, numbers])
    c = to.aligned(c, 2) if to.is_batched(c) else to.one(c)
    return to.call(aten.add.Tensor, c, product(to, a, b))


def bmm(to: Vectorizer, node: Any) -> Node:
    return many_products(to, *node.args)


def many_products(to: Vectorizer, a: Any, b: Any) -> Node:
    """k batches of products of matrices.

    They become one batch, for which a shared operand is copied k times. Where that copy is larger than everything else,
    as with the weights of attention, the k values become more rows or columns of one matrix instead.
    """
    (many, rows, inner), numbers = shape_of(a), shape_of(b)[2]
    if not to.is_batched(b) and inner * numbers > rows * (inner + numbers):
        tall = to.call(aten.transpose.int, to.rows[a], 0, 1)
        tall = to.call(aten.reshape.default, tall, [many, to.width * rows, inner])
        found = to.call(aten.bmm.default, tall, to.one(b))
        found = to.call(aten.reshape.default, found, [many, to.width, rows, numbers])
        return to.call(aten.transpose.int, found, 0, 1)
    if not to.is_batched(a) and rows * inner > numbers * (rows + inner):
        wide = to.call(aten.permute.default, to.rows[b], [1, 2, 0, 3])
        wide = to.call(aten.reshape.default, wide, [many, inner, to.width * numbers])
        found = to.call(aten.bmm.default, to.one(a), wide)
        found = to.call(aten.reshape.default, found, [many, rows, to.width, numbers])
        return to.call(aten.permute.default, found, [2, 0, 1, 3])
    parts = [to.call(aten.reshape.default, to.batched(x), [to.width * many, *shape_of(x)[1:]]) for x in (a, b)]
    found = to.call(aten.bmm.default, *parts)
    return to.call(aten.reshape.default, found, [to.width, many, rows, numbers])


def baddbmm(to: Vectorizer, node: Any) -> Node | None:
    c, a, b = node.args
    if node.kwargs or not (to.is_batched(a) or to.is_batched(b)):
        return None
    c = to.aligned(c, 3) if to.is_batched(c) else to.one(c)
    return to.call(aten.add.Tensor, c, many_products(to, a, b))


def mv(to: Vectorizer, node: Any) -> Node | None:
    matrix, vector = node.args
    if to.is_batched(matrix):
        return None
    return to.call(aten.mm.default, to.rows[vector], to.call(aten.t.default, to.one(matrix)))


def gather(to: Vectorizer, node: Any) -> Node | None:
    x, dim, index = node.args[:3]
    if to.is_batched(index) or rank_of(x) != rank_of(index):
        return None
    return to.call(node.target, to.rows[x], shifted(dim, rank_of(x)), to.batched(index))


def scatter(to: Vectorizer, node: Any) -> Node | None:
    x, dim, index, source = node.args
    if to.is_batched(index) or not isinstance(source, Node) or not rank_of(x) or node.kwargs:
        return None
    places = to.one(index) if node.target is aten.index_add.default else to.batched(index)
    return to.call(node.target, to.batched(x), shifted(dim, rank_of(x)), places, to.batched(source))


def embedded(to: Vectorizer, node: Any) -> Node | None:
    """The derivative of an embedding by its weight: k of them are one with rows k times as long."""
    slope, indices, *rest = node.args
    if to.is_batched(indices) or rest[2:] != [False] or len(rest) != 3:
        return None
    places, numbers = shape_of(slope)[:-1], shape_of(slope)[-1]
    moved = to.call(aten.permute.default, to.rows[slope], [*range(1, len(places) + 1), 0, len(places) + 1])
    wide = to.call(aten.reshape.default, moved, [*places, to.width * numbers])
    found = to.call(node.target, wide, to.one(indices), *rest)
    found = to.call(aten.reshape.default, found, [rest[0], to.width, numbers])
    return to.call(aten.transpose.int, found, 0, 1)


def placed_back(to: Vectorizer, node: Any) -> Node:
    """The derivative of a slice or of one of the slices along a dimension."""
    x, sizes, dim, *rest = node.args
    return to.call(node.target, to.rows[x], [to.width, *sizes], shifted(dim, len(sizes)), *rest)


def softmax_slope(to: Vectorizer, node: Any) -> Node | None:
    """y g - y sum(y g), where y need not be copied k times as for PyTorch's kernel."""
    slope, y, dim, dtype = node.args
    if to.is_batched(y) or dtype != slope.meta["val"].dtype or node.kwargs or not rank_of(y):
        return None
    terms = to.call(aten.mul.Tensor, to.rows[slope], to.one(y))
    total = to.call(aten.sum.dim_IntList, terms, [shifted(dim, rank_of(y))], True)
    return to.call(aten.addcmul.default, terms, to.one(y), total, value=-1)


def layer_norm_slope(to: Vectorizer, node: Any) -> tuple | None:
    """The derivatives of a layer normalisation, for k slopes at one point."""
    slope, x, shape, mean, scale, weight, _, mask = node.args
    if any(map(to.is_batched, (x, mean, scale, weight))):
        return None
    first = rank_of(x) - len(shape)
    inner, outer = [*range(first + 1, rank_of(x) + 1)], [*range(1, first + 1)]
    count = 1
    for size in shape:
        count *= size
    slope = to.rows[slope]
    known = to.call(aten.mul.Tensor, to.call(aten.sub.Tensor, to.one(x), to.one(mean)), to.one(scale))
    by_input = by_weight = by_bias = None
    if mask[0]:
        g = slope if weight is None else to.call(aten.mul.Tensor, slope, to.one(weight))
        mean_of = to.call(aten.div.Scalar, to.call(aten.sum.dim_IntList, g, inner, True), count)
        along_x = to.call(aten.sum.dim_IntList, to.call(aten.mul.Tensor, g, known), inner, True)
        rest = to.call(aten.sub.Tensor, g, mean_of)
        rest = to.call(aten.addcmul.default, rest, known, to.call(aten.div.Scalar, along_x, count), value=-1)
        by_input = to.call(aten.mul.Tensor, rest, to.one(scale))
    if mask[1]:
        by_weight = to.call(aten.mul.Tensor, slope, known)
        by_weight = to.call(aten.sum.dim_IntList, by_weight, outer) if outer else by_weight
    if mask[2]:
        by_bias = to.call(aten.sum.dim_IntList, slope, outer) if outer else slope
    return by_input, by_weight, by_bias


def batch_norm_slope(to: Vectorizer, node: Any) -> tuple | None:
    """The derivatives of a batch normalisation by fixed statistics, for k slopes at one point."""
    slope, x, weight, mean, variance, _, _, train, eps, mask = node.args
    if train or any(map(to.is_batched, (x, weight, mean, variance))):
        return None
    shape = [-1, *[1] * (rank_of(x) - 2)]
    scale = to.call(aten.rsqrt.default, to.call(aten.add.Scalar, to.one(variance), eps))
    outer = [1, *range(3, rank_of(x) + 1)]
    slope, by_input, by_weight, by_bias = to.rows[slope], None, None, None
    if mask[0]:
        factor = scale if weight is None else to.call(aten.mul.Tensor, scale, to.one(weight))
        by_input = to.call(aten.mul.Tensor, slope, to.call(aten.reshape.default, factor, shape))
    if mask[1]:
        centre = to.call(aten.reshape.default, to.one(mean), shape)
        along = to.call(aten.mul.Tensor, slope, to.call(aten.sub.Tensor, to.one(x), centre))
        by_weight = to.call(aten.mul.Tensor, to.call(aten.sum.dim_IntList, along, outer), scale)
    if mask[2]:
        by_bias = to.call(aten.sum.dim_IntList, slope, outer)
    return by_input, by_weight, by_bias


def padded(to: Vectorizer, node: Any) -> Node:
    x, sizes, *rest = node.args
    return to.call(node.target, to.rows[x], sizes, *rest)


def merged_reshapes(graph: Graph) -> None:
    """Remove reshapes that another reshape follows, and reshapes that keep the shape."""
    for node in graph.find_nodes(op="call_function", target=aten.reshape.default):
        x = first_input(node)
        while is_call(x, aten.reshape.default):
            x = first_input(x)
        node.args = (x, node.args[1])
        if value(x).shape == value(node).shape:
            substitute(node, x)


RULES: dict[Any, Callable[[Vectorizer, Node], Any]] = {
    aten.clone.default: same,
    aten.contiguous.default: same,
    aten.reshape.default: reshape,
    aten.view.default: reshape,
    aten.squeeze.dim: reshape,
    aten.squeeze.dims: reshape,
    aten.squeeze.default: reshape,
    aten.t.default: transposed,
    aten.transpose.int: transposed,
    aten.permute.default: permute,
    aten.expand.default: expand,
    aten.unsqueeze.default: unsqueeze,
    aten._to_copy.default: converted,
    aten.slice.Tensor: along,
    aten.select.int: along,
    aten.index_select.default: along,
    aten.cumsum.default: along,
    aten.sum.dim_IntList: reduced,
    aten.sum.default: reduced,
    aten.mean.dim: reduced,
    aten.mean.default: reduced,
    aten.cat.default: joined,
    aten.stack.default: joined,
    aten.new_zeros.default: zeros,
    aten.new_empty.default: zeros,
    aten.new_ones.default: zeros,
    aten.zeros_like.default: zeros,
    aten.ones_like.default: zeros,
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
    aten.native_batch_norm_backward.default: batch_norm_slope,
    aten.constant_pad_nd.default: padded,
    aten.mm.default: mm,
    aten.addmm.default: addmm,
    aten.bmm.default: bmm,
    aten.baddbmm.default: baddbmm,
    aten.mv.default: mv,
    aten.gather.default: gather,
    aten.scatter_add.default: scatter,
    aten.index_add.default: scatter,
    aten.embedding_dense_backward.default: embedded,
    aten.select_backward.default: placed_back,
    aten.slice_backward.default: placed_back,
    aten._softmax_backward_data.default: softmax_slope,
    aten.native_layer_norm_backward.default: layer_norm_slope,
}
ALL = {aten.sum.default: aten.sum.dim_IntList, aten.mean.default: aten.mean.dim}
NEW = {
    aten.new_zeros.default: aten.new_zeros.default,
    aten.new_empty.default: aten.new_empty.default,
    aten.new_ones.default: aten.new_ones.default,
    aten.zeros_like.default: aten.new_zeros.default,
    aten.ones_like.default: aten.new_ones.default,
}
