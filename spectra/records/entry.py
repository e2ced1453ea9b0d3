"""The base class of results: the name of a matrix, whether the tolerance was met, and the cost."""

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
MOST_BY_EXAMPLE = 1000  # numbers of single examples in JSON; more are only in the NPZ file
LAST = written(last=True)


@stored
class Estimate(Stored):
    """A number with its standard error: 0.0 if it is exact, None if one probe cannot determine it."""

    value: float
    standard_error: float | None

    @classmethod
    def of(cls, value: float, standard_error: float) -> Estimate:
        """Make the record of a value and its error, which is nan if it is not known."""
        unknown = math.isfinite(value) and math.isnan(standard_error)
        return cls(value=value, standard_error=None if unknown else standard_error)


@stored
class DerivativeCheck(Stored):
    """The comparison of one product of the matrix with finite differences."""

    examples: int = 0
    dtype: str | None = None
    error: float | None = None  # of the product, relative; None if the check was not conclusive
    rounding: float | None = None  # of a product in the problem's own dtype against one in float64, relative
    gradients: int = 0  # what it cost, in gradients of these examples
    not_checked: str | None = None  # why some or all parameters were not checked


@stored
class FiniteDifference(Stored):
    """The finite differences of gradients that products were computed by, and the error of one product."""

    form: str  # central or forward
    step: float  # length of a displacement divided by |w|
    length: float  # of a displacement
    error: float  # |H v by differences - H v| / |H v| for one random v
    estimated: bool = False  # `error` compares with differences of a longer step, as there is no exact H v
    not_exact: str | None = None  # why there is no exact H v


def in_ieee(entry: Entry) -> bool:
    """Whether all products were computed in ieee precision."""
    return entry.precision == IEEE


def without_noise(entry: Entry) -> bool:
    """Whether all products were exact and in ieee precision."""
    return in_ieee(entry) and entry.finite_difference is None


@stored
class Entry(Stored):
    """The base class of results: what a command computed for one matrix, and its cost.

    Attributes:
        curvature: the name of the matrix.
        converged: whether every tolerance was met.
        products: the number of matrix-vector products, including those of checks.
        seconds: the time of the products and the method, in seconds.
        setup_seconds: the time of tracing and other work that is done once for the matrix, in seconds.
        noise: the noise of one product, relative to the product; None if it was not measured.
        precision: the precision of products: ieee, tf32 or bf16.
        noise_norm: the largest measured |E v| / |v|, with E v the noise of a product, in units of the eigenvalues; None
            if products are exact and in full precision.
        ieee_products: the number of products that were exact and in full precision.
        finite_difference: the error of finite-difference products; None if products are exact.
        derivative_check: the comparison of derivatives with finite differences; None if it was left out.
        path: the way in which products were computed.
        kept_bytes: the memory kept between products, beyond model and data, in bytes.
        peak_bytes: the peak memory during a product, beyond model and data, in bytes.
        projected_out: the number of eigenvectors that were projected out.
        projected_from: the file of the eigenvectors that were projected out; None if there are none.
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
        except AttributeError as missing:
            return f"{type(self).__name__}(without {missing})"

    def _repr_html_(self) -> str:
        return shown(repr(self), self.table(), self.png())

    def summary(self) -> str:
        """The main numbers on one line."""
        return ""

    def table(self) -> list[dict[str, str]]:
        """The rows that a notebook shows below the summary."""
        return []

    def png(self) -> bytes | None:
        """The figure that a notebook shows, as the bytes of a PNG, or None."""
        return None

    def is_finite(self) -> bool:
        """Whether all numbers are finite, apart from an unknown standard error."""
        known = {key: value for key, value in self.to_dict().items() if (key, value) != ("standard_error", math.inf)}
        return finite(known) == known

    def rows(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows of a table of these numbers, as dictionaries."""
        yield {}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the NPZ file by name: `<what>_<matrix>`."""
        named = ((slot, vars(self).get(slot.name)) for slot in layout(type(self)) if slot.array)
        return {f"{slot.array}_{self.curvature}": array for slot, array in named if array is not None}

    def with_arrays(self, arrays: dict[str, np.ndarray]) -> Entry:
        """A copy with the arrays that are only in the NPZ file."""
        held = vars(self)
        slots = [s for s in layout(type(self)) if s.array and (not s.key or (s.optional and s.name not in held))]
        found = {slot.name: arrays.get(f"{slot.array}_{self.curvature}") for slot in slots}
        return self.changed(**{name: array for name, array in found.items() if array is not None})


def cost_of(measurement: Any) -> dict[str, Any]:
    """The fields that all entries have, from a `run.measurement.Measurement`."""
    cost = measurement.cost()
    check, difference = cost["derivative_check"], cost["finite_difference"]
    parts = {
        "derivative_check": check and DerivativeCheck(**check),
        "finite_difference": difference and FiniteDifference(**difference),
    }
    return {"curvature": measurement.curvature, **cost, **parts}


def with_errors(values: np.ndarray, errors: np.ndarray) -> str:
    """The first few numbers as text, each with its error."""
    shown = [f"{value:.4g} ± {error:.1g}" for value, error in zip(values[:MOST_SHOWN], errors, strict=False)]
    return ", ".join([*shown, *(["..."] if len(values) > MOST_SHOWN else [])])
