"""The noise scales and the worst cases in a ball that `spectra step` computes."""

from __future__ import annotations

from spectra.records.fields import Stored, Vector, stored


@stored
class NoiseScale(Stored):
    """A noise scale in examples: a ratio of noise to signal, with its errors; None if the data do not determine it."""

    value: float | None
    standard_error: float | None
    sampling_error: float | None  # the part of it due to sampling of examples; None: not known
    lower: float | None  # the 95 % interval; None: no ratio is in it
    upper: float | None  # None: there is no upper bound, or no interval
    noise: float  # tr C or tr(HC), estimated for the population that the data are a sample of
    noise_error: float
    signal: float  # |g|^2 or g'Hg, likewise
    signal_error: float
    measured: float  # the signal on these data
    reason: str | None  # why there is no value
    without_sampling: str | None  # why the error over examples is not known


@stored
class Noise(Stored):
    """The noise of the gradient, and its simple noise scale tr C / |g|^2."""

    examples: int
    unit: str  # what an example is
    population: bool  # whether the data are the whole population, and not a sample
    note: str | None
    products: int  # spent on the simple noise scale
    simple: NoiseScale


@stored
class WorstCase(Stored):
    """The rise of the loss in a ball that gradient ascent found, a lower bound of the largest rise."""

    rho: float
    adaptive: bool  # whether distances are relative to each parameter's size
    rises: Vector  # after each step, the largest so far; nan if there is no step
    rounding: float | None  # standard deviation of a rise; None: not known
    forward: int  # passes over the data
    backward: int
    reason: str | None


@stored
class BallMaximum(Stored):
    """The largest rise of the quadratic model in a ball: at least `value`, and at most `value + error`."""

    rho: float
    adaptive: bool
    value: float
    error: float
    products: int
    converged: bool
