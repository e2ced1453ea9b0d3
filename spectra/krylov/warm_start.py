"""Eigenpairs of a matrix that changes slowly, as in training: each search starts from what the one before it found.

A Lanczos run from the sum of the old vectors has their span, but for the change, after k products. A few more bring
down all residuals together. (While a network was trained, five pairs took 12 products to a residual of 1e-3, and 17
from a random start.) One run sees one copy of a multiple eigenvalue, so vectors whose eigenvalues are close go into
sums of their own. Where the matrix hardly changes, each old vector goes into the basis instead: Rayleigh-Ritz on their
span takes k products and measures their residuals, and further products go along those that are too large, one after
the other. Which way takes fewer products is told by the search before.

What a search from old vectors may not see is an eigenvalue that has risen from below with another eigenvector. Two
things meet that. A random vector, in which such an eigenvector has its share, goes along, and with it the best Ritz
vector beside the wanted ones, into which that share grows from search to search. (In matrices of 300 to 30,000 rows an
eigenvalue that rose into the midst of the listed ones was found one to four searches later.) And a search of the
complement from a random start (`spectra.krylov.eigensolver`) is made every few times, and at once where values or
vectors have changed by much. Only that search can exclude larger eigenvalues: between two of them `complete` is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.eigensolver import Eigensolver
from spectra.krylov.results import Eigenpairs, Progress, select
from spectra.krylov.reverse_communication import serve_products
from spectra.operator import SymmetricOperator, placed, random_vectors
from spectra.vectors import map_shards, norm, norms, sum_shards, without_autocast

EVERY = 5  # searches, of which one is followed by a search of the complement
CLOSE = 0.02  # of an eigenvalue: a distance up to which another is taken for a copy of it
BESIDE = 0.03  # of the norm of an eigenvector: that of each of the two further parts of a sum
CHANCE = 0.3  # of the norm of the Ritz vector beside: that of the random part, where both are a start of their own
AGAIN = 2  # products that an old vector is expected to take where its residual is too large
JUMP = 0.2  # of an eigenvalue: a change since last time from which on the complement is searched at once
KEPT = 0.5  # of the square of an old eigenvector, which the span of the new ones is to hold


@dataclass
class WarmStart:
    """The search for the `k` eigenpairs of largest magnitude, made again and again as the matrix changes.

    Between searches (k + 1) n numbers are kept, in the memory of the host.
    """

    k: int  # may be changed between searches
    tolerance: float
    every: int = EVERY
    values: Tensor | None = None  # (k,), of the last search
    vectors: Tensor | None = None  # (k, n), the same
    beside: Tensor | None = None  # (1, n), the best Ritz vector beside these, times the matrix, of norm 1
    by_sum: int = 0  # products of the last search from a sum of vectors, or from a random one
    by_each: int = 0  # products that a search from each of the vectors would have taken last time
    since: int | None = None  # searches since the complement was last searched; None: it has not been yet
    generator: torch.Generator | None = field(default=None, repr=False)

    @property
    def due(self) -> bool:
        """Whether the next search is followed by one of the complement, whatever it finds."""
        if self.values is None or self.since is None:
            return True
        return self.k > len(self.values) or self.since + 1 >= self.every

    @property
    def one_by_one(self) -> bool:
        """Whether the next search starts from each of the old vectors, and not from sums of them.

        A search of the complement takes fewer products beside a basis that comes from a sum.
        """
        return self.vectors is not None and not self.due and 0 < self.by_each < self.by_sum

    @without_autocast()
    def eigenpairs(
        self,
        operator: SymmetricOperator,
        *,
        generator: torch.Generator,
        max_products: int | None = None,
        progress: Progress | None = None,
    ) -> Eigenpairs:
        """Compute the eigenpairs of the matrix as it is now, as `spectra.eigenpairs` does, by products in ieee.

        Args:
            operator: the matrix (n, n).
            generator: from which the first search draws; later ones go on with it, so that no two draw alike.
            max_products: the largest number of products, by default 1000 + 20 k.
            progress: called after each test of convergence.

        Returns:
            Eigenpairs. `complete` is None where the complement was not searched; `error_estimates` are then the
            residuals, since the gaps that smaller ones rest on are not known either.
        """
        self.generator = self.generator or generator
        if self.vectors is not None and self.vectors.shape[1] != operator.shape[0]:
            self.values = self.vectors = None
        place = basis_of(operator, self.k)
        search = Eigensolver(
            operator,
            self.k,
            "LM",
            self.tolerance,
            self.generator,
            1000 + 20 * self.k if max_products is None else max_products,
            place.vectors,
            progress,
            place.device,
            starts=None if self.vectors is None else self.starts(operator, self.generator),
        )
        converged = []  # after how many products

        def doubt() -> bool:
            converged.append(search.products + 1)  # one checks the answer
            left = search.state.dimension - search.state.size
            return self.vectors is None or self.due or left <= self.k or self.jumped(search)

        search.doubt = doubt
        pairs = serve_products(search.solve(), operator)
        if not len(pairs.values) or not pairs.values.isfinite().all():
            self.values = self.vectors = None
            return pairs
        self.keep(search, pairs, next(iter(converged), pairs.products))
        return pairs if pairs.complete is not None else replace(pairs, error_estimates=pairs.residuals)

    def keep(self, search: Eigensolver, pairs: Eigenpairs, spent: int) -> None:
        """Keep for the next search what this one has found, the pairs themselves by so many products."""
        if not self.one_by_one:
            self.by_sum = spent
        if self.vectors is not None:
            self.by_each = self.expected(search)
        self.values, self.vectors, self.beside = pairs.values, pairs.vectors.cpu(), best_beside(search)
        if pairs.complete is not None:
            self.since = 0
        elif self.since is not None:
            self.since += 1

    def starts(self, operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
        """The starts (j, n): the old eigenvectors and one vector more, or sums of them with two small parts more."""
        assert self.values is not None
        assert self.vectors is not None
        old = placed(self.vectors[: self.k], operator)
        beside = None if self.beside is None else placed(self.beside, operator)
        if self.one_by_one:
            further = random_unit(operator, 1, generator)
            further = (
                further if beside is None else map_shards(lambda part, chance: part + CHANCE * chance, beside, further)
            )
            return torch.cat([old, further])
        sums = map_shards(apart(self.values[: self.k]).to(old).matmul, old)
        for part in (random_unit(operator, len(sums), generator), beside):
            if part is not None:
                sums = map_shards(lambda rows, more: rows + BESIDE * more, sums, part)
        return sums

    def inside(self, search: Eigensolver) -> Tensor:
        """The coordinates (m, k) of the old eigenvectors in the basis of a search."""
        assert self.vectors is not None
        old = placed(self.vectors[: self.k], search.operator, search.state.basis.device)
        return sum_shards(lambda basis, rows: basis @ rows.T, search.state.basis, old).cpu().double()

    def jumped(self, search: Eigensolver) -> bool:
        """Whether the pairs that a search has found differ so much from the old ones that others may have risen."""
        assert self.values is not None
        wanted, before = search.wanted(), self.values[: self.k]
        if ((search.values[wanted] - before).abs() > JUMP * before.abs()).any():
            return True
        held = (search.coordinates[:, wanted].T @ self.inside(search)).square().sum(dim=0)
        return bool((held < KEPT).any())

    def expected(self, search: Eigensolver) -> int:
        """The products by which a search from each of the old vectors would have found what this one has found."""
        if search.multiple:  # the basis has been given back
            return self.by_sum
        state, inside = search.state, self.inside(search)
        values = (inside * (state.projected @ inside)).sum(dim=0)
        within = torch.linalg.vector_norm(state.projected @ inside - values * inside, dim=0)
        outside = (1 - inside.square().sum(dim=0)).clamp(min=0).sqrt() * values.abs()
        beyond = torch.linalg.vector_norm(state.coupling @ inside, dim=0)
        residuals = (within.square() + beyond.square() + outside.square()).sqrt()
        return self.k + 2 + AGAIN * int((residuals > search.allowed(values)).sum())


def random_unit(operator: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    """Random vectors (count, n) of norm 1."""
    rows = random_vectors(operator, count, generator)
    return map_shards(torch.div, rows, norms(rows, dtype=rows.dtype)[:, None])


def best_beside(search: Eigensolver) -> Tensor | None:
    """The best Ritz vector that is not among the wanted ones, times the matrix, as a row (1, n) of norm 1."""
    state = search.state
    values, coordinates, _ = state.ritz()
    if search.multiple or len(values) <= search.k:  # of several copies the basis has been given back
        return None
    best = coordinates[:, select(values, search.k + 1, search.which)[-1]]
    weights = torch.cat([state.projected, state.coupling]) @ best
    image = map_shards(lambda rows: weights.to(rows) @ rows, state.storage[: len(weights)])[None]
    size = norm(image)
    return (image / size).cpu() if size > 0 else None


def apart(values: Tensor) -> Tensor:
    """The sums into which vectors with these eigenvalues (k,) go, as rows (j, k) of zeros and ones: those of one sum
    differ by more than CLOSE.
    """
    groups: list[list[int]] = []
    for i, value in enumerate(values.tolist()):
        fitting = (g for g in groups if all(abs(values[j].item() - value) > CLOSE * abs(value) for j in g))
        group = next(fitting, None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    rows = torch.zeros(len(groups), len(values))
    for row, group in zip(rows, groups, strict=True):
        row[group] = 1
    return rows
