"""Run the second half of a trace: for one vector, or for the rows of (k, n) at once.

Execution(second).graph(1)(*residuals, v)    second itself, with results written over values no longer needed
Execution(second).graph(k)(*residuals, V)    its products with the k rows of V, written by `vectorization`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from spectra.curvature.engine.autotuning import fingerprint
from spectra.curvature.engine.block_widths import BlockWidths
from spectra.curvature.engine.compilation import compiled
from spectra.curvature.engine.cuda_graphs import Captured, Graphs
from spectra.curvature.engine.differentiation import Apply

Run = Callable[[Tensor], Tensor]


class Execution:
    """The executable graphs of a plain second half, for all batches of its shape."""

    def __init__(self, second: GraphModule):
        self.second = second
        self._graphs = {1: overwriting(second)}
        self._compiled: Callable[..., Tensor] | None = None  # for one vector

    def graph(self, width: int) -> Any:
        """The product with this number of vectors at once. Raises an error of PyTorch where it cannot be written."""
        from spectra.curvature.engine.vectorization import vectorized

        if width not in self._graphs:
            self._graphs[width] = overwriting(vectorized(self.second, width))
        return self._graphs[width]

    def function(self, width: int) -> Callable[..., Tensor]:
        """The product with this number of vectors at once: its graph, or its compiled form."""
        return self._compiled if width == 1 and self._compiled else self.graph(width)

    def compile(self, arguments: Sequence[Tensor]) -> None:
        """Compile the product with one vector, for residuals and a vector like these. Raises Uncompilable."""
        self._compiled = compiled(self.second, arguments)

    @property
    def is_compiled(self) -> bool:
        """Whether the product with one vector is compiled."""
        return self._compiled is not None

    def transient_bytes(self, width: int) -> int:
        """The largest number of bytes that a product with `width` vectors takes besides its arguments."""
        from spectra.curvature.engine.graphs import transient_bytes

        return transient_bytes(self.graph(width).graph)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the graph with its shapes and types: equal for two that take the same time."""
        return fingerprint(*(part for node in self.second.graph.nodes for part in described(node)))


def overwriting(module: GraphModule) -> GraphModule:
    """A copy of a plain graph in which results are written over values no longer needed."""
    from spectra.curvature.engine.graphs import duplicate
    from spectra.curvature.engine.rewrites import in_place

    graph = duplicate(module.graph)
    in_place(graph)
    return GraphModule(module, graph)


def described(node: Node) -> tuple[object, ...]:
    """All that identifies a node: its call, and the shape, layout and type of its result."""
    found = node.meta.get("val")
    about = (found.shape, found.stride(), found.dtype) if isinstance(found, Tensor) else None
    return node.op, node.target, node.args, node.kwargs, about


class BatchProduct:
    """The product of one batch with a vector (n,), and with the columns of (n, k).

    Args:
        execution: the graphs that are executed.
        residuals: the tensors of the batch that they need.
        widths: chooses how many columns are multiplied together.
        graphs: makes CUDA graphs of the product, if it is kept and they pay.
        lower: the product in lower precision, if that was asked for.
    """

    def __init__(
        self,
        execution: Execution,
        residuals: Sequence[Tensor],
        widths: BlockWidths,
        graphs: Graphs | None = None,
        lower: BatchProduct | None = None,
    ):
        self.execution, self.residuals, self.widths, self.graphs = execution, residuals, widths, graphs
        self.lower = lower
        self._runs: dict[int, Run] = {}

    @property
    def captured(self) -> bool:
        """Whether any part of the product runs as a CUDA graph."""
        own = any(isinstance(run, Captured) for run in self._runs.values())
        return own or bool(self.lower and self.lower.captured)

    def is_captured(self, columns: int) -> bool:
        """Whether a product with this number of columns runs entirely as CUDA graphs."""
        plan = [1] if columns == 1 else self.widths.planned(columns)
        return bool(plan) and all(isinstance(self._runs.get(width), Captured) for width in plan)

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector."""
        vector = vector.contiguous()  # products with a strided column of a matrix are slow
        return self.run(1, vector)(vector)

    def add(self, columns: Tensor, products: Tensor) -> None:
        """Add the products with the columns of (n, k) to `products` (n, k)."""
        first = 0
        for width in self.widths.plan(columns.shape[1], self.run, columns[:, 0]):
            part, sums = columns[:, first : first + width], products[:, first : first + width]
            sums += self._rows(part.T.contiguous(), width).T if width > 1 else self(part[:, 0])[:, None]
            first += width
        for width in self._runs.keys() - {1, *self.widths.used}:
            del self._runs[width]

    def _rows(self, rows: Tensor, width: int) -> Tensor:
        """The products with rows, at most `width` of them."""
        count = len(rows)
        given = torch.nn.functional.pad(rows, (0, 0, 0, width - count)) if count < width else rows
        return self.run(width, rows[0])(given)[:count]

    def run(self, width: int, example: Tensor) -> Run:
        """The product with `width` rows, or with a vector for width 1, of the device and type of an example (n,)."""
        if width not in self._runs:
            run = partial(without_gradient, self.execution.function(width), self.residuals)
            if self.graphs:
                like = torch.ones_like(example) if width == 1 else example.new_ones(width, len(example))
                run = self.graphs.captured(run, like)
            self._runs[width] = run
        return self._runs[width]


def without_gradient(function: Callable[..., Tensor], residuals: Sequence[Tensor], argument: Tensor) -> Tensor:
    """Run a graph or its compiled form without autograd."""
    with torch.no_grad():
        return function(*residuals, argument)


def in_use(apply: Apply, lower: bool) -> Apply:
    """The product of a batch; with `lower`, the one in lower precision if there is one."""
    return apply.lower if lower and isinstance(apply, BatchProduct) and apply.lower else apply


def add_products(apply: Apply, columns: Tensor, products: Tensor, lower: bool = False) -> None:
    """Add the products of a batch with the columns of (n, k) to `products` (n, k), in lower precision if `lower`."""
    apply = in_use(apply, lower)
    if isinstance(apply, BatchProduct):
        apply.add(columns, products)
        return
    for j, column in enumerate(columns.unbind(1)):
        products[:, j] += apply(column.contiguous())  # rounds as a single vector does
