"""Any matrix of the register as a symmetric operator: the one place that sums over batches and keeps graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pkgutil import resolve_name

import torch
from torch import Tensor

from spectra.curvature.checks import refuse_one_example, refuse_unfit
from spectra.curvature.differentiation import Apply, explained, twice_differentiable
from spectra.curvature.gradients import mean_gradient
from spectra.curvature.gram import Factor
from spectra.curvature.matrices import MATRICES
from spectra.curvature.memory import count_kept_bytes
from spectra.curvature.problem import Batch, Problem
from spectra.errors import SpectraError
from spectra.memory import memory_share


class Curvature:
    """The matrix `name` (see MATRICES) of a problem, plus weight decay; products are exact up to rounding.

    Graphs of batches are kept between products while they fit `memory` bytes, by default a quarter of the
    device's memory; batches beyond are differentiated anew in each product. The first product builds them;
    `setup_seconds` is the time that took. Raises SpectraError where the loss or weight decay does not suit.
    """

    def __init__(self, problem: Problem, name: str, memory: int | None = None):
        if name not in MATRICES:
            raise SpectraError(f"--curvature {name}: no such matrix; choose from {', '.join(MATRICES)}")
        matrix = MATRICES[name]
        if matrix.distribution and not hasattr(problem.loss, "draw"):
            raise SpectraError(
                f"--curvature {name}: a loss of your own has no distribution p(y|f) to expect labels of; "
                "use ggn or fisher-empirical"
            )
        if matrix.squared and problem.weight_decay:
            raise SpectraError(
                f"--weight-decay {problem.weight_decay:g}: {name} is made of products of gradients, which weight "
                "decay does not shift; leave it out, or ask for hessian, ggn or fisher"
            )
        self.problem = problem
        self.name = name
        self.linearise = resolve_name(matrix.path)
        self.memory = memory_share(problem.device) if memory is None else memory
        self.setup_seconds = 0.0
        self.kept_bytes = 0  # of the graphs and vectors of kept batches; 0 until they are built
        self._centred = matrix.centred
        self._kept: list[Apply] | None = None
        self._terms: list[Apply] = []  # what belongs to no batch
        self._versions = self._parameter_versions()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.problem.size, self.problem.size))

    @property
    def dtype(self) -> torch.dtype:
        return self.problem.dtype

    @property
    def device(self) -> torch.device:
        return self.problem.device

    @property
    def path(self) -> str:
        """How products are made, for the record."""
        return f"double backward, graphs of {self.kept_batches} of {len(self.problem.batches)} batches retained"

    @property
    def kept_batches(self) -> int:
        """Batches whose graphs are kept between products."""
        return len(self._kept or ())

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with (n,), or with the columns of (n, k); raises ValueError where the lengths differ."""
        if vectors.ndim not in (1, 2) or len(vectors) != self.problem.size:
            raise ValueError(f"a matrix of shape {tuple(self.shape)} has no product with {tuple(vectors.shape)}")
        columns = vectors[:, None] if vectors.ndim == 1 else vectors
        products = columns * self.problem.weight_decay
        with twice_differentiable(self.problem.model), explained():
            for apply in self._batches():
                for j, column in enumerate(columns.unbind(1)):
                    products[:, j] += apply(column)
        return products.view_as(vectors)

    def factor(self) -> Factor:
        """F of A = F'F + shift I. Raises SpectraError where there is none."""
        return Factor(self.problem, self.name, self.memory)

    def prepare(self) -> None:
        """Build the graphs that are kept, as the first product would."""
        if self._kept is None:
            start = time.perf_counter()
            with twice_differentiable(self.problem.model), explained():
                refuse_unfit(self.problem)
                if self._centred:
                    refuse_one_example(self.problem)
                    self._terms = [less_outer_product(mean_gradient(self.problem))]
                self._kept = self._linearise_within_memory()
            self.setup_seconds += time.perf_counter() - start

    def _parameter_versions(self) -> list[int]:
        return [p._version for p in self.problem.leaves]

    def _batches(self) -> Iterator[Apply]:
        if self._parameter_versions() != self._versions:
            raise SpectraError("--model: its parameters have changed since this matrix was made; make it anew")
        self.prepare()
        yield from self._terms
        yield from self._kept
        for batch in self.problem.batches[len(self._kept) :]:
            yield self._apply(batch)

    def _linearise_within_memory(self) -> list[Apply]:
        kept, largest = [], 0
        vector = self.problem.size * self.dtype.itemsize  # a gradient, or J'u, that the batch's product holds
        for batch in self.problem.batches:
            if self.kept_bytes + largest > self.memory:
                break
            with count_kept_bytes(self.problem.model.parameters()) as graph_bytes:
                apply = self._apply(batch)
            size = graph_bytes() + vector
            if self.kept_bytes + size > self.memory:
                break
            kept.append(apply)
            self.kept_bytes, largest = self.kept_bytes + size, max(largest, size)
        return kept

    def _apply(self, batch: Batch) -> Apply:
        return self.linearise(self.problem, batch)


def less_outer_product(g: Tensor) -> Apply:
    """-g g'."""
    return lambda vector: -g * (g @ vector)


def bytes_per_example(problem: Problem) -> float:
    """What the graph of the Hessian keeps for one example, from the problem's first batch."""
    batch, linearise = problem.batches[0], resolve_name(MATRICES["hessian"].path)
    counted = count_kept_bytes(problem.model.parameters())
    with twice_differentiable(problem.model), explained(), counted as graph_bytes:
        apply = linearise(problem, batch)  # holds the graph
        kept = graph_bytes()
        del apply
    return kept / len(batch)
