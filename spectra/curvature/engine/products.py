"""Make the products of batches: by a traced and hoisted graph where that pays, else by double backward.

Either way, what does not depend on the vector is kept between products for as many batches as memory allows, and
computed again in each product for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from spectra.curvature.engine.autotuning import Autotuner, fingerprint
from spectra.curvature.engine.batches import own_batches, resized
from spectra.curvature.engine.block_widths import WORTH_MEASURING, BlockWidths
from spectra.curvature.engine.compilation import Uncompilable, pays
from spectra.curvature.engine.cuda_graphs import VECTORS, Retained, graphs_for
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.engine.execution import BatchProduct, Execution, in_use
from spectra.curvature.engine.footprint import Footprint, elements, measured
from spectra.curvature.engine.hoisting import HoistedProduct, Linearise, Untraceable, shape_of
from spectra.defaults import IEEE
from spectra.errors import SpectraError
from spectra.memory import products_share
from spectra.problem.batch import Batch
from spectra.problem.model_checks import refuse_other_size
from spectra.problem.problem import Problem

# Measured on a CPU core, for networks from an MLP to a ViT: hoisting saves time in proportion to the bytes that a graph
# keeps, and tracing costs time in proportion to the operations.
SPARED = 0.25e-9  # seconds saved per byte
TRACING = 0.18e-3  # seconds per operation
LOADING = 0.1  # seconds to load modules
MOST = 16  # the largest number of chunks in a trace, where each is written out
LAUNCHING = 1e-5  # seconds per operation that a CUDA graph saves, on an H200
AS_IT_IS, COMPILED = "as it is", "compiled"


@dataclass(frozen=True)
class Route:
    """One way to make the product of a batch, and the bytes that it takes."""

    ready: Callable[[], Apply]
    kept: int  # bytes if it is kept
    peak: int  # bytes in a product if it is not kept
    hoisted: bool = False


class Products:
    """The products of this process's share of a problem's batches, in order: iterate for functions of a vector.

    Args:
        linearise: the function that makes the product of a batch.
        problem: the model, loss and data.
        costs: the memory of a product.
        memory: the bytes for all that is kept and one product of a batch; 0 keeps nothing and leaves batches as they
            are; by default a share of the device's, or as much as is needed.
        expected: the number of products that are expected, by which it is decided whether a trace pays.
        resizable: whether batches may be merged and cut.
        choices: timed decisions.
        precision: a lower precision in which products are made too; they are then traced whenever that is possible.
        compile: whether products are hoisted and compiled; None: on a GPU, if that saves time over the expected number.
        tell: a function that is called with a line on what takes long or goes wrong.

    Raises:
        SpectraError: memory is too small for one product.
    """

    def __init__(
        self,
        linearise: Linearise,
        problem: Problem,
        costs: Footprint,
        memory: int | None,
        expected: int,
        resizable: bool,
        choices: Autotuner,
        precision: str = IEEE,
        compile: bool | None = False,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.precision = precision
        resizable = resizable and costs.scales
        batches = list(own_batches(problem, whole=not resizable))
        largest = max((elements(batch) / (len(batch) if resizable else 1) for batch in batches), default=0)
        least = costs.peak(largest)
        if memory is None:
            memory = max(products_share(problem.device), least)
        elif 0 < memory < least:
            raise SpectraError(
                f"`memory`: a product of one {'example' if resizable else 'batch'} takes {least:,} bytes, more than "
                f"{memory:,}; give more, or choose fewer `params`"
            )
        if batches and resizable and memory:
            given, batches = batches, resized(batches, costs, memory)
            refuse_other_size(problem, given, batches)
        self.untraceable: str | None = None  # why tracing failed
        self.graphs = graphs_for(problem.device, expected)
        self.choices = choices
        self.compile, self.expected, self.tell = compile, expected, tell
        self.executions: list[Execution] = []  # one for each group of batches that is hoisted
        self.uncompilable: str | None = None  # why compilation failed
        self.widths: list[BlockWidths] = []  # of each group of batches that is hoisted
        self.lower = False  # whether any product has a lower precision
        graph = self._graph_bytes(problem)
        self.routes = [by_double_backward(linearise, problem, batch, costs, graph) for batch in batches]
        for group in groups_of_a_shape(batches):
            spared = expected * SPARED * sum(self.routes[i].kept for i in group)
            if self.graphs:
                spared += expected * LAUNCHING * costs.operations * len(group)
            worth = compile or (precision != IEEE and expected) or spared > TRACING * costs.operations + LOADING
            if worth and chunks(problem, batches[group[0]]) <= MOST:
                self._hoist(linearise, problem, [batches[i] for i in group], group)
        self._kept = [self._ready(route) for route in self.routes[: affordable(self.routes, memory)]]
        if self.graphs:
            self._capture(problem)
        for widths in self.widths if expected >= WORTH_MEASURING else ():
            widths.room = max(0, memory - self.kept_bytes)
            own = sum(isinstance(apply, BatchProduct) and apply.widths is widths for apply in self._kept)
            widths.held = VECTORS * own if self.graphs else 0

    def __iter__(self) -> Iterator[Apply]:
        yield from self._kept
        for route in self.routes[len(self._kept) :]:
            yield route.ready()

    @property
    def kept_batches(self) -> int:
        """The number of batches that are kept between products."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """The bytes that are kept between products."""
        return sum(route.kept for route in self.routes[: len(self._kept)])

    @property
    def peak_bytes(self) -> int:
        """The bytes that are kept between products, plus the most that a product takes besides."""
        wide = max((widths.transient_bytes for widths in self.widths), default=0)
        return self.kept_bytes + max(wide, transient_bytes(self.routes, len(self._kept)))

    @property
    def path(self) -> str:
        """How products are made, in words, for the record."""
        count, hoisted = len(self.routes), sum(route.hoisted for route in self.routes)
        how = {0: "double backward", count: "hoisted"}.get(hoisted, f"hoisted ({hoisted} batches) and double backward")
        how += ", channels last" if self.choices.made.get("layout") == "channels last" else ""
        how += ", compiled" if any(execution.is_compiled for execution in self.executions) else ""
        why = f"; not traced: {self.untraceable}" if self.untraceable else ""
        why += f"; not compiled: {self.uncompilable}" if self.uncompilable else ""
        return f"{how}, {len(self._kept)} of {count} batches kept{self._in_graphs}{self._together}{why}"

    @property
    def _in_graphs(self) -> str:
        """The number of batches that run as CUDA graphs, in words."""
        captured = sum(isinstance(apply, BatchProduct | Retained) and apply.captured for apply in self._kept)
        why = f"; no CUDA graph: {self.graphs.why}" if self.graphs and self.graphs.why else ""
        return (f", {captured} as CUDA graphs" if captured else "") + why

    @property
    def _together(self) -> str:
        """The numbers of columns that are multiplied together, in words."""
        used = sorted({width for widths in self.widths for width in widths.used})
        why = next((widths.why for widths in self.widths if widths.why), None)
        if used:
            return f"; {', '.join(map(str, used))} columns together" + (f" (no more: {why})" if why else "")
        return f"; columns one by one: {why}" if why else ""

    def _graph_bytes(self, problem: Problem) -> int:
        """The bytes that a batch's CUDA graph holds besides intermediate values."""
        return VECTORS * problem.size * problem.dtype.itemsize if self.graphs else 0

    def _ready(self, route: Route) -> Apply:
        """The product of a batch that is kept, as CUDA graphs where they pay."""
        if self.graphs and not route.hoisted:
            return Retained(route.ready, self.graphs)
        apply = route.ready()
        if isinstance(apply, BatchProduct):
            apply.graphs = self.graphs
            if apply.lower:
                apply.lower.graphs = self.graphs
        return apply

    def _capture(self, problem: Problem) -> None:
        """Capture the products with one vector now, as a part of the set-up."""
        vector = torch.ones(problem.size, dtype=problem.dtype, device=problem.device)
        for apply in self._kept:
            apply(vector)

    def runs_as_graphs(self, columns: int, lower: bool = False) -> bool:
        """Whether a product with `columns` columns runs entirely as CUDA graphs, which ignore PyTorch's settings."""
        graphs = len(self._kept) == len(self.routes) and self.graphs is not None
        used = (in_use(apply, lower) for apply in self._kept)
        return graphs and all(isinstance(a, BatchProduct | Retained) and a.is_captured(columns) for a in used)

    def _hoist(self, linearise: Linearise, problem: Problem, batches: list[Batch], group: list[int]) -> None:
        try:
            hoisted = HoistedProduct(linearise, problem, batches, self.choices, self.precision)
        except Untraceable as error:
            self.untraceable = str(error)
            return
        how = "CUDA graphs" if self.graphs else "eager"
        self.lower |= hoisted.lower is not None
        executions = [hoisted.execution, hoisted.lower] if hoisted.lower else [hoisted.execution]
        vector = torch.ones(problem.size, dtype=problem.dtype, device=problem.device)
        # The rank belongs to the key, since ranks that measure at the same time may decide differently.
        keys = [
            fingerprint(each.fingerprint, how, hoisted.channels_last, problem.processes.rank) for each in executions
        ]

        def own_widths() -> list[BlockWidths]:
            return [
                BlockWidths(
                    each.transient_bytes, vector.nbytes, fingerprint(key, each.is_compiled), self.choices, problem.seed
                )
                for each, key in zip(executions, keys, strict=True)
            ]

        uncompiled = own_widths()
        found = measured(lambda _, batch: ready(hoisted, batch, uncompiled), problem, batches[0])
        product = cast(BatchProduct, in_use(ready(hoisted, batches[0], uncompiled), lower=True))
        self.executions.append(product.execution)
        if self._is_worth_compiling(product, vector, len(batches), keys[-1]):
            self._compile(product, vector)
        widths = own_widths()  # measured again if the product was compiled
        self.widths += widths
        graph = len(widths) * self._graph_bytes(problem)
        for i, batch in zip(group, batches, strict=True):
            make = partial(ready, hoisted, batch, widths)
            self.routes[i] = Route(make, found.kept + graph, max(found.history) + graph, hoisted=True)

    def _is_worth_compiling(self, product: BatchProduct, vector: Tensor, batches: int, of: str) -> bool:
        """Whether the product of this number of batches is to be compiled: by the user's choice, else by timing."""
        if self.compile is not None or not self.graphs:
            return bool(self.compile)

        def measure() -> str:
            timed = BatchProduct(product.execution, product.residuals, product.widths, self.graphs)
            seconds = batches * self.choices.seconds(partial(timed, vector), vector.device)
            return COMPILED if pays(product.execution.second, seconds, self.expected) else AS_IT_IS

        name = f"compilation {len(self.executions)}"  # for this group of batches
        of = fingerprint(of, batches, self.expected)
        return self.choices.decide(name, measure, (AS_IT_IS, COMPILED), vector.device, of) == COMPILED

    def _compile(self, product: BatchProduct, vector: Tensor) -> None:
        operations = len(product.execution.second.graph.nodes)
        self.tell(f"compiling a product of {operations:,} operations")
        try:
            product.execution.compile([*product.residuals, vector])
        except Uncompilable as error:
            self.uncompilable = str(error)
            self.tell(f"products are not compiled: {error}")


def chunks(problem: Problem, batch: Batch) -> float:
    """The number of chunks of a batch's logits."""
    return problem.labels(batch).numel() / problem.head.chunk if problem.head else 1


def by_double_backward(linearise: Linearise, problem: Problem, batch: Batch, costs: Footprint, graph: int) -> Route:
    """The route by double backward, with `graph` more bytes for a CUDA graph."""
    size = elements(batch)
    return Route(partial(linearise, problem, batch), costs.kept(size) + graph, costs.peak(size) + graph)


def ready(hoisted: HoistedProduct, batch: Batch, widths: Sequence[BlockWidths]) -> BatchProduct:
    """The product of a batch by its traced graph; `widths` are for products in ieee, then in lower precision."""
    residuals, lower = hoisted.residuals(batch), None
    if hoisted.lower:
        lower = BatchProduct(hoisted.lower, residuals, widths[-1])
    return BatchProduct(hoisted.execution, residuals, widths[0], lower=lower)


def groups_of_a_shape(batches: Sequence[Batch]) -> list[list[int]]:
    """The indices of batches in groups, each of which can use one trace."""
    groups: dict[tuple, list[int]] = {}
    for i, batch in enumerate(batches):
        groups.setdefault(shape_of(batch), []).append(i)
    return list(groups.values())


def affordable(routes: Sequence[Route], memory: int) -> int:
    """The number of batches, from the first on, that can be kept so that they and a product fit memory."""
    sums = accumulate((route.kept for route in routes), initial=0)
    fitting = [i for i, kept in enumerate(sums) if kept + transient_bytes(routes, i) <= memory]
    return fitting[-1] if memory and fitting else 0


def transient_bytes(routes: Sequence[Route], kept: int) -> int:
    """The bytes that a product takes besides those kept by the first `kept` batches."""
    transients = [route.peak - route.kept for route in routes[:kept]] + [route.peak for route in routes[kept:]]
    return max(transients, default=0)
