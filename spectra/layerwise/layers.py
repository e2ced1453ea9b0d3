"""Analyse the diagonal blocks of a matrix: traces, eigenpairs, spectra, and shares of the leading eigenvector.

This module knows operators and blocks of indices, nothing of networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from spectra.comparison.comparison import Watch, quiet
from spectra.defaults import LAYERS_PROBES, RTOL, TOLERANCE
from spectra.krylov.block_diagonal import block_eigenpairs, block_measures
from spectra.krylov.correction import with_corrected_diagonal
from spectra.krylov.diagonal import DiagonalEstimate, Sums, hutchinson_diagonal, xdiag
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.results import Eigenpairs, SpectralMeasure
from spectra.layerwise.parameter_blocks import ParameterBlock
from spectra.operator import SymmetricOperator
from spectra.spectrum.estimates import Estimate, jackknife
from spectra.vectors import full_tensor
from spectra.wording import outline

APART = 0.1  # radians
DIAGONALS = {"xdiag": xdiag, "hutchinson": hutchinson_diagonal}
PAIR = 2  # products that a search takes at least: one for a vector, one for its residual


class LowRank(NamedTuple):
    """The stable rank |M|_F^2 / |M|_2^2 of the part M of a vector that belongs to a weight, in the weight's shape."""

    weight: str
    stable_rank: float


@dataclass
class Layers:
    """The results for each diagonal block, and for the full matrix."""

    blocks: list[ParameterBlock]
    diagonal: DiagonalEstimate  # its sums are those of `block_sums`
    leading: Eigenpairs | None = None  # the first eigenpair of the full matrix; None if it was not requested
    eigenpairs: Sequence[Eigenpairs] = ()  # of each block; empty if they were not requested
    measures: Sequence[SpectralMeasure] = ()  # likewise
    vector: Tensor | None = field(default=None, repr=False)  # leading eigenvector of the full matrix (n,), on the CPU
    complete: bool = True  # the budget of products sufficed

    __repr__ = outline

    @property
    def parts(self) -> list:
        """The results of all methods, each with its products and convergence."""
        return [self.diagonal, *([self.leading] if self.leading else []), *self.eigenpairs, *self.measures]

    @property
    def products(self) -> int:
        """The number of products taken."""
        return sum(part.products for part in self.parts)

    @property
    def converged(self) -> bool:
        """Whether every method met its tolerance and none was left out."""
        return self.complete and all(part.converged for part in self.parts)

    @cached_property
    def traces(self) -> list[Estimate]:
        """The trace of each block."""
        return self._estimates(slice(len(self.blocks)))

    @cached_property
    def sensitivities(self) -> list[Estimate]:
        """The sum of the saliencies d theta^2 / 2 over each block."""
        return self._estimates(slice(len(self.blocks), None))

    @cached_property
    def trace(self) -> Estimate:
        """The trace of the full matrix: the sum over its blocks."""
        return self._function(lambda traces: traces.sum(dim=-1, keepdim=True))[0]

    @cached_property
    def shares(self) -> list[Estimate]:
        """The share of each block in the trace of the full matrix."""
        return self._function(lambda traces: traces / traces.sum(dim=-1, keepdim=True))

    def _estimates(self, some: slice) -> list[Estimate]:
        numbers = zip(self.diagonal.sums[some].tolist(), self.diagonal.sum_errors[some].tolist(), strict=True)
        return [Estimate(*pair) for pair in numbers]

    def _function(self, function) -> list[Estimate]:
        """A function of the traces (..., L), with its error by the jackknife."""
        count = len(self.blocks)
        values = function(self.diagonal.sums[:count]).tolist()
        if not len(self.diagonal.replicates):
            return [Estimate(value, 0.0) for value in values]
        left_out = function(self.diagonal.replicates[:, :count]).T.numpy()
        return [jackknife(value, column) for value, column in zip(values, left_out, strict=True)]

    def has_room(self, budget: Budget, products: int) -> bool:
        """Whether the budget has so many products; if not, `complete` becomes False."""
        enough = budget.products is None or budget.products >= products
        self.complete &= enough
        return enough

    def mass(self, i: int) -> float:
        """The share |u_l|^2 of block l in the leading eigenvector u of the full matrix, |u| = 1."""
        assert self.vector is not None  # callers have requested eigenpairs
        return float(self.vector[self.blocks[i].index].double().square().sum())

    def overlap(self, i: int) -> float | None:
        """The cosine |q'u_l| / |u_l| between the part u_l of u in the block and the block's leading eigenvector q.

        None if either is not reliable.
        """
        if self.vector is None or not (self.share_is_reliable(i) and self.leading_is_reliable(i)):
            return None
        part = self.vector[self.blocks[i].index].double()
        return float(abs(self.eigenpairs[i].vectors[0].cpu().double() @ part) / torch.linalg.vector_norm(part))

    def leading_is_reliable(self, i: int) -> bool:
        """Whether the block's leading eigenvector is determined, which it is not for a multiple eigenvalue."""
        return distinct(self.eigenpairs[i])

    def share_is_reliable(self, i: int) -> bool:
        """Whether the part of u in the block exceeds the error of u: about residual over eigenvalue, or rounding."""
        assert self.leading  # callers have requested eigenpairs
        assert self.vector is not None
        wrong = self.leading.residuals[0] / self.leading.values[0].abs()
        return distinct(self.leading) and self.mass(i) > max(float(wrong), torch.finfo(self.vector.dtype).eps) ** 2

    def low_ranks(self, i: int, vector: Tensor) -> list[LowRank]:
        """The stable rank of the part of a vector (n_l,) in each weight of the block, the longest part first."""
        weights = self.blocks[i].weights.items()
        held = [(name, vector[place].view(s[0], -1)) for name, (place, s) in weights if min(s[0], s[1:].numel()) > 1]
        held = sorted(held, key=lambda pair: -float(torch.linalg.vector_norm(pair[1])))
        return [LowRank(name, stable_rank(part)) for name, part in held if part.any()]


def distinct(pairs: Eigenpairs) -> bool:
    """Whether the error angle of the first eigenvector, residual over gap (Davis, Kahan), is at most `APART`.

    The gap follows from the Kato-Temple estimate, residual^2 / gap, which is the residual for a multiple eigenvalue.
    """
    value, residual, estimate = (some[0].item() for some in (pairs.values, pairs.residuals, pairs.error_estimates))
    return residual < abs(value) and estimate <= APART * residual


def stable_rank(matrix: Tensor) -> float:
    """The stable rank |M|_F^2 / |M|_2^2 of a matrix, from 1 to its rank (Rudelson, Vershynin 2007)."""
    matrix = matrix.double()
    short = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    gram = short @ short.T
    if not gram.isfinite().all():  # LAPACK raises an error
        return math.nan
    return float(gram.trace() / torch.linalg.eigvalsh(gram)[-1])


def layers(
    operator: SymmetricOperator,
    diagonal_blocks: SymmetricOperator,
    blocks: list[ParameterBlock],
    sums: Sums,
    *,
    k: int = 1,
    method: str = "xdiag",
    rtol: float = RTOL,
    ranked: bool = False,
    tolerance: float = TOLERANCE,
    steps: int = 0,
    probes: int = LAYERS_PROBES,
    known: Eigenpairs | None = None,
    generator: torch.Generator,
    max_products: int | None = None,
    watch: Watch = quiet,
) -> Layers:
    """Compute traces, eigenpairs and spectra of the diagonal blocks of one matrix.

    Args:
        operator: the full matrix (n, n).
        diagonal_blocks: the block-diagonal matrix, as `parameter_blocks.diagonal_blocks` makes it.
        blocks: the blocks, a partition of the n parameters.
        sums: the function that `parameter_blocks.block_sums` returns.
        k: the number of leading eigenpairs of each block; 0: none, and none of the full matrix either.
        method: the estimator of the diagonal, xdiag or hutchinson.
        rtol: the standard error of every block's trace, over |trace of the full matrix|, at which the diagonal has
            converged.
        ranked: also rank the blocks by their saliencies; the norm of their errors then has to meet rtol too.
        tolerance: the residual over |eigenvalue| at which an eigenpair has converged.
        steps: the products that each probe of a block's spectrum takes; 0: no spectra.
        probes: the number of random vectors of a spectrum.
        known: leading eigenpairs of the full matrix from an earlier run.
        generator: the source of random vectors, on the CPU.
        max_products: the most products with the full matrix; one with each block counts as many as there are blocks.
        watch: a function from the name of the next step to a context in which methods report their progress.
    """
    index = [block.index.to(operator.device) for block in blocks]
    budget = Budget(max_products)
    with watch("diagonal") as progress:

        def enough(values: Tensor, errors: Tensor) -> bool:
            traces, saliencies = values.split(len(blocks))
            trace_errors, saliency_errors = errors.split(len(blocks))
            told_apart = saliency_errors.norm() <= rtol * saliencies.norm()
            return bool((trace_errors <= rtol * traces.sum().abs()).all() and (told_apart or not ranked))

        share = budget.left(2 if k or steps else 1)
        estimate = with_corrected_diagonal(DIAGONALS[method])
        cost = {"max_products": share, "progress": progress}
        diagonal = estimate(operator, sums, enough, generator=generator, **cost)
    found = Layers(blocks, diagonal)
    budget.spend(diagonal.products)
    if k and found.has_room(budget, PAIR):
        with watch("leading eigenpair") as progress:
            cost = {"max_products": budget.left(), "progress": progress}
            found.leading = known or eigenpairs(operator, 1, tolerance=tolerance, generator=generator, **cost)
        found.vector = full_tensor(found.leading.vectors[0]).cpu()
        budget.spend(found.leading.products)
    if k and found.has_room(budget, PAIR * len(blocks)):
        with watch("blocks") as progress:
            cost = {"max_products": budget.left(len(blocks)), "progress": progress}
            found.eigenpairs = block_eigenpairs(
                diagonal_blocks, index, k, tolerance=tolerance, generator=generator, **cost
            )
        budget.spend(sum(pairs.products for pairs in found.eigenpairs))
    if steps and found.has_room(budget, len(blocks)):
        with watch("spectra of blocks") as progress:
            cost = {"max_products": budget.left(len(blocks)), "progress": progress}
            found.measures = block_measures(
                diagonal_blocks, index, found.eigenpairs, probes=probes, steps=steps, generator=generator, **cost
            )
    return found


@dataclass
class Budget:
    """The number of products that are left; None: no limit."""

    products: int | None

    def left(self, parts: int = 1) -> int | None:
        """The number of products for each of several equal parts, at least 1; None: no limit."""
        return None if self.products is None else max(1, self.products // parts)

    def spend(self, products: int) -> None:
        """Take these products off the budget."""
        if self.products is not None:
            self.products -= products
