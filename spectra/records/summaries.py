"""The numbers of a spectrum as a whole, each with its errors, and why some are left out."""

from __future__ import annotations

from dataclasses import field

from spectra.records.fields import Stored, stored, written


@stored
class Summary(Stored):
    """A number that is read from nodes and weights."""

    value: float
    standard_error: float  # over probes
    quadrature_error: float | None  # for the same probes; None: not known


@stored
class Alternative(Stored):
    """The likelihood ratio of the power law to another law."""

    name: str
    ratio: float  # of logarithms, over its standard deviation; positive where the power law is the likelier
    p_value: float  # of a ratio as large by chance


@stored
class PowerLaw(Stored):
    """A power law p(x) ~ x^-exponent of the leading eigenvalues (Clauset, Shalizi, Newman 2009)."""

    exponent: float
    standard_error: float
    smallest: float  # eigenvalue from which on the law is fitted
    count: int  # of eigenvalues from there on
    of: int  # leading eigenvalues that are known one by one
    distance: float  # Kolmogorov-Smirnov
    p_value: float  # the share of samples of the law that fit it less well
    alternatives: list[Alternative]
    rejected: bool  # p_value below 0.1, or an alternative the likelier with a p_value below 0.1


@stored
class MarchenkoPastur(Stored):
    """The law of Marchenko and Pastur with the bulk's mean v and variance, and whether the bulk follows it."""

    fits: bool | None  # within chance, at the resolution of so many steps; None: too few probes or steps to tell
    variance: Summary  # v
    ratio: Summary  # q, of rows to columns
    edge: Summary  # v (1 + sqrt q)^2
    distance: float  # the largest of the two distributions
    resolution: float  # half the width of the band for it, at its widest
    count: int  # of eigenvalues in the bulk
    zeros: int = 0  # eigenvalues not told from zero, beside those of the bulk, which has none then


@stored
class Summaries(Stored):
    """What a spectral measure tells of the spectrum as a whole; None for what is left out."""

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
