"""The summary of one compared matrix: leading eigenpairs, spectral measure, norm, trace and cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spectra.comparison.agreement import LeadingEigenpairs
from spectra.comparison.frobenius import as_array
from spectra.krylov.deflation import CONVERGED
from spectra.krylov.eigenpairs import eigenpairs
from spectra.krylov.quadrature import spectral_measure
from spectra.krylov.results import Eigenpairs, Progress, SpectralMeasure
from spectra.operator import Counting, SymmetricOperator, empty_rows
from spectra.spectrum.estimates import Estimate
from spectra.vectors import all_finite, map_shards, on_device, orthonormal, take_rows


@dataclass
class MatrixSummary:
    """The results for one matrix alone, and their cost."""

    operator: Counting
    eigenpairs: Eigenpairs  # by falling |value|, one more than are compared
    measure: SpectralMeasure | None = None  # None if it was not requested, or exceeded the budget
    norm: Estimate | None = None  # |A|_F
    trace: Estimate | None = None
    seconds: float = 0.0

    @property
    def products(self) -> int:
        """The number of products taken so far."""
        return self.operator.products

    @property
    def converged(self) -> bool:
        """Whether eigenpairs and spectral measure have converged, and the budget of products sufficed."""
        measured = self.measure is None or self.measure.converged
        return self.eigenpairs.converged and measured and self.norm is not None


@contextmanager
def timed(summaries: Iterable[MatrixSummary]) -> Iterator[None]:
    """A context that divides its duration equally among these matrices."""
    start, summaries = time.perf_counter(), list(summaries)
    yield
    for summary in summaries:
        summary.seconds += (time.perf_counter() - start) / len(summaries)


def summarise_matrix(operator: SymmetricOperator, k: int, **search) -> MatrixSummary:
    """Find the first k eigenpairs by |value|; `search` is passed to `eigenpairs`."""
    start, counted = time.perf_counter(), Counting(operator)
    pairs = eigenpairs(counted, k, **search)
    pairs = replace(pairs, vectors=on_device(pairs.vectors, operator.device))  # with those of the other matrices
    return MatrixSummary(counted, pairs, seconds=time.perf_counter() - start)


def find_measure(
    summary: MatrixSummary, probes: int, steps: int, limit: float, generator: torch.Generator, progress: Progress | None
) -> None:
    """Find the spectral measure, with the converged eigenpairs projected out, if the budget has room for it."""
    room, pairs = limit - summary.products, summary.eigenpairs
    if room < 1:
        return
    good = pairs.residuals <= CONVERGED * pairs.values.abs()
    known = replace(pairs, values=pairs.values[good], vectors=take_rows(pairs.vectors, good)) if good.any() else None
    summary.measure = spectral_measure(
        summary.operator,
        probes=probes,
        steps=steps,
        known=known,
        generator=generator,
        max_products=None if math.isinf(room) else int(room),
        progress=progress,
    )


def common_basis(summaries: Mapping[str, MatrixSummary]) -> tuple[Tensor, dict[str, LeadingEigenpairs]]:
    """An orthonormal basis U (r, n) of the eigenvectors of all matrices, and those of each matrix in its coordinates.

    A matrix with products that are not finite has none.
    """
    found = {name: p.eigenpairs for name, p in summaries.items() if all_finite(p.eigenpairs.vectors)}
    rows = torch.cat([pairs.vectors for pairs in found.values()]) if found else None
    if rows is None or not len(rows):
        none = LeadingEigenpairs(np.zeros(0), np.zeros(0), np.zeros((0, 0)))
        return empty_rows(next(iter(summaries.values())).operator, 0), dict.fromkeys(summaries, none)
    basis, triangle = orthonormal(rows)
    # Directions that equal matrices share occur twice; their difference is rounding and must not enter the basis.
    left, sizes, right = torch.linalg.svd(triangle.T, full_matrices=False)
    kept = sizes > torch.finfo(rows.dtype).eps ** 0.5 * sizes.max()
    basis = map_shards(right[kept].matmul, basis)
    parts = as_array((left * sizes)[:, kept]), np.cumsum([len(pairs.values) for pairs in found.values()])[:-1]
    coordinates = dict(zip(found, np.split(*parts), strict=True))
    none = LeadingEigenpairs(np.zeros(0), np.zeros(0), np.zeros((0, len(basis))))
    leading = dict.fromkeys(summaries, none)
    for name, pairs in found.items():
        leading[name] = LeadingEigenpairs(pairs.values.numpy(), pairs.residuals.numpy(), coordinates[name])
    return basis.contiguous(), leading
