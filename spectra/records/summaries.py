"""Summary numbers of a spectrum, each with its errors, and why some are left out."""

from __future__ import annotations

from dataclasses import field

from spectra.records.fields import Stored, stored, written


@stored
class Summary(Stored):
    """A number computed from nodes and weights, with its errors."""

    value: float
    standard_error: float  # over probes
    quadrature_error: float | None  # for the same probes; None: not known


@stored
class Alternative(Stored):
    """The comparison of the power law with another distribution, by likelihood ratio."""

    name: str
    ratio: float  # log-likelihood ratio over its standard deviation; positive if the power law is more likely
    p_value: float  # probability of a ratio as large by chance


@stored
class PowerLaw(Stored):
    """A power law p(x) ~ x^-exponent fitted to the leading eigenvalues (Clauset, Shalizi, Newman 2009)."""

    exponent: float
    standard_error: float
    smallest: float  # eigenvalue that the law is fitted to
    count: int  # of eigenvalues at or above it
    of: int  # leading eigenvalues that are known individually
    distance: float  # Kolmogorov-Smirnov
    p_value: float  # the share of samples of the law that fit it less well
    alternatives: list[Alternative]
    rejected: bool  # p_value below 0.1, or an alternative more likely with a p_value below 0.1


@stored
class MarchenkoPastur(Stored):
    """The Marchenko-Pastur law with the bulk's mean v and variance, and whether the bulk follows it."""

    fits: bool | None  # within the errors; None: too few probes or steps to tell
    variance: Summary  # v
    ratio: Summary  # q, of rows to columns
    edge: Summary  # v (1 + sqrt q)^2
    distance: float  # the largest between the two cumulative distributions
    resolution: float  # largest half-width of the error band
    count: int  # of eigenvalues in the bulk
    zeros: int = 0  # eigenvalues not distinguished from zero, which are excluded from the bulk


@stored
class Summaries(Stored):
    """Summary numbers of a spectrum; None for those that are left out."""

    effective_rank: Summary | None  # tr A / lambda_max
    stable_rank: Summary | None  # tr A^2 / lambda_max^2
    participation_ratio: Summary | None  # (tr A)^2 / tr A^2
    entropy: Summary | None  # of |eigenvalue| / sum |eigenvalue|, in nats
    entropy_rank: Summary | None  # its exponential (Roy, Vetterli 2007)
    outlier_share: Summary | None  # of the trace, in the outliers above the bulk
    power_law: PowerLaw | None
    marchenko_pastur: MarchenkoPastur | None
    damping: float | None = field(default=None, metadata=written(omitted=lambda s: s.damping is None))
    log_determinant: Summary | None = None  # of A + damping I
    left_out: dict[str, str] = field(default_factory=dict)  # the reason, by name
