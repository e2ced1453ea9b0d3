"""Eigenpairs of a matrix that changes slowly, as in training: each search starts from what the one before it found.

A Lanczos run that starts from the sum of the old eigenvectors has their span, but for the change of the matrix, after k
products, and a few more bring down all residuals together. (Products of all old vectors and Rayleigh-Ritz on their
span cost k too, but leave a residual of its own direction to each pair: while a network was trained, pairs then took 16
products to a residual of 1e-3 where the sum took 12, and a random start 17.) One run sees one copy of a multiple
eigenvalue, so vectors whose eigenvalues are close go into sums of their own.

What a search from old vectors may not see is an eigenvalue that has risen from below with another eigenvector. Two
things meet that. Each sum has a small random part, in which such an eigenvector has its share and grows with every
product. And a search of the complement from a random start (`spectra.krylov.eigensolver`) is made every few times, and
at once where values or vectors have changed by much. Only that search can exclude larger eigenvalues: between two of
them `complete` is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.eigensolver import Eigensolver
from spectra.krylov.results import Eigenpairs, Progress
from spectra.krylov.reverse_communication import serve_products
from spectra.operator import SymmetricOperator, placed, random_vectors
from spectra.vectors import map_shards, norms, sum_shards, without_autocast

EVERY = 5  # searches, of which one is followed by a search of the complement
CLOSE = 0.02  # of an eigenvalue: a distance up to which another is taken for a copy of it
RANDOM = 0.02  # of the norm of an eigenvector: that of the random part of a start
JUMP = 0.2  # of an eigenvalue: a change since last time from which on the complement is searched at once
KEPT = 0.5  # of the square of an old eigenvector, which the span of the new ones is to hold


@dataclass
class Tracking:
    """The search for the `k` eigenpairs of largest magnitude, made again and again as the matrix changes.

    Between searches k n numbers are kept, in the memory of the host.
    """

    k: int  # may be changed between searches
    tolerance: float
    every: int = EVERY
    values: Tensor | None = None  # (k,), of the last search
    vectors: Tensor | None = None  # (k, n), the same
    since: int | None = None  # searches since the complement was last searched; None: it has not been yet
    generator: torch.Generator | None = field(default=None, repr=False)

    @property
    def due(self) -> bool:
        """Whether the next search is followed by one of the complement, whatever it finds."""
        if self.values is None or self.since is None:
            return True
        return self.k > len(self.values) or self.since + 1 >= self.every

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
        )
        if self.vectors is not None and self.vectors.shape[1] == operator.shape[0]:
            search.starts = self.sums(operator)
            search.doubt = lambda: self.due or self.jumped(search)
        pairs = serve_products(search.solve(), operator)
        if not len(pairs.values) or not pairs.values.isfinite().all():
            self.values = self.vectors = None
            return pairs
        self.values, self.vectors = pairs.values, pairs.vectors.cpu()
        if pairs.complete is not None:
            self.since = 0
            return pairs
        self.since = None if self.since is None else self.since + 1
        return replace(pairs, error_estimates=pairs.residuals)

    def sums(self, operator: SymmetricOperator) -> Tensor:
        """The starts (j, n): sums of the old eigenvectors whose eigenvalues are apart, with a random part each."""
        assert self.values is not None
        assert self.vectors is not None
        weights = apart(self.values[: self.k]).to(self.vectors)
        old = placed(weights @ self.vectors[: self.k], operator)
        random = random_vectors(operator, len(old), self.generator)
        shares = (RANDOM / norms(random, dtype=random.dtype))[:, None]
        return map_shards(lambda part, chance: part + shares * chance, old, random)

    def jumped(self, search: Eigensolver) -> bool:
        """Whether the pairs that a search has found differ so much from the old ones that others may have risen."""
        assert self.values is not None
        assert self.vectors is not None
        wanted, before = search.wanted(), self.values[: self.k]
        if ((search.values[wanted] - before).abs() > JUMP * before.abs()).any():
            return True
        old = placed(self.vectors[: self.k], search.operator, search.state.basis.device)
        inside = sum_shards(lambda basis, rows: basis @ rows.T, search.state.basis, old).cpu().double()
        held = (search.coordinates[:, wanted].T @ inside).square().sum(dim=0)
        return bool((held < KEPT).any())


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
