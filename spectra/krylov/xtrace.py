"""XTrace: the exchangeable trace estimator of Epperly, Tropp and Webber (2024).

For test vectors W, with Q an orthonormal basis of A W and Q_i one of A W without column i,

    t_i = tr(Q_i'A Q_i) + c_i w_i' P_i A P_i w_i,   P_i = I - Q_i Q_i',   c_i = (n - q + 1) / |P_i w_i|^2,

is unbiased (w_i is independent of Q_i), and the mean over i is the estimate. All Q_i come from one QR factorisation
A W = Q R: Q_i Q_i' = Q (I - s_i s_i') Q' with s_i the normalised column i of R^-T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.krylov.dense import dense_trace
from spectra.krylov.hutchinson import FEWEST, budgeted, deflated_hutchinson, random_signs
from spectra.krylov.results import Progress, TraceEstimate, as_cpu_float64
from spectra.operator import Counting, SymmetricOperator, empty_rows
from spectra.vectors import mapped, orthonormal, row_dots, summed

LARGEST = 2**31  # bytes of its four arrays (vectors, n); beyond it the sketch stays and Hutchinson goes on
GROUPS = 32  # of the jackknife
SMALL = 4 * FEWEST  # rows; taking all of them costs at most twice what the first stage does


def xtrace(
    operator: SymmetricOperator,
    *,
    rtol: float = 0.01,
    probes: int | None = None,
    known: float = 0.0,
    generator: torch.Generator,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> TraceEstimate:
    """Tr A + known by 16 vectors (two products each) or more, half as many again until the error is below rtol |trace|.

    `probes` fixes the number of vectors. Where all n products are no more than what is foreseen, the trace is taken
    exactly; where the arrays no longer fit, the basis found so far serves deflated Hutchinson.
    """
    n = operator.shape[0]
    counted = Counting(operator)
    budget = budgeted(max_products, probes)
    largest = max(FEWEST, LARGEST // (4 * n * torch.finfo(operator.dtype).bits // 8))
    sketch = Sketch(counted)
    wanted = probes or FEWEST
    value = error = math.nan
    while True:
        left = budget - counted.products
        cost = 2 * wanted if probes else max(2 * wanted, SMALL, foreseen(counted.products, error, rtol * abs(value), n))
        if n <= min(left, cost):
            return replace(dense_trace(counted, known=known, progress=progress), products=counted.products)
        affordable = min(wanted, len(sketch.tests) + left // 2, n - 1)
        if affordable == len(sketch.tests):
            return TraceEstimate(value, error, counted.products, converged=False)
        if not probes and wanted > largest:
            return deflated_hutchinson(
                counted, sketch.basis, sketch.basis_images, known, rtol, None, generator, budget, progress
            )
        sketch.grow(affordable, generator)
        value, error = sketch.estimate()
        value += known
        if progress:
            progress(products=counted.products, trace=value, standard_error=error)
        met = affordable >= FEWEST and error <= rtol * abs(value)
        if met or affordable == probes or not math.isfinite(value):
            return TraceEstimate(value, error, counted.products, converged=math.isfinite(error))
        wanted = affordable + math.ceil(affordable / 2)


def foreseen(products: int, error: float, wanted: float, n: int) -> float:
    """Products in all, where errors fall no faster than with the root of their number.

    Zero before half of n has been spent: of a spectrum that decays, the first stages know too little.
    """
    if 2 * products < n:
        return 0
    return products * (error / wanted) ** 2 if wanted > 0 else math.inf


class Sketch:
    """Test vectors W, A W, the basis Q of A W, and A Q; all (q, n) by rows. Products once made are kept."""

    def __init__(self, operator: SymmetricOperator):
        self.operator = operator
        self.tests = self.images = self.basis = self.basis_images = empty_rows(operator, 0)
        self.triangle = torch.zeros(0, 0, dtype=torch.float64)

    def grow(self, size: int, generator: torch.Generator) -> None:
        """Take further test vectors until there are `size` of them."""
        q = len(self.tests)
        if size <= q:
            return
        tests = torch.stack([random_signs(self.operator, generator) for _ in range(size - q)])
        images = (self.operator @ tests.T).T
        rest, across = images, torch.zeros(q, size - q, dtype=torch.float64)
        twice = range(2 if q else 0)
        for _ in twice:
            h = inner(self.basis, rest)
            rest = without(rest, self.basis, h)
            across += as_cpu_float64(h)
        new = orthonormal(rest)[0]
        for _ in twice:  # where A W is short of rank, the new columns need not be orthogonal to the old
            new = orthonormal(without(new, self.basis, inner(self.basis, new)))[0]
        corner = torch.nn.functional.pad(as_cpu_float64(inner(new, rest)), (q, 0))
        self.triangle = torch.cat([torch.cat([self.triangle, across], dim=1), corner])
        self.tests, self.images = torch.cat([self.tests, tests]), torch.cat([self.images, images])
        self.basis = torch.cat([self.basis, new])
        self.basis_images = torch.cat([self.basis_images, (self.operator @ new.T).T])

    def estimate(self) -> tuple[float, float]:
        """The mean of t_i, and its standard error by the jackknife (whole estimates without a group of vectors).

        The t_i share their Q, so their own spread is too small by up to three times. The jackknife sees what they
        share, and errs upwards (Efron, Stein 1981); all of it happens in coordinates along Q, without products.
        """
        q, n = self.tests.shape
        coordinates = self.coordinates()
        if not torch.isfinite(coordinates.projected).all():
            return math.nan, math.nan
        if q == 1:
            return coordinates.mean(n), math.inf
        groups = min(q, GROUPS)
        partial = torch.tensor([coordinates.without(range(g, q, groups)).mean(n) for g in range(groups)])
        variance = (groups - 1) / groups * (partial - partial.mean()).square().sum()
        rounding = torch.finfo(self.operator.dtype).eps * coordinates.projected.diagonal().abs().sum()
        return coordinates.mean(n), torch.hypot(variance.sqrt(), rounding).item()

    def coordinates(self) -> Coordinates:
        """All of it along Q."""
        return Coordinates(
            triangle=self.triangle,
            projected=as_cpu_float64(inner(self.basis, self.basis_images)),
            along=as_cpu_float64(inner(self.basis, self.tests)),
            images_along=as_cpu_float64(inner(self.basis_images, self.tests)),
            quadratic=as_cpu_float64(row_dots(self.tests, self.images)),
            lift=torch.eye(len(self.tests), dtype=torch.float64),
        )


def inner(these: Tensor, others: Tensor) -> Tensor:
    """u_i'v_j of rows."""
    return summed(lambda u, v: u @ v.T, these, others)


def without(rows: Tensor, basis: Tensor, along: Tensor) -> Tensor:
    """Rows less what they have `along` a basis, coefficients (q, k) by columns."""
    return mapped(lambda part, basis: part - along.T @ basis, rows, basis)


def others(count: int, left_out: range) -> list[int]:
    return sorted(set(range(count)) - set(left_out))


@dataclass(frozen=True)
class Coordinates:
    """The estimator in coordinates along Q, where A W = Q R; small float64 matrices, one column a test vector."""

    triangle: Tensor  # R
    projected: Tensor  # Q'A Q
    along: Tensor  # Q'W
    images_along: Tensor  # Q'A W
    quadratic: Tensor  # w_i'A w_i
    lift: Tensor  # the columns of this Q along that of the whole sketch

    def without(self, left_out: range) -> Coordinates:
        """The same for fewer test vectors: a smaller Q inside the old one."""
        kept = others(len(self.quadratic), left_out)
        basis, triangle = torch.linalg.qr(self.triangle[:, kept])
        return Coordinates(
            triangle=triangle,
            projected=basis.T @ self.projected @ basis,
            along=basis.T @ self.along[:, kept],
            images_along=basis.T @ self.images_along[:, kept],
            quadratic=self.quadratic[kept],
            lift=self.lift @ basis,
        )

    def mean(self, n: int) -> float:
        """The mean of t_i."""
        alone = self.alone()
        kept = self.along - alone * (alone * self.along).sum(dim=0)  # Q_i'w_i
        rest = self.quadratic - 2 * (kept * self.images_along).sum(dim=0) + (kept * (self.projected @ kept)).sum(dim=0)
        length = n - kept.square().sum(dim=0)  # |P_i w_i|^2, since |w_i|^2 = n
        inside = torch.trace(self.projected) - (alone * (self.projected @ alone)).sum(dim=0)
        rank = len(alone) - (alone.square().sum(dim=0) > 0).double()
        return (inside + (n - rank) * rest / length).mean().item()

    def alone(self) -> Tensor:
        """Columns s_i, what only w_i has brought into Q.

        Zero where A W is short of rank: then A W without column i spans the same.
        """
        diagonal = self.triangle.diagonal().abs()
        if diagonal.min() <= torch.finfo(torch.float64).eps * len(diagonal) * diagonal.max():
            return torch.zeros_like(self.triangle)
        columns = torch.linalg.inv(self.triangle).T
        return columns / torch.linalg.vector_norm(columns, dim=0)
