"""Convert noise scales and worst cases to their records."""

from __future__ import annotations

import math

import numpy as np

from spectra.krylov import trust_region
from spectra.records.noise import BallMaximum, Noise, NoiseScale, WorstCase
from spectra.steps import noise_scale, worst_case
from spectra.steps.worst_case import Ball


def scale_record(found: noise_scale.NoiseScale) -> NoiseScale:
    """The record of a noise scale."""
    (lower, upper), (noise_error, signal_error) = found.interval, found.ratio.errors
    return NoiseScale(
        value=found.value,
        standard_error=found.standard_error,
        sampling_error=found.sampling_error,
        lower=finite(lower),
        upper=finite(upper),
        noise=found.ratio.numerator,
        noise_error=noise_error,
        signal=found.ratio.denominator,
        signal_error=signal_error,
        measured=found.signal,
        reason=found.reason,
        without_sampling=found.without_sampling,
    )


def noise_record(point: noise_scale.NoiseAt) -> Noise:
    """Compute the simple noise scale, and return the record of the noise."""
    simple, (unit, note) = point.simple(), noise_scale.unit_of(point.deviations)
    return Noise(
        examples=point.deviations.count,
        unit=unit,
        population=point.population,
        note=note,
        products=math.ceil(point.deviations.products),
        simple=scale_record(simple),
    )


def worst_record(found: worst_case.WorstCase) -> WorstCase:
    """The record of gradient ascent in a ball."""
    return WorstCase(
        rho=found.rho,
        adaptive=found.adaptive,
        rises=np.array(found.rises),
        rounding=finite(found.rounding),
        forward=found.forward,
        backward=found.backward,
        reason=found.reason,
    )


def ball_record(ball: Ball, found: trust_region.BallMaximum) -> BallMaximum:
    """The record of the quadratic model's largest rise in a ball."""
    numbers = {name: getattr(found, name) for name in ("value", "error", "products", "converged")}
    return BallMaximum(rho=ball.rho, adaptive=ball.adaptive, **numbers)


def finite(value: float) -> float | None:
    """The value; None if it is not finite."""
    return value if math.isfinite(value) else None
