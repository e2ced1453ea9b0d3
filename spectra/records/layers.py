"""The result of `spectra layers` for one matrix: its diagonal blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra.records.density import measure_of
from spectra.records.entry import Entry
from spectra.records.fields import Matrix, Stored, Vector, stored, written

if TYPE_CHECKING:
    from spectra.krylov.results import SpectralMeasure


@stored
class LowRank(Stored):
    """Stable ranks of the parts of leading eigenvectors that belong to one weight, as matrices of its shape."""

    weight: str
    stable_rank: float  # of the block's own leading eigenvector
    of_whole: float | None  # of the whole matrix's


def first_pair(values: np.ndarray | None, residuals: np.ndarray | None) -> tuple[float, float] | None:
    """The first eigenvalue and its residual; None if there is none."""
    if values is None or residuals is None or not len(values):
        return None
    return float(values[0]), float(residuals[0])


def unmeasured(block: Block) -> bool:
    """Whether no density of the block was computed; its fields are then left out."""
    return block.nodes is None


@stored
class Block(Stored):
    """One diagonal block of a matrix.

    Numbers that were not requested, and errors that one probe cannot determine, are None.
    """

    name: str
    parameters: int
    trace: float
    standard_error: float | None
    share: float | None  # of the whole trace; None if that is zero
    share_error: float | None
    mean: float  # eigenvalue
    mean_error: float | None
    sensitivity: float  # sum of d theta^2 / 2, d the diagonal
    sensitivity_error: float | None
    values: Vector | None = field(metadata=written("eigenvalues"))  # (k,)
    residuals: Vector | None  # (k,)
    complete: bool | None
    mass: float | None  # |u|^2 in the block, u the leading eigenvector of the whole matrix
    overlap: float | None  # cosine between that and the block's own leading eigenvector
    low_rank: list[LowRank] | None  # of each weight
    nodes: Matrix | None = field(default=None, metadata=written(omitted=unmeasured))  # (probes, steps)
    weights: Matrix | None = field(default=None, metadata=written(omitted=unmeasured))
    dimension: int | None = field(default=None, metadata=written(omitted=unmeasured))
    deflated: int | None = field(default=None, metadata=written(omitted=unmeasured))

    @property
    def leading(self) -> tuple[float, float] | None:
        """The first eigenvalue and its residual."""
        return first_pair(self.values, self.residuals)

    def measure(self) -> SpectralMeasure:
        """The spectral measure, as the functions of `spectra.spectrum` take it."""
        return measure_of(self)


@stored
class LayersResult(Entry):
    """Trace, eigenvalues and density of each diagonal block of one matrix."""

    method: str
    by: str  # layer, module or channel
    sort: str
    trace: float  # of the whole matrix
    standard_error: float = field(metadata=written(null=math.inf))
    values: Vector | None = field(metadata=written("eigenvalues"))  # (1,) of the whole matrix
    residuals: Vector | None
    blocks: list[Block]
    diagonal: Vector | None = field(default=None, metadata=written(None, array="diagonal"))  # (n,) estimated
    diagonal_errors: Vector | None = field(default=None, metadata=written(None, array="errors"))  # (n,) standard errors
    # (k, n): row j holds the j-th eigenvector of every block in the block's entries, nan if it has fewer.
    block_eigenvectors: Matrix | None = field(default=None, metadata=written(None, array="block_eigenvectors"))

    @property
    def leading(self) -> tuple[float, float] | None:
        """The first eigenvalue of the whole matrix and its residual."""
        return first_pair(self.values, self.residuals)

    def summary(self) -> str:
        return f"{len(self.blocks)} blocks, trace {self.trace:.6g} ± {self.standard_error:.2g}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over blocks with their leading eigenvalues, as dictionaries."""
        names = ("trace", "standard_error", "share", "share_error", "mean", "mean_error", "sensitivity")
        for block in self.blocks:
            value, residual = block.leading or (None, None)
            row = {"block": block.name, "parameters": block.parameters} | {name: getattr(block, name) for name in names}
            row |= {"sensitivity_error": block.sensitivity_error, "eigenvalue": value, "residual": residual}
            yield row | {"mass": block.mass, "overlap": block.overlap}
