"""Products in lower precision: the second half of a trace, with short operands in its multiplications.

The operands of matrix products and convolutions have 10 bits (tf32) or 7 (bf16). Sums are taken in float32, of which
bf16 keeps 7 bits, and everything else is unchanged. The first half, which does not depend on the vector, is in ieee, so
that the matrix is the same and only its products are noisy.
"""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from spectra.curvature.engine.autotuning import fingerprint
from spectra.curvature.engine.differentiation import switched
from spectra.curvature.engine.execution import Execution, described
from spectra.curvature.engine.graphs import duplicate, eliminate, find_value, first_input, value, without_repetition
from spectra.curvature.engine.rewrites import call

aten = torch.ops.aten
SUMS: dict[Any, Any] = {
    aten.addmm.default: aten.mm.default,
    aten.baddbmm.default: aten.bmm.default,
    aten.addmv.default: aten.mv.default,
}
PRODUCTS = (*SUMS.values(), aten.convolution.default, aten.convolution_backward.default)


class LowerPrecision(Execution):
    """The execution of a plain second half with multiplications in tf32 or bf16."""

    def __init__(self, second: GraphModule, precision: str):
        self.precision, cuda = precision, torch.backends.cuda.matmul
        self.settings: list[tuple[object, str, object]] = [(cuda, "allow_bf16_reduced_precision_reduction", False)]
        if precision == "tf32":
            convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
            self.settings = [(cuda, "fp32_precision", "tf32"), (convolutions, "fp32_precision", "tf32")]
        super().__init__(second if precision == "tf32" else in_bfloat16(second))

    def graph(self, width: int) -> GraphWithSettings:
        return GraphWithSettings(super().graph(width), self.settings)

    def function(self, width: int) -> GraphWithSettings:
        found = super().function(width)
        return found if isinstance(found, GraphWithSettings) else GraphWithSettings(found, self.settings)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.precision, *(part for node in self.second.graph.nodes for part in described(node)))


class GraphWithSettings:
    """A graph or its compiled form, which runs under settings of PyTorch, each (owner, name, value)."""

    def __init__(self, function: Any, settings: list[tuple[object, str, object]]):
        self.function, self.settings = function, settings

    @property
    def graph(self) -> Graph:
        """The graph that runs."""
        return self.function.graph

    def __call__(self, *arguments: Tensor) -> Tensor:
        with switched(self.settings):
            return self.function(*arguments)


def multiplies(module: GraphModule) -> bool:
    """Whether a graph has an operation to which lower precision applies."""
    return any(node.target in (*PRODUCTS, *SUMS) for node in module.graph.nodes)


def in_bfloat16(module: GraphModule) -> GraphModule:
    """A copy of a plain graph whose products in float32 have operands in bfloat16."""
    graph = duplicate(module.graph)
    for node in graph.nodes:
        if node.target in SUMS:
            apart(node)
    for node in graph.nodes:
        operands = [x for x in node.args[:3] if isinstance(x, Node)]
        if node.target in PRODUCTS and all(value(x).dtype == torch.float32 for x in operands):
            shorten(node)
    eliminate(graph)
    without_repetition(graph)
    return GraphModule(module, graph)


def apart(node: Node) -> None:
    """Write X + A B as a sum and a product, so that X stays as it is."""
    rest, *factors = node.args
    scales = {"beta": 1, "alpha": 1} | node.kwargs
    with node.graph.inserting_before(node):
        product = call(node.graph, SUMS[node.target], tuple(factors), value(node))
        if scales["beta"] != 1:
            rest = call(node.graph, aten.mul.Scalar, (rest, scales["beta"]), value(rest))
    node.target, node.args = aten.add.Tensor, (rest, product)
    node.kwargs = {} if scales["alpha"] == 1 else {"alpha": scales["alpha"]}


def shorten(node: Node) -> None:
    """Cast the operands of a product to bfloat16, and its results back."""
    graph = node.graph
    with graph.inserting_before(node):
        shorter = [short(x) if isinstance(x, Node) else x for x in node.args[:3]]
    node.args = (*shorter, *node.args[3:])
    several = find_value(node) is None
    results = [user for user in node.users if user.target is operator.getitem] if several else [node]
    for result in results:
        readers = [*result.users]
        with graph.inserting_after(result):
            long = call(graph, aten._to_copy.default, (result,), value(result))
            long.kwargs = {"dtype": torch.float32}
        result.meta = {"val": value(result).to(torch.bfloat16)}
        for reader in readers:
            reader.replace_input_with(result, long)
    if several:
        made = node.meta.get("val") or ()
        node.meta = {"val": tuple(x.to(torch.bfloat16) if isinstance(x, Tensor) else x for x in made)}


def short(node: Node) -> Node:
    """Cast a tensor to bfloat16; an empty one, which only gives a shape, is made in bfloat16."""
    if node.target is aten.new_empty.default:
        like = short(first_input(node))
        return call(node.graph, node.target, (like, node.args[1]), value(node).to(torch.bfloat16))
    cast = call(node.graph, aten._to_copy.default, (node,), value(node).to(torch.bfloat16))
    cast.kwargs = {"dtype": torch.bfloat16}
    return cast
