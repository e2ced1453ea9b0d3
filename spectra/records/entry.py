"""The common part of all results: the name of a matrix, whether the tolerance was met, and the cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

import numpy as np

from spectra.defaults import IEEE
from spectra.records.fields import Stored, layout, stored, written
from spectra.records.files import finite
from spectra.records.notebook import shown

MOST_SHOWN = 3  # numbers in a repr
MOST_BY_EXAMPLE = 1000  # numbers of single examples that JSON holds; the NPZ file holds any
LAST = written(last=True)


@stored
class Estimate(Stored):
    """A number with its standard error: 0.0 where it is exact, None where one probe cannot tell."""

    value: float
    standard_error: float | None

    @classmethod
    def of(cls, value: float, standard_error: float) -> Estimate:
        """Make the record of a value and an error that is nan where it is not known."""
        unknown = math.isfinite(value) and math.isnan(standard_error)
        return cls(value=value, standard_error=None if unknown else standard_error)


@stored
class DerivativeCheck(Stored):
    """The comparison of one product of the matrix with finite differences."""

    examples: int = 0
    dtype: str | None = None
    error: float | None = None  # of the product, relative; None where nothing could be told
    rounding: float | None = None  # of a product in the problem's own dtype against one in float64, relative
    gradients: int = 0  # what it cost, in gradients of these examples
    not_checked: str | None = None  # why, of all or of some parameters


@stored
class FiniteDifference(Stored):
    """The differences of gradients that products were, and how far one was off."""

    form: str  # central or forward
    step: float  # length of a displacement over |w|
    length: float  # of a displacement
    error: float  # |H v by differences - H v| / |H v| for one random v
    estimated: bool = False  # there is no exact H v: differences of a longer step stand for it in `error`
    not_exact: str | None = None  # why there is none


def in_ieee(entry: Entry) -> bool:
    """Whether all products were in ieee."""
    return entry.precision == IEEE


def without_noise(entry: Entry) -> bool:
    """Whether no products were noisy: in ieee, and exact."""
    return in_ieee(entry) and entry.finite_difference is None


@stored
class Entry(Stored):
    """The common part of all results: what a command found for one matrix, and what that cost.

    Attributes:
        curvature: the name of the matrix.
        converged: whether every tolerance was met.
        products: the number of matrix-vector products, those of checks included.
        seconds: the time of products and method.
        setup_seconds: the time of what is done once for the matrix.
        noise: the noise of one product, relative to the product; None: not measured.
        precision: the precision of products, ieee, tf32 or bf16.
        noise_norm: the largest |E v| / |v| that was measured, with E v the noise of a product; None without lower
            precision.
        ieee_products: of all products, those in full precision, or exact.
        finite_difference: the error of finite-difference products; None where products are exact.
        derivative_check: the comparison of derivatives with finite differences; None: it was left out.
        path: how products were computed.
        kept_bytes: the memory kept between products, besides model and data.
        peak_bytes: the most memory in use during a product, besides model and data.
        projected_out: the number of eigenvectors projected out.
        projected_from: the result that these eigenvectors are from; None: none were projected out.
    """

    curvature: str
    converged: bool = field(metadata=LAST)
    products: int = field(metadata=LAST)
    seconds: float = field(metadata=LAST)
    setup_seconds: float = field(metadata=LAST)
    noise: float | None = field(default=None, metadata=LAST)
    precision: str = field(default=IEEE, metadata=written(last=True, omitted=in_ieee))
    noise_norm: float | None = field(default=None, metadata=written(last=True, omitted=without_noise))
    ieee_products: int = field(default=0, metadata=written(last=True, omitted=without_noise))
    finite_difference: FiniteDifference | None = field(
        default=None, metadata=written(last=True, omitted=lambda entry: entry.finite_difference is None)
    )
    derivative_check: DerivativeCheck | None = field(default=None, metadata=LAST)
    path: str = field(default="", metadata=LAST)
    kept_bytes: int = field(default=0, metadata=LAST)
    peak_bytes: int = field(default=0, metadata=LAST)
    projected_out: int = field(default=0, metadata=written(last=True, omitted=lambda entry: not entry.projected_from))
    projected_from: str | None = field(
        default=None, metadata=written(last=True, omitted=lambda entry: not entry.projected_from)
    )

    def __repr__(self) -> str:
        try:
            state = "" if self.converged else ", not converged"
            cost = f"{self.products} products in {self.seconds:.3g} s{state}"
            return f"{type(self).__name__}({self.curvature}: {self.summary()}; {cost})"
        except AttributeError as lacking:
            return f"{type(self).__name__}(without {lacking})"

    def _repr_html_(self) -> str:
        return shown(repr(self), self.table(), self.png())

    def summary(self) -> str:
        """The main numbers in a line."""
        return ""

    def table(self) -> list[dict[str, str]]:
        """The rows that a notebook shows below the summary."""
        return []

    def png(self) -> bytes | None:
        """The figure that a notebook shows, as the bytes of a PNG; None for none."""
        return None

    def is_finite(self) -> bool:
        """Whether all numbers are finite, but for a standard error that is not known."""
        known = {key: value for key, value in self.to_dict().items() if (key, value) != ("standard_error", math.inf)}
        return finite(known) == known

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of a table of these numbers, column by column."""
        yield {}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that stand in the NPZ file, by their names there: `<what>_<matrix>`."""
        named = ((slot, vars(self).get(slot.name)) for slot in layout(type(self)) if slot.array)
        return {f"{slot.array}_{self.curvature}": array for slot, array in named if array is not None}

    def with_arrays(self, arrays: dict[str, np.ndarray]) -> Entry:
        """A copy that has the arrays which only the NPZ file holds."""
        held = vars(self)
        slots = [s for s in layout(type(self)) if s.array and (not s.key or (s.optional and s.name not in held))]
        found = {slot.name: arrays.get(f"{slot.array}_{self.curvature}") for slot in slots}
        return self.changed(**{name: array for name, array in found.items() if array is not None})


def cost_of(measurement: Any) -> dict[str, Any]:
    """The fields that all entries have, of a `run.measurement.Measurement`."""
    cost = measurement.cost()
    check, difference = cost["derivative_check"], cost["finite_difference"]
    parts = {
        "derivative_check": check and DerivativeCheck(**check),
        "finite_difference": difference and FiniteDifference(**difference),
    }
    return {"curvature": measurement.curvature, **cost, **parts}


def with_errors(values: np.ndarray, errors: np.ndarray) -> str:
    """The first numbers of many, each with its error."""
    shown = [f"{value:.4g} ± {error:.1g}" for value, error in zip(values[:MOST_SHOWN], errors, strict=False)]
    return ", ".join([*shown, *(["..."] if len(values) > MOST_SHOWN else [])])
