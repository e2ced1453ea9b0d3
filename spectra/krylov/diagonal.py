"""Estimates of the diagonal of a matrix, and of sums over parts of it, by random sign vectors.

For a vector w of random signs, E w o (A w) = diag A, with o the entrywise product (Bekas, Kokiopoulou, Saad 2007).
XDiag (Epperly, Tropp, Webber 2024) computes the diagonal exactly on the range Q of a sketch A W, and estimates only the
rest. For a symmetric matrix, with P = I - QQ',

    diag A = 2 diag QQ'A - diag QQ'AQQ' + diag PAP,

where the last term is small. Each test vector in turn is left out of Q and estimates it, without bias as in XTrace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.hutchinson import FEWEST, affordable, budgeted
from spectra.krylov.jackknife import jackknife_error
from spectra.krylov.results import Progress
from spectra.krylov.sketch import Coordinates, Sketch, others
from spectra.krylov.xtrace import LARGEST, SMALL
from spectra.operator import Counting, Deflated, SymmetricOperator, checkpointed, empty_rows, placed, random_signs
from spectra.vectors import local, map_shards, without_autocast
from spectra.wording import outline

EACH = 5  # vectors in memory for each sample, at the peak
GROUPS = 16  # of the jackknife; each takes the memory of one vector (n,)
SLICE, WIDE_SLICE = 2**11, 2**18  # entries that are combined at a time: to fit the cache of a CPU, or to fill a GPU


Sums = Callable[[Tensor], Tensor]  # linear sums with weights >= 0 over a diagonal (n,): (m,), float64 on the CPU
Enough = Callable[[Tensor, Tensor], bool]  # whether sums (m,) with these standard errors (m,) are precise enough


@dataclass(frozen=True)
class DiagonalEstimate:
    """An estimate of diag A with standard errors, and of sums over parts of it.

    `replicates` are the values of the sums with each probe, or group of probes, left out; the jackknife computes from
    them the error of any function of the sums. There are none if the estimate is exact.
    """

    values: Tensor  # (n,)
    standard_errors: Tensor  # (n,)
    sums: Tensor  # (m,), float64
    replicates: Tensor  # (g, m), float64
    rounding: Tensor  # (m,), of the sums
    products: int
    converged: bool

    __repr__ = outline

    @property
    def sum_errors(self) -> Tensor:
        """Standard errors (m,) of the sums: zero where they are exact."""
        if not len(self.replicates):
            return torch.zeros_like(self.sums)
        return torch.hypot(jackknife_error(self.replicates), self.rounding)

    @property
    def finite(self) -> bool:
        """Whether the sums are finite."""
        return bool(self.sums.isfinite().all())


def estimate(operator: Counting, values: Tensor, errors: Tensor, sums: Sums, replicates: Tensor) -> dict:
    """The fields of a `DiagonalEstimate` that every estimator fills in the same way."""
    rounding = torch.finfo(operator.dtype).eps * sums(values.abs())
    parts = {"values": values, "standard_errors": errors, "sums": sums(values), "replicates": replicates}
    return parts | {"rounding": rounding, "products": operator.products}


@without_autocast()
def xdiag(
    operator: SymmetricOperator,
    sums: Sums,
    enough: Enough,
    *,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal by XDiag, until its sums are precise `enough`.

    The sketch starts with 16 test vectors, which take two products each, and grows by half. The diagonal is computed
    exactly, by n products, if the next stage would take as many. If the sketch no longer fits memory, its basis is
    deflated and sign vectors estimate the rest; if not even the first sketch fits, sign vectors alone are used.

    Args:
        operator: the matrix (n, n).
        sums: linear sums over a diagonal (n,), with weights >= 0: (m,), float64 on the CPU.
        enough: whether sums (m,) with these standard errors (m,) are precise enough.
        generator: a CPU generator.
        max_products: the largest number of products.
        progress: called with the products so far.
    """
    n = operator.shape[0]
    counted = Counting(operator)
    budget = budgeted(max_products, None)
    vectors = LARGEST // (n * torch.finfo(operator.dtype).bits // 8)
    largest = max(FEWEST, (vectors - GROUPS) // 4)  # four arrays of the sketch, and the groups
    fits = fitting_vectors(operator) >= 4 * FEWEST + GROUPS  # asked before the sketch takes memory
    sketch, found, wanted = Sketch(counted), None, FEWEST
    while True:
        left = budget - counted.products
        if n <= min(left, max(2 * wanted, SMALL)):
            return exact_diagonal(counted, sums)
        held = len(sketch.tests)
        count = min(held + affordable(wanted - held, left, 2), n - 1)
        if count < 2 or not fits:
            return sample(counted, counted, zero(counted), sums, enough, generator, budget, progress)
        if found and count == len(sketch.tests):
            return found
        if wanted > largest:
            known = sketched(sketch, [coefficients(sketch.coordinates(), ())])[0]
            rest = Deflated(counted, sketch.basis)
            return sample(counted, rest, known, sums, enough, generator, budget, progress)
        sketch.grow(count, generator)
        found = from_sketch(counted, sketch, sums)
        if progress:
            progress(products=counted.products)
        if not found.finite or (count >= FEWEST and enough(found.sums, found.sum_errors)):
            return replace(found, converged=found.finite)
        wanted = count + math.ceil(count / 2)


def from_sketch(counted: Counting, sketch: Sketch, sums: Sums) -> DiagonalEstimate:
    """Estimate the diagonal by the mean over test vectors, each left out of Q in turn, with jackknife errors."""
    q = len(sketch.tests)
    every, groups = sketch.coordinates(), min(q, GROUPS)
    if not every.projected.isfinite().all():
        missing = zero(counted) * math.nan
        return DiagonalEstimate(**estimate(counted, missing, missing, sums, sums(missing)[None]), converged=False)
    left_out = [range(group, q, groups) for group in range(groups)]
    weights = [coefficients(every, range(q))]
    weights += [coefficients(every.without(some), others(q, some)) for some in left_out]
    rows = sketched(sketch, weights)
    values, without = rows[0], rows[1:]
    errors = map_shards(jackknife_error, without)
    replicates = torch.stack([sums(one) for one in without])
    return DiagonalEstimate(**estimate(counted, values, errors, sums, replicates), converged=False)


def coefficients(c: Coordinates, tests: Sequence[int]) -> tuple[Tensor, ...]:
    """The matrices M, B, K, E (q, q) and weights (q,) that combine the rows of a sketch to an estimate of diag A.

    The estimate sum (M Q - B W) o AQ - (K Q + E W) o Q + weights W o AW is the mean over the `tests`, each left out of
    Q in turn. Without tests it is the part of Q alone, 2 diag QQ'A - diag QQ'AQQ'.
    """
    inside = torch.eye(len(c.projected)).to(c.projected) - c.removed @ c.removed.T
    beside, across, weights = torch.zeros_like(inside), torch.zeros_like(inside), inside.new_zeros(len(inside))
    if not len(tests):
        return 2 * inside, beside, c.projected, across, weights
    m = len(tests)
    alone, images = c.alone()  # s_i: Q_i Q_i' = Q (I - s_i s_i') Q'
    less = alone @ alone.T / m
    crossed = less @ c.projected
    spread = (alone * (alone * images).sum(dim=0)) @ alone.T / m
    along, along_images = c.left(alone, images)  # Q_i'w_i
    rest = c.images_along - along_images
    rest = rest - alone * (alone * rest).sum(dim=0)  # Q_i'A P_i w_i
    beside[:, tests], across[:, tests], weights[tests] = along / m, rest / m, 1 / m
    return 2 * (inside - less), beside, c.projected - crossed - crossed.T + spread, across, weights


def sketched(sketch: Sketch, weights: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Compute diagonals (g, n) from g sets of `coefficients`, slice by slice, so that the sketch is read only once."""
    m, b, k, e, chosen = (torch.stack(some) for some in zip(*weights, strict=True))

    def combine(basis: Tensor, images: Tensor, tests: Tensor, products: Tensor) -> Tensor:
        across, within, own = (
            x.to(basis.device, basis.dtype) for x in (torch.cat([m, -b], dim=2), torch.cat([k, e], dim=2), chosen)
        )
        rows = basis.new_empty(len(own), basis.shape[1])
        size = SLICE if basis.device.type == "cpu" else WIDE_SLICE
        for first in range(0, rows.shape[1], size):
            cut = slice(first, first + size)
            q, z, w, aw = basis[:, cut], images[:, cut], tests[:, cut], products[:, cut]
            both = torch.cat([q, w])
            rows[:, cut] = ((across @ both) * z).sum(dim=1) - ((within @ both) * q).sum(dim=1) + own @ (w * aw)
        return rows

    return map_shards(combine, sketch.basis, sketch.basis_images, sketch.tests, sketch.images)


@without_autocast()
def hutchinson_diagonal(
    operator: SymmetricOperator,
    sums: Sums,
    enough: Enough,
    *,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal by the mean of w o (A w) over sign vectors w, until its sums are precise `enough`."""
    counted = Counting(operator)
    return sample(counted, counted, zero(counted), sums, enough, generator, budgeted(max_products, None), progress)


def zero(operator: SymmetricOperator) -> Tensor:
    """A vector of zeros (n,)."""
    return torch.zeros_like(empty_rows(operator, 1)[0])


def sample(
    counted: Counting,
    operator: SymmetricOperator,
    known: Tensor,
    sums: Sums,
    enough: Enough,
    generator: torch.Generator,
    budget: float,
    progress: Progress | None,
) -> DiagonalEstimate:
    """Estimate `known` (n,) plus diag B by the mean of w o (B w), for the `operator` B; `counted` counts products."""
    widest = columns(fitting_vectors(operator), EACH)
    moments, reads = None, []

    def draw(count: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """Draw samples: their number, mean and sum of squared deviations, and the sums over each of them."""
        signs = random_signs(operator, count, generator)
        each = map_shards(lambda w, image: w * image, signs, (operator @ signs.T).T)
        mean = map_shards(lambda rows: rows.mean(dim=0), each)
        squares = map_shards(lambda rows, mean: (rows - mean).square().sum(dim=0), each, mean)
        return count, local(mean).cpu(), local(squares).cpu(), torch.stack([sums(row) for row in each])

    def here(part: Tensor) -> Tensor:
        """The vector on its device, from this process's part of it on the CPU."""
        return map_shards(lambda own: part.to(own.device), known)

    while True:
        wanted = max(FEWEST - len(reads), len(reads) // 8, 1)
        count = affordable(min(wanted, widest), budget - counted.products)
        _, mean, squares, several = checkpointed(operator, partial(draw, count), generator)
        moments = merged(moments, (count, here(mean), here(squares)))
        reads += several
        found = sampled(counted, moments, known, sums, torch.stack(reads))
        met = len(reads) >= FEWEST and enough(found.sums, found.sum_errors)
        if progress:
            progress(products=counted.products)
        if met or not found.finite or counted.products >= budget:
            return replace(found, converged=met and found.finite)


def sampled(counted: Counting, moments: tuple, known: Tensor, sums: Sums, reads: Tensor) -> DiagonalEstimate:
    """The estimate from the mean and spread of single samples."""
    m = len(reads)
    less_one = sums(known) + (reads.sum(dim=0) - reads) / max(m - 1, 1)
    errors = map_shards(lambda squares: (squares / (m * max(m - 1, 1))).sqrt(), moments[2])
    if m == 1:
        errors, less_one = errors * math.nan, less_one * math.nan
    return DiagonalEstimate(**estimate(counted, known + moments[1], errors, sums, less_one), converged=False)


def merged(one: tuple[int, Tensor, Tensor] | None, other: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of two samples together (Chan, Golub, LeVeque 1983)."""
    if one is None:
        return other
    count, gap = one[0] + other[0], other[1] - one[1]
    mean = one[1] + gap * (other[0] / count)
    return count, mean, one[2] + other[2] + gap * gap * (one[0] * other[0] / count)


def exact_diagonal(counted: Counting, sums: Sums) -> DiagonalEstimate:
    """The exact diagonal, by n products."""
    n = counted.shape[0]
    widest, values = columns(fitting_vectors(counted), EACH), zero(counted)
    for first in range(0, n, widest):
        units = torch.zeros(min(widest, n - first), n)
        units[range(len(units)), range(first, first + len(units))] = 1
        units = placed(units, counted)
        values = values + map_shards(lambda u, v: (u * v).sum(dim=0), units, (counted @ units.T).T)
    nothing = sums(values).new_zeros(0, len(sums(values)))
    found = DiagonalEstimate(**estimate(counted, values, torch.zeros_like(values), sums, nothing), converged=True)
    return replace(found, converged=found.finite)
