"""The result of `spectra eig` for one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

from spectra.records.entry import MOST_BY_EXAMPLE, Entry, cost_of, with_errors
from spectra.records.fields import Matrix, Vector, stored, written
from spectra.records.localisation import Localisation

MOST_ROWS = 20  # shown in a notebook
LARGEST_VECTORS = 2**30  # bytes of eigenvectors that are saved without save_vectors


def of_one_matrix(entry: EigResult) -> bool:
    """Whether the result is for one matrix, and not for the matrices of single examples."""
    return entry.spread is None


def not_watched(entry: EigResult) -> bool:
    """Whether the result is not from a training loop, where missed eigenvalues are searched for only at times."""
    return entry.last_search is None


def of_many(entry: EigResult) -> bool:
    """Whether the numbers of single examples are only in the NPZ file."""
    return entry.values_by_example is None or entry.values_by_example.size > MOST_BY_EXAMPLE


@stored
class EigResult(Entry):
    """Eigenvalues of one matrix in the requested order, with their errors.

    Attributes:
        method: the method, such as lanczos.
        values: the eigenvalues (k,); with respect to inputs, their means over examples.
        residuals: the norm |A u - lambda u| of each pair (k,): an eigenvalue lies within it; with respect to inputs,
            the largest over examples.
        error_estimates: the Kato-Temple estimate of each value's error (k,): usually smaller, but not a bound.
        sampling_errors: the standard errors of the values (k,), if the matrix is itself an estimate; otherwise None.
        complete: whether a search excludes missed eigenvalues with probability 0.99; None if there was no search.
        last_search: the step of a training loop at which missed eigenvalues were last searched for; otherwise None.
        vectors: the eigenvectors (k, n), one per row, of norm 1; None if they were not saved.
        localisation: the number of parameters and the layers that hold each eigenvector; None without eigenvectors.
        spread: with respect to inputs, the standard deviation of each value over examples (k,); otherwise None.
        values_by_example: with respect to inputs, the eigenvalues of each example (N, k); otherwise None.
        residuals_by_example: with respect to inputs, the residuals of each example (N, k); otherwise None.
        vectors_by_example: with respect to inputs, the eigenvectors of each example (N, k, d), if they were saved.

    The fields of all results, such as `converged`, `products` and `seconds`, are described in the base class
    `spectra.records.entry.Entry`.
    """

    method: str
    values: Vector = field(metadata=written("eigenvalues", array="eigenvalues"))
    residuals: Vector = field(metadata=written(array="residuals"))
    error_estimates: Vector
    sampling_errors: Vector | None = field(default=None, metadata=written(omitted=lambda entry: entry.exact))
    complete: bool | None
    last_search: int | None = field(default=None, metadata=written(omitted=not_watched))
    vectors: Matrix | None = field(default=None, metadata=written(None, array="eigenvectors"))
    localisation: Localisation | None = field(
        default=None, metadata=written(omitted=lambda entry: entry.localisation is None)
    )
    # With respect to inputs, `values` are means over examples, `residuals` the largest, and these are per example.
    spread: Vector | None = field(default=None, metadata=written(omitted=of_one_matrix))
    values_by_example: Matrix | None = field(
        default=None, metadata=written("eigenvalues_by_example", array="eigenvalues_by_example", omitted=of_many)
    )
    residuals_by_example: Matrix | None = field(
        default=None, metadata=written(array="residuals_by_example", omitted=of_many)
    )
    vectors_by_example: Any = field(default=None, metadata=written(None, array="eigenvectors_by_example"))

    @classmethod
    def of(cls, measurement: Any, method: str, vectors: bool = True, last_search: int | None = None) -> EigResult:
        """Make the record of a measurement of `Eigenpairs`, with or without its eigenvectors.

        `last_search` is the step of a training loop at which missed eigenvalues were last searched for.
        """
        pairs = measurement.answer
        return cls(
            method=method,
            values=pairs.values.numpy(),
            residuals=pairs.residuals.numpy(),
            error_estimates=pairs.error_estimates.numpy(),
            sampling_errors=None if pairs.sampling_errors is None else pairs.sampling_errors.numpy(),
            complete=pairs.complete,
            last_search=last_search,
            vectors=pairs.vectors.cpu().numpy() if vectors else None,
            **cost_of(measurement),
        )

    @classmethod
    def by_example(cls, measurement: Any, method: str) -> EigResult:
        """Make the record of a measurement of `BlockEigenpairs`, for the matrices of single examples."""
        pairs = measurement.answer
        return cls(
            method=method,
            values=pairs.values.mean(dim=0).numpy(),
            residuals=pairs.residuals.amax(dim=0).numpy(),
            error_estimates=pairs.error_estimates.amax(dim=0).numpy(),
            complete=pairs.complete,
            spread=pairs.values.std(dim=0, correction=0).numpy(),
            values_by_example=pairs.values.numpy(),
            residuals_by_example=pairs.residuals.numpy(),
            vectors_by_example=pairs.vectors.numpy() if pairs.holds_vectors else None,
            **cost_of(measurement),
        )

    @property
    def exact(self) -> bool:
        """Whether the matrix is known exactly; False for an estimate, with `sampling_errors`."""
        return self.sampling_errors is None

    def is_finite(self) -> bool:
        return Entry.is_finite(self.changed(localisation=None))  # nan there means that a gap is not resolved

    def summary(self) -> str:
        if self.spread is not None:
            examples = "" if self.values_by_example is None else f" over {len(self.values_by_example)} examples"
            return f"mean ± spread{examples} {with_errors(self.values, self.spread)}, {self.method}"
        return f"{with_errors(self.values, self.residuals)}, {self.method}"

    def table(self) -> list[dict[str, str]]:
        columns = zip(self.values.tolist(), self.residuals.tolist(), strict=True)
        rows = [{"eigenvalue": f"{value:.8g}", "residual": f"{residual:.1e}"} for value, residual in columns]
        left_out = {"eigenvalue": f"... {len(rows) - MOST_ROWS} more", "residual": ""}
        return rows if len(rows) <= MOST_ROWS else [*rows[:MOST_ROWS], left_out]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over eigenvalues, as dictionaries; `index` counts from 1, in the requested order."""
        columns = (self.values.tolist(), self.residuals.tolist(), self.error_estimates.tolist())
        for i, (value, residual, error) in enumerate(zip(*columns, strict=True), start=1):
            yield {"index": i, "eigenvalue": value, "residual": residual, "error_estimate": error}


def eig_results(found: Sequence[Any], method: str, save_vectors: bool = False) -> list[EigResult]:
    """Make the entries of measurements, with eigenvectors if `save_vectors` or if these take at most 1 GiB."""
    small = sum(measurement.answer.vectors.nbytes for measurement in found) <= LARGEST_VECTORS
    wanted = save_vectors or small
    return [EigResult.of(one, method, vectors=wanted and one.answer.holds_vectors) for one in found]
