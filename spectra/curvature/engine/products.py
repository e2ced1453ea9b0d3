"""Make the products of batches: by a traced and hoisted graph where that pays, else by double backward.

Either way, what does not depend on the vector is kept between products while memory lasts, and made anew beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from spectra.curvature.engine.batches import own_batches, resized
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.engine.footprint import Footprint, elements, measured
from spectra.curvature.engine.hoisting import Hoisted, Linearise, Untraceable, shape_of
from spectra.errors import SpectraError
from spectra.memory import memory_share
from spectra.problem.batch import Batch
from spectra.problem.model_checks import refuse_other_size
from spectra.problem.problem import Problem

# Measured on a CPU core, over networks from an MLP to a ViT: what hoisting spares in a product goes with the bytes
# that a graph keeps, what tracing costs with the operations.
SPARED = 0.25e-9  # seconds a byte
TRACING = 0.18e-3  # seconds an operation
LOADING = 0.1  # seconds, of modules


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
    ):
        resizable = resizable and costs.scales
        batches = list(own_batches(problem, whole=not resizable))
        largest = max((elements(batch) / (len(batch) if resizable else 1) for batch in batches), default=0)
        least = costs.peak(largest)
        if memory is None:
            memory = max(memory_share(problem.device), least)
        elif 0 < memory < least:
            raise SpectraError(
                f"`memory`: {memory:,} bytes hold no product of one {'example' if resizable else 'batch'}, which takes "
                f"{least:,}; give more, or choose fewer `params`"
            )
        if batches and resizable and memory:
            given, batches = batches, resized(batches, costs, memory)
            refuse_other_size(problem, given, batches)
        self.untraceable: str | None = None  # why, where it was tried
        self.routes = [by_double_backward(linearise, problem, batch, costs) for batch in batches]
        for group in groups_of_a_shape(batches):
            spared = expected * SPARED * sum(self.routes[i].kept for i in group)
            if spared > TRACING * costs.operations + LOADING:
                self._hoist(linearise, problem, [batches[i] for i in group], group)
        self._kept = [route.ready() for route in self.routes[: affordable(self.routes, memory)]]

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
        return self.kept_bytes + transient_bytes(self.routes, len(self._kept))

    @property
    def path(self) -> str:
        """The way in which products are made, for the record."""
        count, hoisted = len(self.routes), sum(route.hoisted for route in self.routes)
        how = {0: "double backward", count: "hoisted"}.get(hoisted, f"hoisted ({hoisted} batches) and double backward")
        why = f"; not traced: {self.untraceable}" if self.untraceable else ""
        return f"{how}, {len(self._kept)} of {count} batches kept{why}"

    def _hoist(self, linearise: Linearise, problem: Problem, batches: list[Batch], group: list[int]) -> None:
        try:
            hoisted = Hoisted(linearise, problem, batches)
        except Untraceable as error:
            self.untraceable = str(error)
            return
        found = measured(lambda _, batch: ready(hoisted, batch), problem, batches[0])
        for i, batch in zip(group, batches, strict=True):
            self.routes[i] = Route(partial(ready, hoisted, batch), found.kept, max(found.history), hoisted=True)


def by_double_backward(linearise: Linearise, problem: Problem, batch: Batch, costs: Footprint) -> Route:
    """The route by double backward."""
    size = elements(batch)
    return Route(partial(linearise, problem, batch), costs.kept(size), costs.peak(size))


def ready(hoisted: Hoisted, batch: Batch) -> Apply:
    """The product of a batch by its traced graph."""
    return partial(hoisted.apply, hoisted.residuals(batch))


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
