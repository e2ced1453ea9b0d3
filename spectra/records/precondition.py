"""The record of a preconditioner: whose it is, and beyond which eigenvalue its optimizer is unstable."""

from __future__ import annotations

from typing import Any

from spectra.records.fields import Stored, stored


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
    maximize: bool = False  # the optimizer maximizes, so that -A stands for A
    sha256: str | None = None  # of the file that P was read from

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
            maximize=found.sign < 0,
            sha256=sha256,
        )
