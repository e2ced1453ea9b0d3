"""Extremal eigenpairs by Lanczos: tested at every step, restarted when memory binds, searched for what was missed.

One random start sees one copy of a multiple eigenvalue. So once the wanted pairs have converged, a fresh random
direction is sent into the orthogonal complement of everything searched so far. A missed copy lies there whole; and
the theorem of Kuczynski and Wozniakowski (1992) bounds what a few steps from a random start can still overlook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.krylov.blocks import fitting_vectors
from spectra.krylov.bounds import allowed_residuals, complement_bounds, kato_temple, true_residuals
from spectra.krylov.lanczos import begin, random_start
from spectra.krylov.results import Eigenpairs, Progress, no_eigenpairs, select
from spectra.operator import Counting, SymmetricOperator
from spectra.vectors import mapped, norm, norms, taken

SMALL = 128  # rows; all of them cost less than a doubt whether a copy was missed
LARGEST_BASIS = 300  # vectors; beyond it the projected problems cost more than restarts save


def eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = 1e-3,
    generator: torch.Generator,
    max_products: int | None = None,
    largest_basis: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """`k` eigenpairs at the end(s) of the spectrum that `which` names (LM, LA, SA, BE).

    A pair has converged when its residual |Au - lambda u| is at most tolerance * max(|lambda|, eps^(2/3) |A|).
    Residuals follow from the law of the Lanczos basis; one more product measures how far rounding has taken the
    basis from that law, and is added to them. `max_products` is 1000 + 20 k unless given: eigenvalues that crowd
    together may need more, and `converged` says so. The basis is restarted at `largest_basis` vectors, by default
    300 or what a quarter of the device's memory holds. Raises SpectraError when k > n.
    """
    largest_basis = fitting_basis(operator) if largest_basis is None else largest_basis
    max_products = 1000 + 20 * k if max_products is None else max_products
    search = Search(Counting(operator), k, which, tolerance, generator, max_products, largest_basis, progress)
    pairs = search.run()
    if search.multiple:
        pairs = search.validate(pairs)
    return replace(pairs, products=search.operator.products)


@dataclass
class Search:
    operator: Counting
    k: int
    which: str
    tolerance: float
    generator: torch.Generator
    max_products: int
    largest_basis: int
    progress: Progress | None
    multiple: bool = False  # whether a search of the complement has found a missed copy

    def run(self) -> Eigenpairs:
        n = self.operator.shape[0]
        if self.k > n:
            raise SpectraError(f"-k: {self.k} eigenvalues of a matrix with {n} rows; ask for at most {n}")
        self.kept = self.k + math.ceil(self.k / 2) + 1
        self.capacity = min(n, max(self.largest_basis, 2 * self.kept + 20))
        self.state = begin(self.operator, random_start(self.operator, self.generator), capacity=self.capacity)
        self.values, self.coordinates, self.residuals = self.state.ritz()
        bounds, found = None, True
        while found and self.converge():
            before = self.values[self.wanted()]
            bounds = self.search_complement()
            found = not self.wanted_converged() or self.differ(self.values[self.wanted()], before)
            self.multiple |= found
        if bounds and not self.inside(bounds) and self.state.dimension <= min(SMALL, self.capacity):
            self.finish()
        return self.answer(bounds)

    def differ(self, values: Tensor, before: Tensor) -> bool:
        """Whether the wanted values have changed by more than their tolerance and rounding."""
        return bool(((values - before).abs() > self.allowed(values) + self.rounding()).any())

    def rounding(self) -> float:
        """What rounding may leave of a zero."""
        return 10 * torch.finfo(self.operator.dtype).eps * self.state.scale

    def converge(self) -> bool:
        """Extend until every wanted pair has converged; False where the budget ends first."""
        while not self.wanted_converged():
            if self.spent():
                return False
            if not len(self.state.pending):
                if self.state.exhausted:
                    return True
                self.state.start(random_start(self.operator, self.generator))
            if self.state.size >= self.capacity and self.state.size < self.state.dimension:
                self.restart(self.kept)
            self.extend_until_test()
            self.observe()
        return True

    def extend_until_test(self) -> None:
        """One product between tests of convergence, until the eigenproblem of T is no longer cheap."""
        self.state.extend(self.operator, self.neediest())
        for _ in range(min(self.state.size // 50, self.capacity - self.state.size)):
            if len(self.state.pending) == 1 and not self.spent():
                self.state.extend(self.operator)

    def search_complement(self) -> tuple[float, float] | None:
        """Bounds (probability 0.99) of the matrix on the complement of the basis; stops at once on a find.

        None where the budget or the complement is empty. Of a complement that is no larger than the search, or all
        pending, everything is taken into the basis. Else a Lanczos run of its own goes through the complement,
        pending directions included: what rounding makes pending leans towards a missed copy.
        """
        steps = max(12, self.state.size // 4)
        if self.capacity < min(self.state.size + steps, self.state.dimension):
            self.restart(self.kept)
        first, dimension = self.state.size, self.state.dimension - self.state.size
        if dimension <= steps or self.state.exhausted:
            self.finish()
            return None
        along = self.state.start(random_start(self.operator, self.generator))
        bounds = None
        for step in range(1, steps + 1):
            if self.spent():
                return bounds
            self.state.align(along)
            self.state.extend(self.operator)
            self.observe()
            if not self.wanted_converged():
                return None
            along = self.state.coupling[:, -1].clone()
            ended = torch.linalg.vector_norm(along) <= self.rounding()
            values = self.state.ritz(first)[0]
            bounds = complement_bounds(values, step, dimension, bool(ended))
            if ended or self.inside(bounds):
                return bounds
        return bounds

    def finish(self) -> None:
        """Take all that is left of the space into the basis."""
        while not self.whole and not self.spent():
            if not len(self.state.pending):
                self.state.start(random_start(self.operator, self.generator))
            self.state.extend(self.operator)

    def validate(self, pairs: Eigenpairs) -> Eigenpairs:
        """Once a copy was missed: runs of their own on what the pairs leave of the matrix (McCombs, Stathopoulos 2006).

        Of several copies one may lie half inside the basis and half outside, where a search of its complement is
        blind. Returns the pairs with those that had been missed; not `complete` where the budget ended before.
        """
        while pairs.converged and not self.whole:
            values, vectors = self.leftover(pairs)
            if values is None:
                return replace(pairs, complete=False)
            everything = torch.cat([pairs.values, values])
            best = select(everything, self.k, self.which)
            if not self.differ(everything[best], pairs.values):
                break
            chosen = best[best >= self.k] - self.k
            residuals = torch.zeros(len(everything), dtype=torch.float64)
            residuals[: self.k] = pairs.residuals
            new = true_residuals(self.operator, values[chosen], taken(vectors, chosen))
            residuals[self.k + chosen] = new
            residuals = residuals[best]
            pairs = replace(
                pairs,
                values=everything[best],
                vectors=taken(torch.cat([pairs.vectors, vectors]), best),
                residuals=residuals,
                error_estimates=residuals,  # what is next to a multiple eigenvalue is a copy: no gap to use
                converged=bool((residuals <= self.allowed(everything[best])).all()),
            )
        return pairs

    def leftover(self, pairs: Eigenpairs) -> tuple[Tensor | None, Tensor]:
        """Converged pairs orthogonal to those given, what is wanted most among them; None where the budget ends.

        Orthogonal by Gram-Schmidt, not by Deflated, whose zeros may themselves be wanted.
        """
        start = random_start(self.operator, self.generator)
        run = begin(self.operator, start, known=(pairs.values, pairs.vectors))
        size = 2 if self.which == "BE" else 1
        while len(run.pending) and self.k + run.size < self.capacity:
            if self.spent(reserve=self.k):
                return None, pairs.vectors
            run.extend(self.operator)
            values, coordinates, residuals = run.ritz()
            converged = residuals <= self.allowed(values)
            if converged[select(values, size, self.which)].all():
                break
        good = converged.nonzero().flatten()
        return values[good], run.vectors(coordinates[:, good])

    @property
    def whole(self) -> bool:
        """Whether the basis spans the whole space: nothing can have been missed."""
        return self.state.size == self.state.dimension

    def wanted(self) -> Tensor:
        return select(self.values, self.k, self.which)

    def wanted_converged(self) -> bool:
        if self.state.size == 0:
            return False
        self.values, self.coordinates, self.residuals = self.state.ritz()
        wanted = self.wanted()
        return len(wanted) == self.k and bool((self.residuals[wanted] <= self.allowed(self.values[wanted])).all())

    def allowed(self, values: Tensor) -> Tensor:
        return allowed_residuals(values, self.values.abs().max().item(), self.tolerance, self.operator.dtype)

    def neediest(self) -> int:
        """The pending direction that holds most of the residuals of wanted pairs."""
        if self.state.size == 0 or len(self.state.pending) == 1:
            return -1
        held = self.state.coupling @ self.coordinates[:, self.wanted()]
        return int(held.square().sum(dim=1).argmax())

    def restart(self, kept: int) -> None:
        """Thick restart (Wu, Simon 2000): keep the best Ritz vectors."""
        values, coordinates, _ = self.state.ritz()
        self.state.restart(coordinates[:, select(values, kept, self.which)])
        self.values, self.coordinates, self.residuals = self.state.ritz()

    def inside(self, bounds: tuple[float, float]) -> bool:
        """Whether nothing within the bounds would be among the wanted."""
        listed = self.values[self.wanted()]
        lower, upper = bounds
        if self.which == "LM":
            return max(abs(lower), abs(upper)) < listed.abs().min().item()
        top, bottom = (math.ceil(self.k / 2), self.k // 2) if self.which == "BE" else (self.k, self.k)
        above = self.which == "SA" or upper < listed[top - 1]
        below = self.which == "LA" or not bottom or lower > listed[-1]
        return bool(above and below)

    def spent(self, reserve: int = 1) -> bool:
        """Whether products are no longer finite, or no more than `reserve` are left; one serves the answer's check."""
        return not self.state.finite or self.operator.products + reserve >= self.max_products

    def observe(self) -> None:
        if self.progress and len(self.wanted()):
            residuals = self.residuals[self.wanted()]
            good = int((residuals <= self.allowed(self.values[self.wanted()])).sum())
            worst = residuals.max().item()
            self.progress(products=self.operator.products, converged=good, wanted=self.k, residual=worst)

    def answer(self, bounds: tuple[float, float] | None) -> Eigenpairs:
        if self.state.size == 0 or not self.state.finite:
            found = 0 if self.state.finite else self.k
            return no_eigenpairs(self.operator, found, self.operator.products)
        self.values, self.coordinates, self.residuals = self.state.ritz()
        wanted = self.wanted()
        values, coordinates = self.values[wanted], self.coordinates[:, wanted]
        vectors = self.state.vectors(coordinates)
        lengths = norms(vectors, dtype=vectors.dtype)[:, None]
        vectors = mapped(lambda rows: rows / lengths, vectors)
        residuals = torch.hypot(self.residuals[wanted], self.departure(values, coordinates, vectors))
        allowed = self.allowed(values)
        if (residuals > allowed).any() and self.operator.products + len(wanted) <= self.max_products:
            residuals = true_residuals(self.operator, values, vectors)
        return Eigenpairs(
            values=values,
            vectors=vectors,
            residuals=residuals,
            error_estimates=kato_temple(values, residuals, self.values),
            products=self.operator.products,
            converged=len(wanted) == self.k and bool((residuals <= allowed).all()),
            complete=self.whole or (None if bounds is None else self.inside(bounds)),
            complement=bounds,
        )

    def departure(self, values: Tensor, coordinates: Tensor, vectors: Tensor) -> Tensor:
        """How far A V's is from V'T s + Q'C s, in norm: all wanted pairs at once, by one product.

        For random signs g the expected square of |E S g| is the sum of the squares of |E s_i|.
        """
        signs = 2.0 * torch.randint(2, (len(values),), generator=self.generator) - 1
        outside = self.state.coupling @ coordinates @ signs.double()

        def combined(weights: Tensor, rows: Tensor) -> Tensor:
            return mapped(weights.to(vectors.device, vectors.dtype).matmul, rows)

        expected = combined(signs * values, vectors) + combined(outside, self.state.pending)
        image = self.operator @ combined(signs, vectors).contiguous()
        return torch.tensor(norm(image - expected), dtype=torch.float64)


def fitting_basis(operator: SymmetricOperator) -> int:
    return min(LARGEST_BASIS, fitting_vectors(operator))
