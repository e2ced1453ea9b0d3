"""How far the gradients of single examples are from their mean: x_i = g_i - g, whose mean square is the covariance C.

    C  =  X'X / N,     tr(HC)  =  tr(X H X') / N,     X the x_i as rows (N, n)

No x_i is stored. X v takes one pass over the data, and so does X'w. Squares |x_i|^2 come from the factor of C.
Examples are in the order of their indices, so that random vectors over them depend neither on batches nor on ranks.
Where whole items of the data are looked at, as sequences of tokens, g_i is an item's share in g, times their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.curvature.checks.refusals import refuse_one_example, refuse_unfit
from spectra.curvature.definition import loss_gradient, scaled
from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import explained, gradient, twice_differentiable
from spectra.curvature.engine.gradients import mean_gradient
from spectra.curvature.factor.gram import Factor
from spectra.curvature.operator import Curvature
from spectra.devices import device_of_vectors
from spectra.errors import SpectraError
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.operator import SymmetricOperator, placed
from spectra.problem.problem import Problem
from spectra.surfaces.spread import gathered, per_example
from spectra.vectors import dot, full_tensor

COVARIANCE = "gradient-covariance"
EACH = 3  # vectors (n,) that a product holds for each column: X'w, its image, and what a backward pass takes


@dataclass
class Deviations:
    """The x_i at one point, with the passes over the data that were spent on them.

    A pass J v or J'u over all the data counts as half a product, as in the factor.
    """

    problem: Problem  # without weight decay, which moves all gradients alike
    mean: Tensor  # g (n,), whole
    factor: Factor  # of C
    kept: list[Tensor]  # booleans (E,) of each of this process's batches: which rows are examples
    order: Tensor  # (N,), of all examples by index
    passes: float
    items: Tensor | None = None  # (N,), the item of each example in this order, from 0 on; None: of single examples

    @classmethod
    def of(cls, problem: Problem, memory: int | None = None, check: bool = True, by_item: bool = False) -> Deviations:
        """The deviations at the parameters as they are now, of single examples or of whole items.

        Raises SpectraError where single examples have no gradients of their own, or there is only one.
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
                places = torch.arange(len(rows) // len(batch)) / max(1, len(rows))  # of a sequence, in their order
                each = batch.indices.cpu().double()[:, None] + places
                indices.append(each.flatten()[kept[-1]])
        places = joined(torch.cat(indices)[None], plain)[0]
        order, items = places.argsort(stable=True), None
        if by_item:
            items = places[order].floor().unique(return_inverse=True)[1]
            if not items[-1]:
                raise SpectraError("`by` item: one item has no covariance; take more `samples`")
        return cls(plain, mean_gradient(plain), factor, kept, order, passes=1, items=items)

    @property
    def count(self) -> int:
        """The number N of examples, or of items."""
        return len(self.order) if self.items is None else int(self.items[-1]) + 1

    @property
    def products(self) -> float:
        """What has been spent, in products."""
        return self.passes / 2 + self.factor.products

    def squares(self) -> Tensor:
        """|x_i|^2 (N,) of single examples, exact, in float64."""
        squares = self.count * joined(self.factor.squares()[None], self.problem)[0, self.order]
        return (squares - 2 * self._slopes([self.mean])[0] + dot(self.mean, self.mean)).clamp(min=0)

    def times(self, vectors: Sequence[Tensor]) -> Tensor:
        """X v for each vector (n,): (k, N), in float64."""
        slopes = self._slopes(vectors)
        return slopes - slopes.mean(dim=1, keepdim=True)

    def transposed_times(self, weights: Tensor) -> Tensor:
        """X'w for each row w of `weights` (k, N): (k, n), whole on every process."""
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
        """d'A_i d of every example, for a matrix A that is the mean of A_i: (k, N), in float64.

        Raises SpectraError where a layer has no third derivative, which those of the Hessian take.
        """
        self.passes += 4 * len(directions)
        return self._by_unit(torch.from_numpy(per_example(self.problem, name, directions)[0])[:, self.order])

    def _slopes(self, directions: Sequence[Tensor]) -> Tensor:
        self.passes += len(directions)
        slopes = per_example(self.problem, "fisher-empirical", directions)[1]
        return self._by_unit(torch.from_numpy(slopes)[:, self.order])

    def _by_unit(self, values: Tensor) -> Tensor:
        """Values (k, N) of single examples as they are, or added up by item, with the mean that they have."""
        if self.items is None:
            return values
        sums = values.new_zeros(len(values), self.count).index_add(1, self.items, values)
        return sums * (self.count / values.shape[1])

    def _own(self, numbers: Tensor) -> Tensor:
        """The numbers (k, N) of this process's examples, in its order."""
        counts = [0.0] * self.problem.processes.count
        counts[self.problem.processes.rank] = float(sum(int(kept.sum()) for kept in self.kept))
        first = int(sum(self.problem.processes.totals(*counts)[: self.problem.processes.rank]))
        as_gathered = torch.empty_like(numbers)
        as_gathered[:, self.order] = numbers
        return as_gathered[:, first:]


@dataclass
class BetweenExamples:
    """The matrix X H X' / N over examples, (N, N), whose trace is tr(HC); without H, X X' / N, whose trace is tr C.

    A product takes one with H, and two passes over the data.
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
    """The products with rows (k, n), each whole on every process."""
    return list(full_tensor(operator @ placed(vectors, operator).T).T)


def joined(part: Tensor, problem: Problem) -> Tensor:
    """The numbers (k, N) of all processes' examples, in the order of `per_example`."""
    return gathered(part[None].cpu(), problem.processes)[0]
