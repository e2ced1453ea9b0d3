"""The solver for extremal eigenpairs: Lanczos with thick restarts, and a search for eigenpairs that were missed.

Convergence is tested at every step. One random start sees one copy of a multiple eigenvalue. So once the wanted pairs
have converged, a Lanczos run from a fresh random vector searches the orthogonal complement of the basis. A missed copy
lies entirely in it, and the eigenvalues that a few steps from a random start may overlook are bounded
(`spectra.krylov.bounds.complement_bounds`).

A search may start from approximate eigenvectors (`starts`), and may leave out the search of the complement
(`check_complement`), so that missed pairs are not excluded (`spectra.krylov.warm_start`).

The solver works by reverse communication (`spectra.krylov.reverse_communication`), so several solvers may share one
product (`spectra.krylov.block_diagonal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.krylov.blocks import EACH, columns, fitting_vectors
from spectra.krylov.bounds import complement_bounds, kato_temple, residual_norms
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.lanczos import Lanczos, begin, random_start
from spectra.krylov.limits import refuse_k
from spectra.krylov.results import Eigenpairs, Progress, no_eigenpairs, select
from spectra.krylov.reverse_communication import ReverseCommunication
from spectra.operator import SymmetricOperator
from spectra.vectors import local, map_shards, norms, on_device, sum_pieces, take_rows

SMALL = 128  # rows up to which the basis is extended to the whole space, if missed copies are not excluded otherwise
PENDING = 3  # rows of memory besides the basis: two pending directions and room for the next
FEWEST_STEPS = 4  # of a search of the complement; fewer would exclude almost nothing


def vectors_held(k: int, capacity: int) -> int:
    """The peak number of vectors in memory in a search for k eigenpairs, with a basis of `capacity` vectors.

    At the end these include the eigenvectors, and the product that checks them.
    """
    return capacity + PENDING + k + 1


def usual_products(k: int) -> int:
    """The number of products that is usually enough for k eigenpairs."""
    return 20 + 3 * k


def usual_basis(k: int) -> int:
    """The number of basis vectors with which restarts cost few additional products, for k eigenpairs."""
    return 2 * kept_vectors(k) + 20


def least_basis(k: int) -> int:
    """The smallest number of basis vectors with which restarts work, for k eigenpairs; they then cost many products."""
    return k + 3


def kept_vectors(k: int, capacity: int | None = None) -> int:
    """The number of Ritz vectors that a restart keeps, for a basis of `capacity` vectors; None: a large basis."""
    usual = k + math.ceil(k / 2) + 1
    return usual if capacity is None else min(usual, k + max(1, (capacity - k) // 3))


@dataclass
class Eigensolver:
    """One computation of eigenpairs; `solve` runs it.

    Of the operator, only shape, dtype and device are used. Fields without a comment are arguments of `eigenpairs`.
    """

    operator: SymmetricOperator
    k: int
    which: str
    tolerance: float
    generator: torch.Generator
    max_products: int
    capacity: int  # basis vectors at which the method restarts
    progress: Progress | None
    place: torch.device | None = None  # the device that holds the basis; None: the operator's device
    floor: float = 0.0  # smallest residual asked for; above 0 for noisy products, with residuals measured elsewhere
    starts: Tensor | None = None  # (j, n), start vectors as rows; None: one random vector
    check_complement: Callable[[], bool] = lambda: True  # whether to search it, once the wanted pairs have converged
    multiple: bool = False  # whether a search of the complement has found a missed copy
    products: int = 0

    def multiply(self, vectors: Tensor) -> ReverseCommunication:
        """Request the product with vectors (n,) or (n, j)."""
        self.products += 1 if vectors.ndim == 1 else vectors.shape[1]
        return (yield vectors)

    def extend(self, state: Lanczos, index: int = -1) -> ReverseCommunication:
        """Extend a Lanczos run by one product, with the pending direction of this index."""
        state.absorb((yield from self.multiply(state.take(index))))

    def residuals_of(self, values: Tensor, vectors: Tensor) -> ReverseCommunication:
        """The residuals |A u - lambda u| (k,) of unit vectors (k, n), by k products in blocks that fit memory."""
        widest, found = columns(fitting_vectors(self.operator), EACH), []
        for first in range(0, len(vectors), widest):
            some = on_device(vectors[first : first + widest], self.operator.device)
            images = yield from self.multiply(some.T)
            found.append(residual_norms(images.T, values[first : first + widest], some))
            del images
        return torch.cat(found)

    def solve(self) -> ReverseCommunication:
        """Compute the eigenpairs, including copies that the first search missed."""
        pairs = yield from self.search()
        if self.multiple:
            if not self.floor:
                self.state.release()
            pairs = yield from self.validate(pairs)
        return replace(pairs, products=self.products)

    def search(self) -> ReverseCommunication:
        """Search from random starts until the wanted pairs have converged and the complement holds no better ones."""
        n = self.operator.shape[0]
        refuse_k(self.k, n)
        self.capacity = min(n, max(self.capacity, least_basis(self.k)))
        self.kept = kept_vectors(self.k, self.capacity)
        if self.warm:
            yield from self.begin_warm()
        else:
            self.state = self.begin(self.capacity)
        self.values, self.coordinates, self.residuals = self.state.ritz()

        bounds = searched = None
        while (yield from self.converge()):
            values = self.values[self.wanted()]
            if not self.check_complement() if searched is None else self.unchanged(values, searched):
                break
            self.multiple |= searched is not None
            searched = values
            bounds = yield from self.search_complement()

        if bounds and not self.excludes_better(bounds) and self.state.dimension <= min(SMALL, self.capacity):
            yield from self.finish()
        return (yield from self.result(bounds))

    @property
    def warm(self) -> bool:
        """Whether there are start vectors, and the basis has room for them and a residual of each."""
        room = self.capacity if self.capacity < self.operator.shape[0] else math.inf
        return self.starts is not None and 2 * len(self.starts) <= room and self.max_products > 1

    def begin_warm(self) -> ReverseCommunication:
        """Add the start vectors to the basis, multiplied several at a time."""
        assert self.starts is not None
        starts = self.starts[: self.max_products - 1]
        self.state = self.begin(self.capacity, start=starts[0])
        for vector in starts[1:]:
            self.state.start(vector)
        widest = columns(fitting_vectors(self.operator), EACH)
        for first in range(0, len(starts), widest):
            for _ in starts[first : first + widest]:
                self.state.take(0)
            images = yield from self.multiply(on_device(self.state.basis[first:], self.operator.device).T)
            for index, image in enumerate(images.T, start=first):
                self.state.correct(index, image)
            del images

    def begin(self, capacity: int, known: tuple[Tensor, Tensor] | None = None, start: Tensor | None = None) -> Lanczos:
        """Begin a run from a start vector, by default random, with memory for the usual number of vectors at most."""
        start = random_start(self.operator, self.generator) if start is None else start
        rows = min(capacity, usual_products(self.k)) + PENDING
        return begin(self.operator, start, known=known, rows=rows, capacity=capacity, place=self.place)

    def unchanged(self, values: Tensor, before: Tensor) -> bool:
        """Whether wanted values have changed by no more than their tolerance and rounding; nan counts as changed."""
        return bool(((values - before).abs() <= self.allowed(values) + self.rounding()).all())

    def rounding(self) -> float:
        """The size up to which a number may be the rounding error of zero."""
        return 10 * torch.finfo(self.operator.dtype).eps * self.state.scale

    def converge(self) -> ReverseCommunication:
        """Extend the basis until every wanted pair has converged. Returns False where the budget ends first."""
        while not self.wanted_converged():
            if self.out_of_budget():
                return False
            if not len(self.state.pending):
                if self.state.exhausted:
                    return True
                self.state.start(random_start(self.operator, self.generator))
            if self.full and self.state.size < self.state.dimension:
                self.restart(self.kept)

            yield from self.extend_until_test()
            self.report()
        return True

    @property
    def full(self) -> bool:
        """Whether the basis, with all pending directions except one, has reached its capacity."""
        return self.state.size + max(0, len(self.state.pending) - 1) >= self.capacity

    def extend_until_test(self) -> ReverseCommunication:
        """Extend the basis up to the next test: by one product, or by more once the eigenproblem of T is not cheap."""
        yield from self.extend(self.state, self.most_needed())
        for _ in range(min(self.state.size // 50, self.capacity - self.state.size)):
            if len(self.state.pending) == 1 and not self.out_of_budget():
                yield from self.extend(self.state)

    def search_complement(self) -> ReverseCommunication:
        """Bound the matrix on the complement of the basis, with probability 0.99, unless a better pair is found.

        A small complement, or one spanned by pending directions, is added to the basis. Otherwise a separate Lanczos
        run searches the complement, including pending directions: those that came from rounding lean towards a missed
        copy.

        Returns:
            The bounds (lower, upper); None if the budget ended or nothing is left to search, a better pair was found,
            or memory has no room for a search.
        """
        steps = max(16, self.state.size // 4)
        if self.capacity < min(self.state.size + steps, self.state.dimension):
            beside = self.capacity - len(self.state.pending)
            kept = self.kept if self.kept + steps <= beside else self.k
            if (steps := min(steps, beside - kept)) < FEWEST_STEPS:
                return None
            self.restart(kept)
        first, dimension = self.state.size, self.state.dimension - self.state.size
        if dimension <= steps or self.state.exhausted:
            yield from self.finish()
            return None

        along = self.state.start(random_start(self.operator, self.generator))
        bounds, before = None, self.values[self.wanted()]
        for _ in range(steps):
            if self.out_of_budget():
                return bounds
            self.state.align(along)
            yield from self.extend(self.state)
            self.report()
            if not self.wanted_converged() and not self.unchanged(self.values[self.wanted()], before):
                return None

            along = self.state.coupling[:, -1].clone()
            length = torch.linalg.vector_norm(along).item()
            coupling = length if length > self.rounding() else 0.0
            bounds = complement_bounds(self.state.projected[first:, first:], coupling, dimension)
            if not coupling or self.excludes_better(bounds):
                return bounds
        return bounds

    def finish(self) -> ReverseCommunication:
        """Extend the basis to the whole space."""
        while not self.spans_space and not self.out_of_budget():
            if not len(self.state.pending):
                self.state.start(random_start(self.operator, self.generator))
            yield from self.extend(self.state)

    def validate(self, pairs: Eigenpairs) -> ReverseCommunication:
        """Search for further missed copies by new runs on the complement of the pairs (McCombs, Stathopoulos 2006).

        One of several copies may lie partly inside the basis, where a search of the basis' complement does not find it.

        Returns:
            The pairs, including those that had been missed; `complete` is False if the budget ended first.
        """
        while pairs.converged and not self.spans_space:
            values, vectors = yield from self.complement_pairs(pairs)
            if values is None:
                return replace(pairs, complete=False)

            everything = torch.cat([pairs.values, values])
            best = select(everything, self.k, self.which)
            if self.unchanged(everything[best], pairs.values):
                break

            chosen = best[best >= self.k] - self.k
            residuals = torch.zeros(len(everything), dtype=torch.float64)
            residuals[: self.k] = pairs.residuals
            if not self.floor:
                residuals[self.k + chosen] = yield from self.residuals_of(values[chosen], take_rows(vectors, chosen))
            residuals = residuals[best]

            pairs = replace(
                pairs,
                values=everything[best],
                vectors=take_rows(torch.cat([pairs.vectors, vectors]), best),
                residuals=residuals,
                error_estimates=residuals,  # the neighbour of a multiple eigenvalue is a copy, so there is no gap
                converged=bool((residuals <= self.allowed(everything[best])).all()),
            )
        return pairs

    def complement_pairs(self, pairs: Eigenpairs) -> ReverseCommunication:
        """Find converged pairs orthogonal to those given, the most wanted first; values are None if the budget ends.

        The run is orthogonalised against the given vectors. `Deflated` would add zero eigenvalues, which may be wanted.
        """
        run = self.begin(self.capacity - self.k, known=(pairs.values, pairs.vectors))
        size = 2 if self.which == "BE" else 1
        values, coordinates, residuals = run.ritz()
        while len(run.pending) and self.k + run.size < self.capacity:
            if self.out_of_budget(reserve=self.k):
                return None, pairs.vectors
            yield from self.extend(run)
            values, coordinates, residuals = run.ritz()
            if (residuals <= self.allowed(values))[select(values, size, self.which)].all():
                break

        good = (residuals <= self.allowed(values)).nonzero().flatten()
        return values[good], run.vectors(coordinates[:, good])

    @property
    def spans_space(self) -> bool:
        """Whether the basis spans the whole space, so that nothing can have been missed."""
        return self.state.size == self.state.dimension

    def wanted(self) -> Tensor:
        """The indices of the wanted Ritz values, in the order asked for."""
        return select(self.values, self.k, self.which)

    def wanted_converged(self) -> bool:
        """Update the Ritz pairs, and return whether all wanted ones have converged."""
        if self.state.size == 0:
            return False
        self.values, self.coordinates, self.residuals = self.state.ritz()
        wanted = self.wanted()
        return len(wanted) == self.k and bool((self.residuals[wanted] <= self.allowed(self.values[wanted])).all())

    def allowed(self, values: Tensor) -> Tensor:
        """The largest residuals of converged pairs with these values."""
        allowed = allowed_residuals(values, self.values.abs().max().item(), self.tolerance, self.operator.dtype)
        return allowed.clamp(min=self.floor)

    def most_needed(self) -> int:
        """The index of the pending direction that holds most of the residuals of wanted pairs."""
        if self.state.size == 0 or len(self.state.pending) == 1:
            return -1
        held = self.state.coupling @ self.coordinates[:, self.wanted()]
        if self.warm and held.any():  # each start has a pending direction: rotate them, so that one holds most
            self.state.align(torch.linalg.svd(held).U[:, 0])
            return -1
        return int(held.square().sum(dim=1).argmax())

    def restart(self, kept: int) -> None:
        """Restart with the `kept` best Ritz vectors (thick restart: Wu, Simon 2000)."""
        values, coordinates, _ = self.state.ritz()
        self.state.restart(coordinates[:, select(values, kept, self.which)])
        self.values, self.coordinates, self.residuals = self.state.ritz()

    def excludes_better(self, bounds: tuple[float, float]) -> bool:
        """Whether no value within the bounds would be among the wanted ones."""
        return are_outside(self.values[self.wanted()], bounds, self.which)

    def out_of_budget(self, reserve: int = 1) -> bool:
        """Whether a product was not finite, or at most `reserve` products are left; one is kept to check the answer."""
        return not self.state.finite or self.products + reserve >= self.max_products

    def report(self) -> None:
        """Call `progress` with the products so far, the number of converged pairs and the largest residual."""
        if self.progress and len(self.wanted()):
            residuals = self.residuals[self.wanted()]
            good = int((residuals <= self.allowed(self.values[self.wanted()])).sum())
            worst = residuals.max().item()
            self.progress(products=self.products, converged=good, wanted=self.k, residual=worst)

    def result(self, bounds: tuple[float, float] | None) -> ReverseCommunication:
        """The wanted pairs as they are now, with their residuals."""
        if self.state.size == 0 or not self.state.finite:
            found = 0 if self.state.finite else self.k
            return no_eigenpairs(self.operator, found, self.products)

        self.values, self.coordinates, self.residuals = self.state.ritz()
        wanted = self.wanted()
        values, coordinates = self.values[wanted], self.coordinates[:, wanted]
        others = torch.ones(len(self.values), dtype=torch.bool)
        others[wanted] = False
        others = self.values[others]
        vectors = self.state.vectors(coordinates)
        lengths = norms(vectors).to(vectors.dtype)[:, None]
        local(vectors).div_(lengths)

        residuals = self.residuals[wanted]
        if not self.floor:
            residuals = torch.hypot(residuals, (yield from self.relation_error(values, coordinates, vectors)))
        allowed = self.allowed(values)
        if (residuals > allowed).any() and self.products + len(wanted) <= self.max_products:
            residuals = yield from self.residuals_of(values, vectors)

        return Eigenpairs(
            values=values,
            vectors=vectors,
            residuals=residuals,
            error_estimates=kato_temple(values, residuals, self.values),
            products=self.products,
            converged=len(wanted) == self.k and bool((residuals <= allowed).all()),
            complete=self.spans_space or (None if bounds is None else self.excludes_better(bounds)),
            complement=bounds,
            beside=(others.min().item(), others.max().item()) if len(others) else None,
        )

    def relation_error(self, values: Tensor, coordinates: Tensor, vectors: Tensor) -> ReverseCommunication:
        """Measure the violation |A V's - V'T s - Q'C s| of the Lanczos relation, for all wanted pairs by one product.

        For random signs g, the expected square of |E S g| is the sum of the squares of |E s_i|.
        """
        signs = 2.0 * torch.randint(2, (len(values),), generator=self.generator) - 1
        outside = self.state.coupling @ coordinates @ signs.double()
        rows = (vectors, self.state.pending)
        along, across = (weights.to(vectors.device, vectors.dtype) for weights in (signs * values, outside))

        def off(image: Tensor, vectors: Tensor, pending: Tensor) -> Tensor:
            return torch.linalg.vector_norm(image - along @ vectors - across @ pending, dtype=torch.float64).square()

        mixing = signs.to(vectors.device, vectors.dtype).matmul
        image = yield from self.multiply(on_device(map_shards(mixing, vectors), self.operator.device))
        return sum_pieces(off, on_device(image, vectors.device), *rows).sqrt().cpu()


def are_outside(listed: Tensor, bounds: tuple[float, float], which: str) -> bool:
    """Whether no value within the bounds would be among the `listed` ones (k,), which are in the order of `which`."""
    lower, upper = bounds
    if which == "LM":
        return max(abs(lower), abs(upper)) < listed.abs().min().item()
    k = len(listed)
    top, bottom = (math.ceil(k / 2), k // 2) if which == "BE" else (k, k)
    above = which == "SA" or upper < listed[top - 1]
    below = which == "LA" or not bottom or lower > listed[-1]
    return bool(above and below)
