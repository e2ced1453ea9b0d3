"""Tables of noise scales and of the worst case in a ball, from a record of `spectra step`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spectra.records.noise import NoiseScale
from spectra.records.step import StepPoint, StepResult
from spectra.tables.landscape import cell
from spectra.tables.results import new_table
from spectra.wording import brief, counted

NOISE = (
    "It is noise / signal: tr C / |g|² (simple) or tr(AC) / g'Ag (full), with C the covariance of the gradients of "
    "single examples. ± is a standard error."
)
WORST = (
    "The largest rise of the loss within distance rho. Gradient ascent, starting with the step of SAM, gives a lower "
    "bound. The columns of matrices give the largest rise of the quadratic model. Adaptive: distance is the norm of "
    "d_i / theta_i."
)


def noise_parts(point: StepPoint, results: Sequence[StepResult]) -> Iterator[Any]:
    """Text and table of noise scales; nothing if they were not computed."""
    noise = point.noise
    if point.without_noise:
        yield f"\nnoise scale left out: {point.without_noise}"
    if noise is None:
        return
    data = "the whole population" if noise.population else "a sample"
    examples = counted(noise.examples, noise.unit)
    yield f"\nNoise scale in {noise.unit}s, from {examples} treated as {data}. {NOISE}"
    table = new_table("", "noise scale", "95 %", "noise", "signal")
    rows = [("simple", noise.simple)]
    rows += [(f"full, {entry.curvature}", entry.full_noise) for entry in results if entry.full_noise]
    for name, scale in rows:
        table.add_row(name, value_cell(scale), interval_cell(scale), *number_cells(scale))
    yield table
    for name, scale in rows:
        if scale.reason:
            yield f"{name}: {scale.reason}"
        if scale.without_sampling:
            yield f"{name}: the error includes random vectors only, not the sample: {scale.without_sampling}"
    yield from (f"full, {entry.curvature}: {entry.without_full}" for entry in results if entry.without_full)
    if noise.note:
        yield noise.note


def value_cell(scale: NoiseScale) -> str:
    """A noise scale with its error, or a dash."""
    if scale.value is None or scale.standard_error is None:
        return "-"
    return brief(scale.value, scale.standard_error)


def interval_cell(scale: NoiseScale) -> str:
    """The interval, as `62 to 110` or `at least 62`; a dash if it is empty, and nothing if it is a point."""
    if scale.lower is None:
        return "-"
    if cell(scale.lower) == cell(scale.upper):
        return ""
    return f"at least {cell(scale.lower)}" if scale.upper is None else f"{cell(scale.lower)} to {cell(scale.upper)}"


def number_cells(scale: NoiseScale) -> tuple[str, str]:
    """Noise and signal, each with its error."""
    return brief(scale.noise, scale.noise_error), brief(scale.signal, scale.signal_error)


def worst_parts(point: StepPoint, results: Sequence[StepResult]) -> Iterator[Any]:
    """Text and table of the worst case in balls; nothing if it was not computed."""
    if not point.worst:
        return
    matrices = [entry for entry in results if entry.balls]
    yield f"\nWorst case in a ball. {WORST}"
    table = new_table("rho", "first step", counted(len(point.worst[0].rises), "step"), *(m.curvature for m in matrices))
    for worst in point.worst:
        rises = [cell(None)] * 2
        if worst.reason is None and worst.rounding is not None:
            rises = [brief(float(rise), worst.rounding) for rise in (worst.rises[0], worst.rises[-1])]
        models = []
        for entry in matrices:
            found = next((one for one in entry.balls if (one.rho, one.adaptive) == (worst.rho, worst.adaptive)), None)
            models.append("-" if found is None else brief(found.value, found.error))
        table.add_row(f"{worst.rho:g}{' adaptive' if worst.adaptive else ''}", *rises, *models)
    yield table
    yield from (f"rho {worst.rho:g}: {worst.reason}" for worst in point.worst if worst.reason)
