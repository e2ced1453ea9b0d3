"""The covariance of the gradients of single examples: the empirical Fisher minus g g', g the mean gradient."""

from __future__ import annotations

from spectra.curvature.fisher_empirical import EmpiricalFisher


class GradientCovariance(EmpiricalFisher):
    """The covariance of the gradients of single examples."""

    subtracts_mean_gradient = True
