"""Deviations of the gradients of single examples from their mean, x_i = g_i - g, and products with their matrix X.

    C  =  X'X / N,     tr(HC)  =  tr(X H X') / N,     X the x_i as rows (N, n), C the covariance of gradients

No x_i is stored. X v and X'w each take one pass over the data. Squares |x_i|^2 come from the factor of C. Examples are
in the order of their indices, so that random vectors over them depend neither on batches nor on ranks. For whole items
of the data, such as sequences of tokens, g_i is the item's part of g times the number of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.curvature.checks.model_checks import refuse_one_example, refuse_unfit
from spectra.curvature.definition import loss_gradient, scaled
from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import explained, gradient, twice_differentiable
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.factor.gram import Factor
from spectra.curvature.operator import Curvature
from spectra.devices import device_of_vectors
from spectra.directions.spread import gathered, per_example
from spectra.errors import SpectraError
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.operator import SymmetricOperator, placed
from spectra.problem.problem import Problem
from spectra.vectors import dot, full_tensor

COVARIANCE = "gradient-covariance"
EACH = 3  # vectors (n,) in memory for each column of a product: X'w, its image, and one of a backward pass


@dataclass
class Deviations:
    """The deviations x_i at one point, with the number of passes over the data that they took.

    A pass J v or J'u over all data counts as half a product, as in the factor.
    """

    problem: Problem  # without weight decay, which shifts all gradients equally
    mean: Tensor  # g (n,), whole
    factor: Factor  # of C
    kept: list[Tensor]  # for each batch of this process a mask (E,) of the rows that are examples
    order: Tensor  # (N,), sorts all examples by index
    passes: float
    items: Tensor | None = None  # (N,), the number of each example's item, in this order; None: single examples

    @classmethod
    def of(cls, problem: Problem, memory: int | None = None, check: bool = True, by_item: bool = False) -> Deviations:
        """The deviations at the current parameters, for single examples or for whole items.

        Raises SpectraError if single examples have no gradients of their own, or if there is only one.
        """
        plain = replace(problem, weight_decay=0.0)
        with twice_differentiable(plain.model), explained():
            refuse_unfit(plain)
        refuse_one_example(plain, COVARIANCE)
        factor = Curvature(plain, COVARIANCE, memory, check=check).factor()
        kept, indices = [], [torch.zeros(0, dtype=torch.float64)]
        with twice_differentiable(plain.model), explained(), torch.no_grad():
            for batch in own_batches(plain):
                rows = plain.rows(batch)
                plain.check(rows, batch)
                kept.append(plain.counted(rows, batch).cpu())
                places = torch.arange(len(rows) // len(batch)) / max(1, len(rows))  # order the rows of a sequence
                each = batch.indices.cpu().double()[:, None] + places
                indices.append(each.flatten()[kept[-1]])
        places = joined(torch.cat(indices)[None], plain)[0]
        order, items = places.argsort(stable=True), None
        if by_item:
            items = places[order].floor().unique(return_inverse=True)[1]
            if not items[-1]:
                raise SpectraError("`by` item: a covariance needs two items or more; use more `samples`")
        return cls(plain, mean_gradient(plain), factor, kept, order, passes=1, items=items)

    @property
    def count(self) -> int:
        """The number N of examples, or of items."""
        return len(self.order) if self.items is None else int(self.items[-1]) + 1

    @property
    def products(self) -> float:
        """The cost so far, in products."""
        return self.passes / 2 + self.factor.products

    def squares(self) -> Tensor:
        """The squares |x_i|^2 (N,) of single examples, exact, in float64."""
        squares = self.count * joined(self.factor.squares()[None], self.problem)[0, self.order]
        return (squares - 2 * self._slopes([self.mean])[0] + dot(self.mean, self.mean)).clamp(min=0)

    def times(self, vectors: Sequence[Tensor]) -> Tensor:
        """The products X v (k, N) with k vectors (n,), in float64."""
        slopes = self._slopes(vectors)
        return slopes - slopes.mean(dim=1, keepdim=True)

    def transposed_times(self, weights: Tensor) -> Tensor:
        """The products X'w (k, n) with the rows w of `weights` (k, N), whole on every process."""
        problem = self.problem
        given = weights.cpu().double()
        own = self._own(given if self.items is None else given[:, self.items])
        totals = torch.zeros(len(weights), problem.size, dtype=problem.dtype, device=problem.device)
        with twice_differentiable(problem.model), explained():
            for batch, kept in zip(own_batches(problem), self.kept, strict=True):
                rows = problem.rows(batch)
                slope = loss_gradient(problem, batch, rows)[1]
                each = torch.zeros(len(weights), len(kept), dtype=torch.float64)
                each[:, kept], own = own[:, : int(kept.sum())], own[:, int(kept.sum()) :]
                for total, w in zip(totals, each.to(slope), strict=True):
                    total += problem.vector(gradient(rows, problem.leaves, scaled(w[:, None], slope)))
        self.passes += len(weights)
        sums = problem.processes.total(totals).to(self.mean) * (self.count / problem.weight)
        return sums - weights.sum(dim=1).to(self.mean)[:, None] * self.mean

    def curvatures(self, name: str, directions: Sequence[Tensor]) -> Tensor:
        """The curvatures d'A_i d (k, N) of all examples for k directions, in float64, where A is the mean of the A_i.

        Raises SpectraError if a layer has no third derivative, which the Hessian needs here.
        """
        self.passes += 4 * len(directions)
        return self._by_unit(torch.from_numpy(per_example(self.problem, name, directions)[0])[:, self.order])

    def _slopes(self, directions: Sequence[Tensor]) -> Tensor:
        self.passes += len(directions)
        slopes = per_example(self.problem, "fisher-empirical", directions)[1]
        return self._by_unit(torch.from_numpy(slopes)[:, self.order])

    def _by_unit(self, values: Tensor) -> Tensor:
        """Values (k, N) of single examples unchanged, or summed by item and scaled to keep their mean."""
        if self.items is None:
            return values
        sums = values.new_zeros(len(values), self.count).index_add(1, self.items, values)
        return sums * (self.count / values.shape[1])

    def _own(self, numbers: Tensor) -> Tensor:
        """The part of the numbers (k, N) for the examples of this process, in its order."""
        counts = [0.0] * self.problem.processes.count
        counts[self.problem.processes.rank] = float(sum(int(kept.sum()) for kept in self.kept))
        first = int(sum(self.problem.processes.totals(*counts)[: self.problem.processes.rank]))
        as_gathered = torch.empty_like(numbers)
        as_gathered[:, self.order] = numbers
        return as_gathered[:, first:]


@dataclass
class BetweenExamples:
    """The matrix X H X' / N over examples, (N, N), with trace tr(HC); without H, X X' / N, with trace tr C.

    A product takes one product with H and two passes over the data.
    """

    deviations: Deviations
    operator: SymmetricOperator | None = None  # H

    @property
    def shape(self) -> torch.Size:
        """The shape (N, N)."""
        return torch.Size((self.deviations.count, self.deviations.count))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of vectors."""
        return self.deviations.problem.dtype

    @property
    def device(self) -> torch.device:
        """The device of vectors."""
        return device_of_vectors(self.deviations.problem.device)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with a vector (N,), or with the columns of (N, k)."""
        rows = vectors[None] if vectors.ndim == 1 else vectors.T
        width = columns(fitting_vectors(self.operator), EACH) if self.operator is not None else 1
        found = [self.deviations.times(self._images(some)) for some in rows.split(width)]
        return (torch.cat(found).to(vectors) / self.deviations.count).T.reshape(vectors.shape)

    def _images(self, weights: Tensor) -> Sequence[Tensor]:
        sums = self.deviations.transposed_times(weights)
        return list(sums) if self.operator is None else images(self.operator, sums)


def images(operator: SymmetricOperator, vectors: Tensor) -> list[Tensor]:
    """The products of the operator with rows (k, n), each whole on every process."""
    return list(full_tensor(operator @ placed(vectors, operator).T).T)


def joined(part: Tensor, problem: Problem) -> Tensor:
    """The numbers (k, N) of the examples of all processes, in the order of `per_example`."""
    return gathered(part[None].cpu(), problem.processes)[0]
