"""The spectral density: what can be asked, and the way from a request to what was found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from spectra.krylov.quadrature import spectral_measure
from spectra.run.measurement import Measurement
from spectra.run.request import AnySize
from spectra.run.session import Session


@dataclass(frozen=True)
class DensitySettings(AnySize):
    """How many random vectors, how many products of each; and X, to be told of A + X I."""

    steps: int = 80
    probes: int = 10
    damping: float | None = None

    command = "density"
    less_memory = ("--steps", "take fewer, or choose fewer parameters with --params")


def densities(session: Session) -> list[Measurement]:
    """The spectral measure of each matrix."""
    session.load()
    asked: DensitySettings = session.request.settings
    method = partial(spectral_measure, steps=asked.steps, probes=asked.probes)
    return session.measure(method, reuse=True, products=(asked.probes + 1) * asked.steps)
