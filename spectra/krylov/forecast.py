"""Forecasts of what a method will cost on a matrix: its products, and the memory of its vectors.

A short Lanczos run, the pilot, shows roughly which spectrum the matrix has. A surrogate with that spectrum, small and
cheap to multiply by, is then given to the method itself, whose products are counted and whose vectors are measured.
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
from spectra.memory import Ledger

PILOT = 20  # products; from 12 the forecast of a trace is off by more than two in one run of twenty
LARGEST = 2000  # rows of a surrogate
LONGEST = 400  # products with a surrogate; more is reported as "at least"
RUNS = 5  # of the trace method; their median is the forecast
CONVERGED = 0.05  # relative residual below which a Ritz value stands for one eigenvalue, unless its weight says more
PASSING = 3  # vectors that are on the device where the basis is on the host: one, its image, and the next
DOUBT = 0.25  # of the trace: products go with 1 / trace^2, so a larger error of it leaves little to tell


@dataclass(frozen=True)
class Forecast:
    """The forecast cost of one run of a method."""

    products: int
    bytes: int  # of its vectors on the device, at their peak
    seconds: float  # of its own work beside products and beside what grows with n
    at_least: bool = False  # whether it may be far more
    host_bytes: int = 0  # of its vectors on the host, where the basis of a device lies there
    largest: int | None = None  # rows of the largest matrix whose smallest basis memory holds


@dataclass(frozen=True)
class Outline:
    """A spectrum seen from afar: groups of `counts` eigenvalues, evenly over `values` - `spreads` to + `spreads`."""

    values: Tensor  # (m,), float64
    spreads: Tensor  # (m,)
    counts: Tensor  # (m,), int64; their sum is n
    alone: Tensor  # (m,), bool: one eigenvalue, known well
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
        """Standard deviation: the trace of all that is not `alone` comes from one random vector."""
        counts, values = self.counts[~self.alone], self.values[~self.alone]
        if not len(counts):
            return 0.0
        mean = (counts * values).sum() / counts.sum()
        return math.sqrt(2 * (counts * ((values - mean).square() + self.spreads[~self.alone].square() / 3)).sum())


def outline(pilot: Lanczos) -> Outline:
    """The spectrum as a run from one random start sees it.

    A Ritz vector's own spectral measure has the Ritz value for mean and the residual for standard deviation; its
    weight, times n, is about the number of eigenvalues that it stands for (chi-square over as many, so that of a
    lone eigenvalue the weight says little).
    """
    values, weights, residuals = without_copies(pilot)
    counts = pilot.dimension * weights / weights.sum()
    alone = residuals <= CONVERGED * values.abs()
    if alone.any() and counts[alone].median() < 3:  # else multiple by a symmetry: softmax at zero weights, for one
        alone &= counts < 30  # which chance alone does not make of one
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
    """Ritz values, weights and residuals; values that only rounding has split, of a multiple eigenvalue, as one."""
    values, coordinates, residuals = pilot.ritz()
    close = 10 * torch.finfo(pilot.basis.dtype).eps * values.abs().max()
    first = torch.nn.functional.pad(values.diff() > close, (1, 0), value=True)
    group = first.cumsum(0) - 1
    weights = torch.zeros(int(first.sum()), dtype=torch.float64).index_add(0, group, coordinates[0].square())
    residuals = torch.full_like(weights, math.inf).scatter_reduce(0, group, residuals, "amin")
    return values[first], weights, residuals


def fill(counts: Tensor, total: int) -> None:
    """Bring the sum of counts to `total`, at the expense of the largest; in place."""
    while excess := int(counts.sum()) - total:
        largest = counts.argmax()
        counts[largest] = max(1, int(counts[largest]) - excess)


@dataclass
class Surrogate:
    """F' diag(values) F with F a cosine transform after random signs: any spectrum, in directions of no preference."""

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
    """A matrix with the outline's spectrum, the largest groups cut where it would have more than LARGEST rows.

    With `keep_norm` groups that were cut are scaled up to the Frobenius norm they had.
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
    """The size at which groups are cut for LARGEST rows in all."""
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
    """The cost with its bytes split: of a basis on the host, `passing` vectors are on the device at a time."""
    if place.device.type == seen.device.type:
        return cost
    there = min(cost.bytes, passing * seen.shape[0] * seen.dtype.itemsize)
    return replace(cost, bytes=there, host_bytes=cost.bytes - there)


def largest_matrix(seen: Outline, vectors: int) -> int:
    """The rows of the largest matrix of which memory holds so many vectors, on the device or its host."""
    processes = seen.mesh.size() if seen.mesh else 1
    return processes * most_room(seen) // (vectors * seen.dtype.itemsize)


def forecast_trace(seen: Outline, *, rtol: float = RTOL, generator: torch.Generator) -> Forecast:
    """Forecast the cost of `xtrace`, as the median of some runs.

    The standard error that ends a run is itself an estimate, and ends it early or late. Where the pilot leaves open how
    far the trace is from zero, the forecast is a lower bound (`at_least`).
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
    """Forecast the cost of a trace by random signs alone, as `xtrace` goes where memory holds no sketch."""
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
    """Forecast the cost of a trace by `xtrace`, where memory holds its sketch."""
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
    if vectors == largest:  # signs on the complement of the sketch, a product each where its vectors took two
        return replace(cost, products=min(PRODUCTS, cost.products + int(vectors * min(shortfall**2, PRODUCTS))))
    products = min(PRODUCTS, products_needed(vectors, shortfall, seen.shape[0]))
    return replace(cost, products=products, bytes=cost.bytes * products // cost.products)


def products_needed(vectors: int, shortfall: float, n: int) -> int:
    """The products of `xtrace`, where so many vectors leave an error of `shortfall` times the one asked for.

    The number of vectors grows by half at a time, and the error falls with its root; or the trace is taken exactly.
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
    """A meter of the tensors made inside its context that have a dimension of size n: `peak` bytes alive at once."""

    def __init__(self, n: int):
        super().__init__()
        self.n, self.ledger = n, Ledger()

    @property
    def bytes(self) -> int:
        """The bytes of such tensors that are alive."""
        return self.ledger.bytes

    @property
    def peak(self) -> int:
        """The largest number of such bytes so far."""
        return self.ledger.peak

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, Tensor) and self.n in part.shape:
                self.ledger.enter(part)
        return result
