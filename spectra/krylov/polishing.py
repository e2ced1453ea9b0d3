"""Eigenpairs from products of lower precision, polished by a few products in full precision.

A search by noisy products A v + e ends in Ritz vectors with residuals as large as the noise e. In the Lanczos relation
A V' = V' T + Q' C (`spectra.krylov.lanczos`), the columns of T and C for some vectors Z of V are then recomputed by
products in full precision. In the span of Z the relation now holds for A itself, and Rayleigh-Ritz gives true
residuals. Outside of Z the relation is wrong by the noise, but a Ritz vector has only a small part there. So further
noisy steps reduce its residual by about the noise once more; then its part outside of Z gets a product in full
precision in turn. This is iterative refinement, or Jacobi-Davidson (Sleijpen, van der Vorst 1996) with a correction in
low precision that all pairs share. On spectra of networks with noise of 5e-4 and 5e-3, ten pairs took 10 to 24 products
in full precision to a residual of 1e-3, and 20 to 33 to 1e-5; block Lanczos in full precision from the same vectors
took 10 to 72 and 30 to 221.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.krylov.blocks import products
from spectra.krylov.bounds import kato_temple, residual_norms
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.eigensolver import Eigensolver, are_outside
from spectra.krylov.lanczos import Lanczos
from spectra.krylov.results import Eigenpairs, Progress, as_cpu_float64, select
from spectra.operator import Counting, Noise, in_ieee
from spectra.vectors import map_shards, norm, norms, on_device, sum_shards

AHEAD = 0.3  # of the allowed residuals: how far noisy steps reduce them
FOUND = 0.5  # squared norm of the part of a Ritz vector in Z, above which Z contains the pair
OUTSIDE = 1e-3  # squared norm of the part of a vector outside of the basis, above which the vector is added to it
APART = 0.1  # norm of the part of a direction outside the span of others, above which it gets its own product


@dataclass
class Polishing:
    """The polishing of eigenpairs that a `search` found by products of lower precision.

    Attributes:
        matrix: the matrix with products of lower precision, which are counted.
        noise: the noise of its products.
        search: the finished search; its Lanczos run is continued.
        tolerance: the relative residual asked for, in full precision.
        max_products: the largest number of products in all.
        progress: called after each product or block of products.
    """

    matrix: Counting
    noise: Noise
    search: Eigensolver
    tolerance: float
    max_products: int
    progress: Progress | None = None
    exact: int = 0  # the number of vectors in Z, which are the first of the basis

    def run(self, pairs: Eigenpairs) -> Eigenpairs:
        """Polish the pairs that the search found, and return the polished pairs."""
        search = self.search
        others = torch.ones(len(search.values), dtype=torch.bool)
        others[search.wanted()] = False
        others = search.values[others]  # noise may have ranked some of these below the wanted ones
        weights = self.weights_of(pairs.vectors)
        while self.multiply(weights):
            values, _, residuals = self.inside()
            self.report(values, residuals)
            unsettled = self.unsettled()
            if not unsettled.any():
                break
            weights = self.search_on(unsettled)
        return self.answer(pairs, others)

    @property
    def left(self) -> int:
        """The number of products that are left, without one that checks the answer."""
        return self.max_products - self.matrix.products - 1

    def weights_of(self, vectors: Tensor) -> Tensor:
        """The coefficients (m, k) of vectors (k, n) in the basis; vectors found outside of it are added first."""
        state = self.state
        for vector in vectors:
            inside = sum_shards(torch.matmul, state.basis, vector)
            if torch.linalg.vector_norm(inside) ** 2 < 1 - OUTSIDE and not state.exhausted and self.left > 0:
                state.align(state.start(vector))
                state.extend(self.matrix)
        return as_cpu_float64(sum_shards(lambda basis, rows: basis @ rows.T, state.basis, vectors))

    def multiply(self, weights: Tensor) -> int:
        """Add to Z the parts outside of it of vectors with these weights (m, j), and return their number."""
        state = self.state
        rest = weights[self.exact :]
        lengths = torch.linalg.vector_norm(rest, dim=0)
        rest = rest[:, lengths > 10 * torch.finfo(self.matrix.dtype).eps]
        directions, triangle = torch.linalg.qr(rest / torch.linalg.vector_norm(rest, dim=0))
        directions = directions[:, triangle.diagonal().abs() > APART][:, : max(0, self.left)]
        count = directions.shape[1]
        state.rotate(directions, self.exact)
        images = products(in_ieee(self.matrix), state.basis[self.exact : self.exact + count]) if count else ()
        for image in images:
            state.correct(self.exact, image)
            self.exact += 1
        return count

    def inside(self) -> tuple[Tensor, Tensor, Tensor]:
        """The wanted Ritz pairs in the span of Z: values (k,), weights (|Z|, k) and residuals (k,)."""
        state, size = self.state, self.exact
        values, weights = torch.linalg.eigh(state.projected[:size, :size])
        wanted = select(values, self.search.k, self.search.which)
        values, weights = values[wanted], weights[:, wanted]
        outside = torch.cat([state.projected[size:, :size], state.coupling[:, :size]]) @ weights
        return values, weights, torch.linalg.vector_norm(outside, dim=0)

    def unsettled(self) -> Tensor:
        """Which of the wanted Ritz pairs of the whole basis (k,) are not yet in Z with an allowed residual."""
        values, weights, residuals = self.inside()
        good = residuals <= self.allowed(values)
        _, coordinates, _ = self.state.ritz()
        parts = (weights.T @ coordinates[: self.exact, self.wanted()]).square()
        unsettled = parts[good].sum(dim=0) < FOUND
        return unsettled if good.all() or unsettled.any() else torch.ones_like(unsettled)

    def search_on(self, unsettled: Tensor) -> Tensor:
        """Extend the basis by noisy products along residuals, as far as the noise allows.

        Returns the weights (m, j) of the wanted Ritz vectors that are `unsettled`.
        """
        state, search = self.state, self.search
        while True:
            values, coordinates, residuals = state.ritz()
            wanted = self.wanted()
            outside = torch.linalg.vector_norm(coordinates[self.exact :, wanted], dim=0)
            enough = torch.maximum(AHEAD * self.allowed(values[wanted]), self.noise.norm / 2 * outside)
            late = (residuals[wanted] > enough).nonzero().flatten()
            if not len(late) or not len(state.pending) or self.left <= search.k:
                return coordinates[:, wanted[unsettled]]
            if search.full and state.size < state.dimension:
                search.restart(search.kept)
                state.narrow()
                self.exact = 0
                return torch.eye(state.size, dtype=torch.float64)[:, : search.k]
            state.align(state.coupling @ coordinates[:, wanted[late[0]]])
            state.extend(self.matrix)

    def answer(self, pairs: Eigenpairs, others: Tensor) -> Eigenpairs:
        """The wanted pairs in the span of Z; `others` are further values that the search found."""
        if self.exact < self.search.k:
            return replace(pairs, residuals=pairs.residuals + self.noise.norm, products=self.matrix.products)
        values, weights, residuals = self.inside()
        vectors = self.state.vectors(torch.nn.functional.pad(weights, (0, 0, 0, self.state.size - self.exact)))
        lengths = norms(vectors).to(vectors.dtype)[:, None]
        vectors = map_shards(lambda rows: rows / lengths, vectors)
        residuals = torch.hypot(residuals, self.relation_error(weights))
        allowed = self.allowed(values)
        if (residuals > allowed).any() and self.left >= len(values):
            residuals = residual_norms(products(in_ieee(self.matrix), vectors), values, vectors)
        ends = torch.tensor([*(pairs.complement or ()), *others.tolist()], dtype=torch.float64)
        bounds = (ends.min().item() - self.noise.norm, ends.max().item() + self.noise.norm) if len(ends) else None
        ritz, coordinates, _ = self.state.ritz()
        off = self.noise.norm * torch.linalg.vector_norm(coordinates[self.exact :], dim=0)
        known = pairs.complete and (bounds is None or are_outside(values, bounds, self.search.which))
        return Eigenpairs(
            values=values,
            vectors=vectors,
            residuals=residuals,
            error_estimates=kato_temple(values, residuals, ritz, off),
            products=self.matrix.products,
            converged=bool((residuals <= allowed).all()),
            complete=known,
            complement=bounds,
        )

    def relation_error(self, weights: Tensor) -> Tensor:
        """Measure the violation of the Lanczos relation by rounding, for vectors in Z with these weights (|Z|, k).

        It takes one product, as `Eigensolver.relation_error` does.
        """
        state = self.state
        signs = 2.0 * torch.randint(2, (weights.shape[1],), generator=self.search.generator) - 1
        along = weights @ signs.double()

        def combined(weights: Tensor, rows: Tensor) -> Tensor:
            return map_shards(weights.to(rows.device, rows.dtype).matmul, rows)

        vector = combined(along, state.basis[: self.exact]).contiguous()
        expected = combined(state.projected[:, : self.exact] @ along, state.basis)
        expected = expected + combined(state.coupling[:, : self.exact] @ along, state.pending)
        image = in_ieee(self.matrix) @ on_device(vector, self.matrix.device)
        return torch.tensor(norm(on_device(image, expected.device) - expected), dtype=torch.float64)

    @property
    def state(self) -> Lanczos:
        """The Lanczos run of the search."""
        return self.search.state

    def wanted(self) -> Tensor:
        """The indices of the wanted Ritz values of the whole basis."""
        return select(self.state.ritz()[0], self.search.k, self.search.which)

    def allowed(self, values: Tensor) -> Tensor:
        """The largest residuals of converged pairs with these values."""
        return allowed_residuals(values, self.state.scale, self.tolerance, self.matrix.dtype)

    def report(self, values: Tensor, residuals: Tensor) -> None:
        """Call `progress` with the products so far, the number of converged pairs and the largest residual."""
        if self.progress:
            good = int((residuals <= self.allowed(values)).sum())
            worst = residuals.max().item()
            self.progress(products=self.matrix.products, converged=good, wanted=self.search.k, residual=worst)
