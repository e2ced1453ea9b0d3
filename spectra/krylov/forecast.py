"""Forecasts of the cost of a method on a matrix: its products, and the memory of its vectors.

A short Lanczos run, the pilot, gives an outline of the spectrum. The method is then run on a surrogate, a small and
cheap matrix with that spectrum, while its products are counted and the memory of its vectors is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import scipy.fft
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spectra.defaults import DENSITY_PROBES, DENSITY_STEPS, RTOL, TOLERANCE
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.eigensolver import Eigensolver, least_basis, vectors_held
from spectra.krylov.hutchinson import EACH, FEWEST, PRODUCTS, hutchinson
from spectra.krylov.lanczos import Lanczos
from spectra.krylov.placement import Placement, fits, most_room, placement
from spectra.krylov.quadrature import BESIDES, spectral_measure
from spectra.krylov.quadrature import basis_of as basis_of_steps
from spectra.krylov.results import Eigenpairs
from spectra.krylov.reverse_communication import serve_products
from spectra.krylov.xtrace import ARRAYS, xtrace
from spectra.krylov.xtrace import LARGEST as LARGEST_ARRAYS
from spectra.memory import MemoryTracker

PILOT = 20  # products; with 12, the forecast for a trace is off by more than a factor of two in one run of twenty
LARGEST = 2000  # rows of a surrogate
LONGEST = 400  # products with a surrogate; more is reported as "at least"
RUNS = 5  # of the trace method; their median is the forecast
CONVERGED = 0.05  # relative residual below which a Ritz value is one eigenvalue, unless its weight is that of many
PASSING = 3  # vectors on the device if the basis is on the host: one, its product, and the next
DOUBT = 0.25  # relative error of the trace above which nothing is certain, because products scale as 1 / trace^2


@dataclass(frozen=True)
class Forecast:
    """The forecast cost of one run of a method."""

    products: int
    bytes: int  # peak memory of its vectors on the device
    seconds: float  # of its own work, without products and without work that grows with n
    at_least: bool = False  # whether the true cost may be far higher
    host_bytes: int = 0  # memory of its vectors on the host, if the basis is there
    largest: int | None = None  # rows of the largest matrix for which the smallest basis fits memory


@dataclass(frozen=True)
class Outline:
    """An outline of a spectrum: groups of `counts` eigenvalues, spread evenly over `values` +- `spreads`."""

    values: Tensor  # (m,), float64
    spreads: Tensor  # (m,)
    counts: Tensor  # (m,), int64; their sum is n
    alone: Tensor  # (m,), bool: whether a group is a single, well-known eigenvalue
    dtype: torch.dtype  # of the vectors
    device: torch.device
    mesh: Any = None  # of processes, where vectors are sharded

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n) of the matrix."""
        n = int(self.counts.sum())
        return torch.Size((n, n))

    @property
    def trace(self) -> float:
        """The trace of the outlined spectrum."""
        return (self.counts * self.values).sum().item()

    @property
    def trace_error(self) -> float:
        """The standard deviation of `trace`, in which groups that are not `alone` come from one random vector."""
        counts, values = self.counts[~self.alone], self.values[~self.alone]
        if not len(counts):
            return 0.0
        mean = (counts * values).sum() / counts.sum()
        return math.sqrt(2 * (counts * ((values - mean).square() + self.spreads[~self.alone].square() / 3)).sum())


def outline(pilot: Lanczos) -> Outline:
    """Outline the spectrum from a Lanczos run with one random start.

    The spectral measure of a Ritz vector has the Ritz value as mean and the residual as standard deviation. Its weight,
    times n, is about the number of eigenvalues that it represents. This number is chi-square distributed with as many
    degrees of freedom, so the weight of a single eigenvalue says little.
    """
    values, weights, residuals = without_copies(pilot)
    counts = pilot.dimension * weights / weights.sum()
    alone = residuals <= CONVERGED * values.abs()
    if alone.any() and counts[alone].median() < 3:  # else multiple by symmetry, as for softmax at zero weights
        alone &= counts < 30  # a single eigenvalue does not reach this by chance
    else:
        alone[:] = False
    counts = torch.where(alone, 1, counts.clamp(min=1).round()).long()
    fill(counts, pilot.dimension)
    gaps = torch.nn.functional.pad(values.diff(), (1, 1), value=math.inf)
    spreads = torch.minimum(math.sqrt(3) * residuals, torch.minimum(gaps[:-1], gaps[1:]) / 2)
    vectors = pilot.storage
    mesh = getattr(vectors, "device_mesh", None)
    return Outline(values, spreads, counts, alone, vectors.dtype, vectors.device, mesh)


def without_copies(pilot: Lanczos) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values, weights and residuals, with the copies into which rounding splits an eigenvalue merged."""
    values, coordinates, residuals = pilot.ritz()
    close = 10 * torch.finfo(pilot.basis.dtype).eps * values.abs().max()
    first = torch.nn.functional.pad(values.diff() > close, (1, 0), value=True)
    group = first.cumsum(0) - 1
    weights = torch.zeros(int(first.sum()), dtype=torch.float64).index_add(0, group, coordinates[0].square())
    residuals = torch.full_like(weights, math.inf).scatter_reduce(0, group, residuals, "amin")
    return values[first], weights, residuals


def fill(counts: Tensor, total: int) -> None:
    """Change the largest counts, in place, so that their sum is `total`."""
    while excess := int(counts.sum()) - total:
        largest = counts.argmax()
        counts[largest] = max(1, int(counts[largest]) - excess)


@dataclass
class Surrogate:
    """The matrix F' diag(values) F, with F a cosine transform after random signs: it has any spectrum given."""

    values: Tensor
    signs: Tensor
    dtype: torch.dtype
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    products: int = 0
    seconds: float = 0.0

    @property
    def shape(self) -> torch.Size:
        """The shape of the surrogate."""
        return torch.Size((len(self.values), len(self.values)))

    def __matmul__(self, vectors: Tensor) -> Tensor:
        start = time.perf_counter()
        values, signs = (x.numpy().reshape(-1, *[1] * (vectors.ndim - 1)) for x in (self.values, self.signs))
        waves = scipy.fft.dct(signs * vectors.numpy(), norm="ortho", axis=0)
        image = signs * scipy.fft.idct(values * waves, norm="ortho", axis=0)
        self.products += 1 if vectors.ndim == 1 else vectors.shape[1]
        self.seconds += time.perf_counter() - start
        return torch.from_numpy(image).clone()


def surrogate(seen: Outline, generator: torch.Generator, keep_norm: bool = False) -> Surrogate:
    """Make a matrix with the outlined spectrum, with the largest groups cut so that it has at most LARGEST rows.

    With `keep_norm`, groups that were cut are scaled up to their former Frobenius norm.
    """
    held = seen.counts.clamp(max=largest_group(seen.counts))
    groups = []
    for value, spread, count, full in zip(seen.values, seen.spreads, held.tolist(), seen.counts.tolist(), strict=True):
        across = (2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1
        groups.append((value + spread * across) * (math.sqrt(full / count) if keep_norm else 1))
    values = torch.cat(groups)
    values = values[torch.randperm(len(values), generator=generator)]
    signs = 2 * torch.randint(2, (len(values),), generator=generator) - 1
    return Surrogate(values.to(seen.dtype), signs.to(seen.dtype), seen.dtype)


def largest_group(counts: Tensor) -> int:
    """The size at which groups are cut, so that there are LARGEST rows in all."""
    rising, cut = counts.sort().values.tolist(), LARGEST
    for done, count in enumerate(rising):
        cut = (LARGEST - sum(rising[:done])) // (len(rising) - done)
        if count > cut:
            return cut
    return rising[-1]


def forecast_eigenpairs(seen: Outline, k: int, *, tolerance: float = TOLERANCE, generator: torch.Generator) -> Forecast:
    """Forecast the cost of `eigenpairs` for the k eigenvalues of largest magnitude."""
    place = basis_of(seen, k)

    def run(matrix: Surrogate) -> Eigenpairs:
        search = Eigensolver(matrix, k, "LM", tolerance, generator, LONGEST, place.vectors, progress=None)
        return serve_products(search.solve(), matrix)

    answer, cost = run_measured(run, surrogate(seen, generator), seen)
    largest = largest_matrix(seen, vectors_held(k, least_basis(k)))
    return split(replace(cost, at_least=not answer.converged, largest=largest), place, seen, PASSING)


def forecast_measure(
    seen: Outline, *, probes: int = DENSITY_PROBES, steps: int = DENSITY_STEPS, generator: torch.Generator
) -> Forecast:
    """Forecast the cost of `spectral_measure`."""
    place = basis_of_steps(seen, steps)
    run = partial(spectral_measure, probes=probes, steps=steps, largest_basis=place.vectors, generator=generator)
    cost = run_measured(run, surrogate(seen, generator), seen)[1]
    return split(replace(cost, largest=largest_matrix(seen, steps + 1 + BESIDES)), place, seen, BESIDES)


def split(cost: Forecast, place: Placement, seen: Outline, passing: int) -> Forecast:
    """Split the bytes of a cost between device and host: if the basis is on the host, the device has few vectors."""
    if place.device.type == seen.device.type:
        return cost
    there = min(cost.bytes, passing * seen.shape[0] * seen.dtype.itemsize)
    return replace(cost, bytes=there, host_bytes=cost.bytes - there)


def largest_matrix(seen: Outline, vectors: int) -> int:
    """The rows of the largest matrix for which this number of vectors fits memory, on the device or its host."""
    processes = seen.mesh.size() if seen.mesh else 1
    return processes * most_room(seen) // (vectors * seen.dtype.itemsize)


def forecast_trace(seen: Outline, *, rtol: float = RTOL, generator: torch.Generator) -> Forecast:
    """Forecast the cost of `xtrace`, as the median of some runs.

    The standard error that stops a run is itself an estimate, so single runs stop early or late. If the pilot does not
    show how far the trace is from zero, the forecast is a lower bound (`at_least`).
    """
    at_least = seen.trace_error > DOUBT * abs(seen.trace)
    trace = math.copysign(abs(seen.trace) + 2 * at_least * seen.trace_error, seen.trace)
    costs = [one_trace(seen, trace, rtol, generator) for _ in range(RUNS)]
    return replace(sorted(costs, key=lambda cost: cost.products)[RUNS // 2], at_least=at_least)


def one_trace(seen: Outline, trace: float, rtol: float, generator: torch.Generator) -> Forecast:
    """Forecast the cost of one run of `xtrace` for a matrix of this trace."""
    matrix = surrogate(seen, generator, keep_norm=True)
    arrays = ARRAYS * min(FEWEST, seen.shape[0])
    place = placement(seen, arrays // 2)
    if not fits(seen, place, arrays):
        return by_signs(seen, matrix, trace, rtol, generator)
    return split(by_sketch(seen, matrix, trace, rtol, generator), place, seen, PASSING)


def by_signs(seen: Outline, matrix: Surrogate, trace: float, rtol: float, generator: torch.Generator) -> Forecast:
    """Forecast the cost of a trace by random signs alone, which `xtrace` uses if no sketch fits memory."""
    known = trace - matrix.values.sum(dtype=torch.float64).item()
    run = partial(hutchinson, rtol=rtol, known=known, generator=generator, max_products=LONGEST)
    answer, cost = run_measured(run, matrix, seen)
    width = columns(fitting_vectors(seen), EACH)
    cost = replace(cost, bytes=EACH * width * seen.shape[0] * seen.dtype.itemsize)
    if answer.converged or not math.isfinite(answer.standard_error):
        return cost
    shortfall = answer.standard_error / (rtol * abs(answer.value))
    return replace(cost, products=int(min(PRODUCTS, cost.products * shortfall**2)))


def by_sketch(seen: Outline, matrix: Surrogate, trace: float, rtol: float, generator: torch.Generator) -> Forecast:
    """Forecast the cost of a trace by `xtrace`, if its sketch fits memory."""
    largest = max(FEWEST, LARGEST_ARRAYS // (4 * seen.shape[0] * seen.dtype.itemsize))
    run = partial(
        xtrace,
        rtol=rtol,
        known=trace - matrix.values.sum(dtype=torch.float64).item(),
        generator=generator,
        max_products=min(LONGEST, 2 * largest),
    )
    answer, cost = run_measured(run, matrix, seen)
    if answer.converged or not math.isfinite(answer.standard_error):
        return cost
    vectors = cost.products // 2
    shortfall = answer.standard_error / (rtol * abs(answer.value))
    if vectors == largest:  # then signs on the complement, which take one product each; vectors of the sketch take two
        return replace(cost, products=min(PRODUCTS, cost.products + int(vectors * min(shortfall**2, PRODUCTS))))
    products = min(PRODUCTS, products_needed(vectors, shortfall, seen.shape[0]))
    return replace(cost, products=products, bytes=cost.bytes * products // cost.products)


def products_needed(vectors: int, shortfall: float, n: int) -> int:
    """Predict the products of `xtrace`, if this number of vectors leaves `shortfall` times the error asked for.

    The number of vectors grows by half at a time, and the error falls with its square root; or the trace is computed
    exactly.
    """
    while shortfall > 1 and 2 * vectors < PRODUCTS:
        wanted = min(vectors + math.ceil(vectors / 2), n - 1)
        if n <= 2 * wanted or vectors == wanted:
            return 2 * vectors + n
        shortfall *= math.sqrt(vectors / wanted)
        vectors = wanted
    return 2 * vectors


def run_measured(method: Callable, matrix: Surrogate, seen: Outline) -> tuple[Any, Forecast]:
    """Run a method on a surrogate, and return its answer and its cost, with the bytes of vectors scaled to the
    true n.
    """
    start = time.perf_counter()
    with VectorMeter(len(matrix.values)) as scales:
        answer = method(matrix)
    seconds = time.perf_counter() - start - matrix.seconds
    return answer, Forecast(matrix.products, scales.peak * seen.shape[0] // len(matrix.values), seconds)


class VectorMeter(TorchFunctionMode):
    """Measures the memory of tensors made inside its context that have a dimension of size n."""

    def __init__(self, n: int):
        super().__init__()
        self.n, self.ledger = n, MemoryTracker()

    @property
    def bytes(self) -> int:
        """The bytes of these tensors that are alive now."""
        return self.ledger.bytes

    @property
    def peak(self) -> int:
        """The largest number of bytes alive at once so far."""
        return self.ledger.peak

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, Tensor) and self.n in part.shape:
                self.ledger.enter(part)
        return result
