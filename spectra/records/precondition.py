"""The record of a preconditioner: its optimizer, and the eigenvalue above which training is unstable."""

from __future__ import annotations

from typing import Any

from spectra.records.fields import Stored, stored

# Matrices made of products of gradients, without weight decay and without a threshold of stability.
OF_GRADIENTS = ("fisher-empirical", "gradient-covariance", "fisher-batch")


@stored
class PreconditionRecord(Stored):
    """The preconditioner P, if results are those of P^-1/2 A P^-1/2 in place of A.

    Thresholds are in the units of the eigenvalues of the record.
    """

    spec: str  # as on the command line, or the type of an object
    optimizer: str | None = None  # class of the torch optimizer; None: P itself was given
    matched: str | None = None  # how parameters were matched to a saved state: names or order; None: known
    rate: float | None = None  # eta; None if rates differ between parameters, so that P / eta is used
    threshold: float | None = None  # of stability: below it, positive eigenvalues converge
    threshold_upper: float | None = None  # above it an eigenvalue diverges; `threshold` unless weight decay differs
    threshold_reason: str | None = None  # why there is no threshold
    decay: bool = False  # whether the optimizer's weight decay is added
    maximize: bool = False  # whether the optimizer maximizes, so that -A is used
    sha256: str | None = None  # of the file that P was read from

    def get(self, name: str) -> Any:
        """A field, or None if the record lacks it."""
        return getattr(self, name, None)

    def threshold_of(self, curvature: str) -> float | None:
        """The threshold of stability for the eigenvalues of this matrix; None if there is none."""
        return None if curvature.startswith(OF_GRADIENTS) else self.get("threshold")

    @classmethod
    def of(cls, spec: str, found: Any, sha256: str | None = None) -> PreconditionRecord:
        """Make the record of a `spectra.optimizer.preconditioner.Preconditioner` with this spec."""
        return cls(
            spec=spec,
            optimizer=found.optimizer,
            matched=found.matched,
            rate=found.rate,
            threshold=found.threshold.value,
            threshold_upper=found.threshold.upper,
            threshold_reason=found.threshold.reason,
            decay=found.decay is not None,
            maximize=found.sign < 0,
            sha256=sha256,
        )


def titled(curvature: str, precondition: PreconditionRecord | None) -> str:
    """The name of a matrix in tables and figures, such as `hessian, preconditioned`."""
    return f"{curvature}, preconditioned" if precondition else curvature


def number(threshold: float) -> str:
    """A threshold to five digits, as `38000` or `1.2667e6`."""
    return f"{threshold:.5g}".replace("e+0", "e")
