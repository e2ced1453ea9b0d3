"""The results of `spectra compare`: each matrix, each pair of matrices, and why they differ."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from spectra.records.density import Outliers, measure_fields, measure_of
from spectra.records.entry import Entry, Estimate, cost_of, with_errors
from spectra.records.fields import Matrix, Stored, Vector, stored, written

if TYPE_CHECKING:
    from spectra.krylov.results import SpectralMeasure

HELD_OUT = ", held out"  # suffix of the name of a matrix on the held-out data


def on_held_out_data(name: str) -> str:
    """The name under which a matrix on the held-out data is recorded."""
    return f"{name}{HELD_OUT}"


def of_part(name: str, part: str) -> str:
    """The name under which a matrix of one part of the loss is recorded."""
    return f"{name}, {part}"


@stored
class CompareResult(Entry):
    """Leading eigenvalues, norm, trace and spectral measure of one of the compared matrices."""

    method: str
    values: Vector = field(metadata=written("eigenvalues", array="eigenvalues"))  # (k,) by falling magnitude
    residuals: Vector = field(metadata=written(array="residuals"))  # (k,)
    norm: Estimate | None = None  # Frobenius
    trace: Estimate | None = None
    nodes: Matrix | None = field(metadata=written(array="nodes"))  # (probes, steps); None: not measured
    weights: Matrix | None = field(metadata=written(array="weights"))
    dimension: int | None
    deflated: int | None
    outliers: Outliers | None = field(default=None, metadata=written(omitted=lambda entry: entry.held_out))

    @classmethod
    def of(cls, measurement: Any, k: int, outliers: Outliers | None = None) -> CompareResult:
        """Make the record of a measurement of a `MatrixSummary`."""
        found = measurement.answer
        return cls(
            method="comparison",
            values=found.eigenpairs.values[:k].numpy(),
            residuals=found.eigenpairs.residuals[:k].numpy(),
            norm=found.norm and Estimate.of(*found.norm),
            trace=found.trace and Estimate.of(*found.trace),
            outliers=outliers,
            **measure_fields(found.measure),
            **cost_of(measurement),
        )

    @property
    def held_out(self) -> bool:
        """Whether this is the matrix on the held-out data."""
        return self.curvature.endswith(HELD_OUT)

    def measure(self) -> SpectralMeasure | None:
        """The spectral measure, as the functions of `spectra.spectrum` take it; None if it was not measured."""
        return None if self.nodes is None else measure_of(self)

    def summary(self) -> str:
        return with_errors(self.values, self.residuals)


@stored
class Extreme(Stored):
    """An eigenvalue at an end of a spectrum; the exact one lies within `residual`."""

    value: float
    residual: float


@stored
class Agreement(Stored):
    """The agreement of the subspaces spanned by the first j eigenvectors of two matrices."""

    j: int
    overlap: float  # |U_A U_B'|_F^2 / j
    error: float  # bound, from residuals
    angles: Vector  # (j,) radians, rising
    gap: float  # the smaller of the relative gaps behind j in A and in B
    told: bool  # whether there is a gap behind j; `reliable` in Python
    chance: float  # the overlap of two random spaces

    @classmethod
    def of(cls, spaces: Any, dimension: int) -> Agreement:
        """Make the record of a `comparison.agreement.Agreement` of matrices with `dimension` rows."""
        numbers = {name: value for name, value in vars(spaces).items() if name != "reliable"}
        return cls(**numbers, told=spaces.reliable, chance=spaces.j / dimension)

    @property
    def reliable(self) -> bool:
        """Whether there is a gap behind j in both matrices; the key in files is `told`."""
        return self.told


@stored
class Pair(Stored):
    """Distances between two matrices, A named `first` and B named `second`."""

    first: str
    second: str
    distance: Estimate  # |A - B|_F / |A|_F
    cosine: Estimate  # <A, B> / (|A|_F |B|_F)
    scale: Estimate  # c* = <A, B> / |B|_F^2
    scaled_distance: Estimate  # |A - c* B|_F / |A|_F
    trace_difference: Estimate  # tr (A - B)
    rounding: bool  # whether the distance is within the rounding errors of products
    first_by_second: Vector  # u'B u (k,) for the eigenvectors u of A
    second_by_first: Vector  # u'A u (k,) for the eigenvectors u of B
    largest: Extreme | None  # eigenvalue of A - B
    smallest: Extreme | None
    wasserstein: Estimate | None  # W1 of the spectra
    wasserstein_share: Estimate | None  # over the mean |eigenvalue| of A
    overlaps: list[Agreement]  # for j = 1 .. k

    @classmethod
    def of(cls, pair: Any, dimension: int) -> Pair:
        """Make the record of a `comparison.pairs.Pair` of matrices with `dimension` rows."""
        estimates = ("distance", "cosine", "scale", "scaled_distance", "trace_difference")
        spectra = ("wasserstein", "wasserstein_share")
        return cls(
            first=pair.first,
            second=pair.second,
            rounding=pair.rounding,
            first_by_second=pair.first_by_second,
            second_by_first=pair.second_by_first,
            largest=pair.largest and Extreme(**pair.largest._asdict()),
            smallest=pair.smallest and Extreme(**pair.smallest._asdict()),
            overlaps=[Agreement.of(spaces, dimension) for spaces in pair.agreements],
            **{name: Estimate.of(*getattr(pair, name)) for name in estimates},
            **{name: found and Estimate.of(*found) for name in spectra for found in [getattr(pair, name)]},
        )

    @property
    def held_out(self) -> bool:
        """Whether both are the same matrix, first on the data and then on the held-out data."""
        return self.second == on_held_out_data(self.first)

    def row(self) -> dict[str, Any]:
        """A row of a table, with a column for each number and one for its error."""
        row: dict[str, Any] = {"first": self.first, "second": self.second, "rounding": self.rounding}
        names = ("distance", "cosine", "scale", "scaled_distance", "trace_difference", "wasserstein")
        for name in names:
            found = getattr(self, name)
            row |= {name: found and found.value, f"{name}_error": found and found.standard_error}
        for name in ("largest", "smallest"):
            found = getattr(self, name)
            row |= {name: found and found.value, f"{name}_residual": found and found.residual}
        last = self.overlaps[-1] if self.overlaps else None
        return row | {"j": last and last.j, "overlap": last and last.overlap, "overlap_error": last and last.error}


@stored
class Cause(Stored):
    """The reason why two matrices differ, as a sentence and the numbers that support it."""

    between: list[str]
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict, metadata=written(rest=True))

    @classmethod
    def of(cls, cause: Any) -> Cause:
        """Make the record of a `comparison.causes.Cause`."""
        return cls(between=list(cause.between), sentence=cause.sentence, numbers=plain(cause.numbers))


def plain(value: Any) -> Any:
    """Numbers by name, with (value, error) pairs as `Estimate`."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return Estimate.of(*value) if isinstance(value, tuple) else value


@stored
class HeldOut(Stored):
    """The held-out data, on which each matrix is compared with itself."""

    data: str
    examples: int
    loss_value: float
    accuracy: float | None


@stored
class Trend(Stored):
    """One eigenvalue as a function of the number of examples N: its mean at each size, and the line a + b / N."""

    means: list[Estimate]
    at_all: Estimate  # the line at all examples
    limit: Estimate  # a: for infinitely many examples


@stored
class Subsample(Stored):
    """The largest eigenvalues of a matrix on fewer examples, and their trend."""

    curvature: str
    sizes: list[int]
    eigenvalues: Annotated[np.ndarray, 3]  # (chains of nested subsets, sizes, k)
    trends: list[Trend]  # of each eigenvalue, largest first
    examples: int  # in all
    measured: Vector  # the eigenvalues above zero on all of them
    products: int
    converged: bool

    @classmethod
    def of(cls, name: str, by_size: Any, here: np.ndarray, examples: int) -> Subsample:
        """Make the record of `SubsetEigenvalues` and of the matrix's eigenvalues (k,) on all `examples`."""
        return cls(
            curvature=name,
            sizes=by_size.sizes,
            eigenvalues=by_size.values,
            trends=[
                Trend(
                    means=[Estimate.of(*mean) for mean in trend.means],
                    at_all=Estimate.of(*trend.at_all),
                    limit=Estimate.of(*trend.limit),
                )
                for trend in by_size.trends(examples)
            ],
            examples=examples,
            measured=here[here > 0],
            products=by_size.products,
            converged=by_size.converged,
        )


@stored
class ClassStructure(Stored):
    """The GGN of cross entropy split by classes, and the shares of its parts in the leading eigenvalues.

    See `spectrum.classes`.
    """

    classes: int
    trace: float
    class_trace: float
    cross_trace: float
    within_trace: float
    class_eigenvalues: Vector  # (C,)
    mean_eigenvalues: Vector  # (C^2,)
    eigenvalues: Vector  # (k,) of the GGN without weight decay
    attribution: Matrix  # (k, 3): shares of class, cross and within in each
    overlaps: Matrix  # (k, 2): |P u|^2, P the projection onto class means, onto cross-class means

    @classmethod
    def of(cls, structure: Any) -> ClassStructure:
        """Make the record of a `spectrum.classes.ClassStructure`."""
        numbers = ("classes", "trace", "class_trace", "cross_trace", "within_trace")
        arrays = ("class_eigenvalues", "mean_eigenvalues", "eigenvalues", "attribution", "overlaps")
        found = {name: getattr(structure, name) for name in numbers}
        return cls(**found, **{name: getattr(structure, name).numpy() for name in arrays})
