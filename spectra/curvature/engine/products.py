"""Make the products of batches: by a traced and hoisted graph where that pays, else by double backward.

Either way, what does not depend on the vector is kept between products while memory lasts, and made anew beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from spectra.curvature.engine.batches import own_batches, resized
from spectra.curvature.engine.choices import Choices, fingerprint
from spectra.curvature.engine.compilation import Uncompilable, pays
from spectra.curvature.engine.cuda_graphs import VECTORS, Retained, graphs_for
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.engine.execution import BatchProduct, Execution, in_use
from spectra.curvature.engine.footprint import Footprint, elements, measured
from spectra.curvature.engine.hoisting import Hoisted, Linearise, Untraceable, shape_of
from spectra.curvature.engine.widths import WORTH_MEASURING, Widths
from spectra.defaults import IEEE
from spectra.errors import SpectraError
from spectra.memory import products_share
from spectra.problem.batch import Batch
from spectra.problem.model_checks import refuse_other_size
from spectra.problem.problem import Problem

# Measured on a CPU core, over networks from an MLP to a ViT: what hoisting spares in a product goes with the bytes
# that a graph keeps, what tracing costs with the operations.
SPARED = 0.25e-9  # seconds a byte
TRACING = 0.18e-3  # seconds an operation
LOADING = 0.1  # seconds, of modules
MOST = 16  # chunks of a trace, in which each is written out
LAUNCHING = 1e-5  # seconds an operation, which a CUDA graph spares; on an H200
AS_IT_IS, COMPILED = "as it is", "compiled"


@dataclass(frozen=True)
class Route:
    """One way to make the product of a batch, and the bytes that it takes."""

    ready: Callable[[], Apply]
    kept: int  # if it is kept
    peak: int  # in a product, if it is made anew
    hoisted: bool = False


class Products:
    """The products of this process's share of a problem's batches, in order: iterate for functions of a vector.

    Args:
        linearise: the function that makes the product of a batch.
        problem: the model, loss and data.
        costs: the memory of a product.
        memory: the bytes that are kept and that the product of one batch takes besides; 0 keeps nothing and leaves
            batches as they are; by default a share of the device's, or what is needed.
        expected: the number of products that are to pay for a trace.
        resizable: whether batches may be merged and cut.
        choices: decisions by a clock.
        precision: one in which products are made beside ieee, where they can be traced, which is then always done.
        compile: whether products are hoisted and compiled; None: on a GPU, where the products expected pay for it.
        tell: is told what takes long or goes wrong.

    Raises:
        SpectraError: memory holds no product.
    """

    def __init__(
        self,
        linearise: Linearise,
        problem: Problem,
        costs: Footprint,
        memory: int | None,
        expected: int,
        resizable: bool,
        choices: Choices,
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
                f"`memory`: {memory:,} bytes hold no product of one {'example' if resizable else 'batch'}, which takes "
                f"{least:,}; give more, or choose fewer `params`"
            )
        if batches and resizable and memory:
            given, batches = batches, resized(batches, costs, memory)
            refuse_other_size(problem, given, batches)
        self.untraceable: str | None = None  # why, where it was tried
        self.graphs = graphs_for(problem.device, expected)
        self.choices = choices
        self.compile, self.expected, self.tell = compile, expected, tell
        self.executions: list[Execution] = []  # of each group of batches that is hoisted
        self.uncompilable: str | None = None  # why, where it was tried
        self.widths: list[Widths] = []  # of each group of batches that is hoisted
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
        """Batches that are kept between products."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """The bytes that are kept between products."""
        return sum(route.kept for route in self.routes[: len(self._kept)])

    @property
    def peak_bytes(self) -> int:
        """The bytes that are kept, and that a product takes besides at most."""
        wide = max((widths.transient_bytes for widths in self.widths), default=0)
        return self.kept_bytes + max(wide, transient_bytes(self.routes, len(self._kept)))

    @property
    def path(self) -> str:
        """The way in which products are made, for the record."""
        count, hoisted = len(self.routes), sum(route.hoisted for route in self.routes)
        how = {0: "double backward", count: "hoisted"}.get(hoisted, f"hoisted ({hoisted} batches) and double backward")
        how += ", channels last" if self.choices.made.get("layout") == "channels last" else ""
        how += ", compiled" if any(execution.is_compiled for execution in self.executions) else ""
        why = f"; not traced: {self.untraceable}" if self.untraceable else ""
        why += f"; not compiled: {self.uncompilable}" if self.uncompilable else ""
        return f"{how}, {len(self._kept)} of {count} batches kept{self._in_graphs}{self._together}{why}"

    @property
    def _in_graphs(self) -> str:
        """What of it runs as CUDA graphs."""
        captured = sum(isinstance(apply, BatchProduct | Retained) and apply.captured for apply in self._kept)
        why = f"; no CUDA graph: {self.graphs.why}" if self.graphs and self.graphs.why else ""
        return (f", {captured} as CUDA graphs" if captured else "") + why

    @property
    def _together(self) -> str:
        """The numbers of columns that go together."""
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
        """Capture the products of one vector now: they belong to the set-up."""
        vector = torch.ones(problem.size, dtype=problem.dtype, device=problem.device)
        for apply in self._kept:
            apply(vector)

    def runs_as_graphs(self, columns: int, lower: bool = False) -> bool:
        """Whether a product with so many columns is CUDA graphs alone, which PyTorch's settings no longer change."""
        graphs = len(self._kept) == len(self.routes) and self.graphs is not None
        used = (in_use(apply, lower) for apply in self._kept)
        return graphs and all(isinstance(a, BatchProduct | Retained) and a.is_captured(columns) for a in used)

    def _hoist(self, linearise: Linearise, problem: Problem, batches: list[Batch], group: list[int]) -> None:
        try:
            hoisted = Hoisted(linearise, problem, batches, self.choices, self.precision)
        except Untraceable as error:
            self.untraceable = str(error)
            return
        how = "CUDA graphs" if self.graphs else "eager"
        self.lower |= hoisted.lower is not None
        executions = [hoisted.execution, hoisted.lower] if hoisted.lower else [hoisted.execution]
        vector = torch.ones(problem.size, dtype=problem.dtype, device=problem.device)
        # Ranks that measure at once may differ.
        keys = [
            fingerprint(each.fingerprint, how, hoisted.channels_last, problem.processes.rank) for each in executions
        ]

        def own_widths() -> list[Widths]:
            return [
                Widths(
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
        widths = own_widths()  # by the times of what is compiled
        self.widths += widths
        graph = len(widths) * self._graph_bytes(problem)
        for i, batch in zip(group, batches, strict=True):
            make = partial(ready, hoisted, batch, widths)
            self.routes[i] = Route(make, found.kept + graph, max(found.history) + graph, hoisted=True)

    def _is_worth_compiling(self, product: BatchProduct, vector: Tensor, batches: int, of: str) -> bool:
        """Whether the product of so many batches like this is to be compiled: as the user says, else by a clock."""
        if self.compile is not None or not self.graphs:
            return bool(self.compile)

        def measure() -> str:
            timed = BatchProduct(product.execution, product.residuals, product.widths, self.graphs)
            seconds = batches * self.choices.seconds(partial(timed, vector), vector.device)
            return COMPILED if pays(product.execution.second, seconds, self.expected) else AS_IT_IS

        name = f"compilation {len(self.executions)}"  # of this group of batches
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
    """The number of chunks in which a batch's logits are made."""
    return problem.labels(batch).numel() / problem.head.chunk if problem.head else 1


def by_double_backward(linearise: Linearise, problem: Problem, batch: Batch, costs: Footprint, graph: int) -> Route:
    """The route by double backward, with so many bytes for a CUDA graph."""
    size = elements(batch)
    return Route(partial(linearise, problem, batch), costs.kept(size) + graph, costs.peak(size) + graph)


def ready(hoisted: Hoisted, batch: Batch, widths: Sequence[Widths]) -> BatchProduct:
    """The product of a batch by its traced graph; `widths` are of its execution in ieee, and then of the lower one."""
    residuals, lower = hoisted.residuals(batch), None
    if hoisted.lower:
        lower = BatchProduct(hoisted.lower, residuals, widths[-1])
    return BatchProduct(hoisted.execution, residuals, widths[0], lower=lower)


def groups_of_a_shape(batches: Sequence[Batch]) -> list[list[int]]:
    """The places of batches that one trace serves, group by group."""
    groups: dict[tuple, list[int]] = {}
    for i, batch in enumerate(batches):
        groups.setdefault(shape_of(batch), []).append(i)
    return list(groups.values())


def affordable(routes: Sequence[Route], memory: int) -> int:
    """The number of first batches that may be kept, so that what they keep and a product fit in memory."""
    sums = accumulate((route.kept for route in routes), initial=0)
    fitting = [i for i, kept in enumerate(sums) if kept + transient_bytes(routes, i) <= memory]
    return fitting[-1] if memory and fitting else 0


def transient_bytes(routes: Sequence[Route], kept: int) -> int:
    """The bytes that a product takes besides what the first `kept` batches keep."""
    transients = [route.peak - route.kept for route in routes[:kept]] + [route.peak for route in routes[kept:]]
    return max(transients, default=0)
