"""Eigenpairs of a matrix that changes slowly, as in training: each search starts from the result of the one before.

A Lanczos run from the sum of the old eigenvectors contains their span, up to the change of the matrix, after k
products. A few more products reduce all residuals together. (While a network was trained, five pairs took 12 products
to a residual of 1e-3, and 17 from a random start.) One run finds only one copy of a multiple eigenvalue, so vectors
with close eigenvalues are added to separate sums. If the matrix hardly changes, each old vector is put into the basis
instead: Rayleigh-Ritz on their span takes k products and measures their residuals, and further products reduce those
that are too large, one after the other. The previous search shows which way takes fewer products.

A search from old vectors may miss an eigenvalue that has risen from below with another eigenvector. There are two
remedies. First, each start includes a random vector, which has a part along such an eigenvector, and the best Ritz
vector beyond the wanted ones, in which this part grows from search to search. (In matrices of 300 to 30,000 rows, an
eigenvalue that rose among the listed ones was found one to four searches later.) Second, the complement is searched
from a random start (`spectra.krylov.eigensolver`) every few times, and at once if values or vectors have changed much.
Only that search can exclude larger eigenvalues: between two of them `complete` is None.
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

EVERY = 5  # searches, one of which is followed by a search of the complement
CLOSE = 0.02  # relative distance up to which two eigenvalues are treated as copies
BESIDE = 0.03  # norm of each of the two additions to a sum, relative to an eigenvector
CHANCE = 0.3  # norm of the random part, relative to the further Ritz vector, if the two form one start vector
AGAIN = 2  # products that an old vector with too large a residual is expected to take
JUMP = 0.2  # relative change of an eigenvalue above which the complement is searched at once
KEPT = 0.5  # squared norm of the part of an old eigenvector that the span of the new ones must contain


@dataclass
class WarmStart:
    """The search for the `k` eigenpairs of largest magnitude, made again and again as the matrix changes.

    Between searches (k + 1) n numbers are kept, in the memory of the host.
    """

    k: int  # may be changed between searches
    tolerance: float
    every: int = EVERY
    values: Tensor | None = None  # (k,), of the last search
    vectors: Tensor | None = None  # (k, n), of the last search
    beside: Tensor | None = None  # (1, n), the best Ritz vector beyond these, times the matrix, with norm 1
    by_sum: int = 0  # products of the last search from a sum of vectors, or from a random one
    by_each: int = 0  # products that a search from each of the vectors would have taken last time
    since: int | None = None  # searches since the complement was last searched; None: it has not been yet
    generator: torch.Generator | None = field(default=None, repr=False)

    @property
    def due(self) -> bool:
        """Whether the next search is followed by a search of the complement, whatever it finds."""
        if self.values is None or self.since is None:
            return True
        return self.k > len(self.values) or self.since + 1 >= self.every

    @property
    def one_by_one(self) -> bool:
        """Whether the next search starts from each of the old vectors, and not from sums of them.

        It does not if the complement is searched, which takes fewer products with a basis from a sum.
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
        """Compute the eigenpairs of the matrix as it is now, as `spectra.eigenpairs` does, in full precision.

        Args:
            operator: the matrix (n, n).
            generator: a CPU generator for the first search; later searches continue with it.
            max_products: the largest number of products, by default 1000 + 20 k.
            progress: called after each test of convergence.

        Returns:
            Eigenpairs. `complete` is None if the complement was not searched; `error_estimates` are then the residuals,
            because smaller estimates need known gaps.
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
        converged = []  # numbers of products at which the wanted pairs had converged

        def check_complement() -> bool:
            converged.append(search.products + 1)  # one checks the answer
            left = search.state.dimension - search.state.size
            return self.vectors is None or self.due or left <= self.k or self.jumped(search)

        search.check_complement = check_complement
        pairs = serve_products(search.solve(), operator)
        if not len(pairs.values) or not pairs.values.isfinite().all():
            self.values = self.vectors = None
            return pairs
        self.keep(search, pairs, next(iter(converged), pairs.products))
        return pairs if pairs.complete is not None else replace(pairs, error_estimates=pairs.residuals)

    def keep(self, search: Eigensolver, pairs: Eigenpairs, spent: int) -> None:
        """Keep the result of a search, in which the pairs took `spent` products, for the next search."""
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
        """The start vectors (j, n): the old eigenvectors and a further vector, or sums of them with small additions."""
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
        sums = map_shards(separate_sums(self.values[: self.k]).to(old).matmul, old)
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
        """Whether the pairs found differ so much from the old ones that other eigenvalues may have risen."""
        assert self.values is not None
        wanted, before = search.wanted(), self.values[: self.k]
        if ((search.values[wanted] - before).abs() > JUMP * before.abs()).any():
            return True
        held = (search.coordinates[:, wanted].T @ self.inside(search)).square().sum(dim=0)
        return bool((held < KEPT).any())

    def expected(self, search: Eigensolver) -> int:
        """The number of products that a search from each of the old vectors would have taken."""
        if search.multiple:  # the basis was freed
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
    return map_shards(torch.div, rows, norms(rows).to(rows.dtype)[:, None])


def best_beside(search: Eigensolver) -> Tensor | None:
    """The best Ritz vector beyond the wanted ones, times the matrix, as a row (1, n) of norm 1."""
    state = search.state
    values, coordinates, _ = state.ritz()
    if search.multiple or len(values) <= search.k:  # the basis was freed after copies were found
        return None
    best = coordinates[:, select(values, search.k + 1, search.which)[-1]]
    weights = torch.cat([state.projected, state.coupling]) @ best
    image = map_shards(lambda rows: weights.to(rows) @ rows, state.storage[: len(weights)])[None]
    size = norm(image)
    return (image / size).cpu() if size > 0 else None


def separate_sums(values: Tensor) -> Tensor:
    """Assign vectors with eigenvalues (k,) to sums, as rows (j, k) of zeros and ones.

    Eigenvalues in one sum differ by more than CLOSE.
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
