"""The record of a preconditioner: whose it is, and beyond which eigenvalue its optimizer is unstable."""

from __future__ import annotations

from typing import Any

from spectra.records.fields import Stored, stored

# Matrices of products of gradients, which have no weight decay and no threshold of stability.
OF_GRADIENTS = ("fisher-empirical", "gradient-covariance", "fisher-batch")


@stored
class PreconditionRecord(Stored):
    """The P of a preconditioned matrix P^-1/2 A P^-1/2, in place of A.

    The thresholds are in the units of the eigenvalues that the record holds.
    """

    spec: str  # as on the command line, or the type of an object
    optimizer: str | None = None  # the name of torch's class; None: P was given itself
    matched: str | None = None  # how a saved state's parameters were told: names, or order; None: they were known
    rate: float | None = None  # eta; None where rates differ between parameters, so that P / eta stands for P
    threshold: float | None = None  # of stability: below it, positive eigenvalues converge
    threshold_upper: float | None = None  # above it an eigenvalue diverges; `threshold` unless weight decay differs
    threshold_reason: str | None = None  # why there is no threshold
    decay: bool = False  # the optimizer's weight decay is added
    maximize: bool = False  # the optimizer maximizes, so that -A stands for A
    sha256: str | None = None  # of the file that P was read from

    def get(self, name: str) -> Any:
        """A field, or None where the record does not tell."""
        return getattr(self, name, None)

    def threshold_of(self, curvature: str) -> float | None:
        """The threshold of stability for the eigenvalues of the matrix of this name; None where there is none."""
        return None if curvature.startswith(OF_GRADIENTS) else self.get("threshold")

    @classmethod
    def of(cls, spec: str, found: Any, sha256: str | None = None) -> PreconditionRecord:
        """The record of a `spectra.optimizer.preconditioner.Preconditioner` that this spec names."""
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
    """The name of a matrix for a reader: `hessian, preconditioned`."""
    return f"{curvature}, preconditioned" if precondition else curvature


def number(threshold: float) -> str:
    """A threshold to five digits, as `38000` or `1.2667e6`."""
    return f"{threshold:.5g}".replace("e+0", "e")
