"""Axes for values over many powers of ten: asinh for both signs, and logarithmic for magnitudes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter

from spectra.errors import SpectraError
from spectra.plots.style import figure_of, with_note

FEW, VERY_FEW = 100, 5  # high / low of a logarithmic axis, below which labels at powers of ten are too few


def asinh_axis(panels: tuple[Axes, ...], grid: np.ndarray, scale: float, inches: float | None = None) -> None:
    """Make the shared x-axis of panels linear within `scale` of zero (shaded) and logarithmic beyond."""
    axes = panels[-1]
    axes.set_xscale("asinh", linear_width=scale)
    axes.set_xlim(grid[0], grid[-1])
    inches = inches or figure_of(axes).get_figwidth() - 1.2
    major, minor = asinh_ticks(grid[0], grid[-1], scale, labels=inches / 0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(major)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(major.values())))
    axes.xaxis.set_minor_locator(FixedLocator(minor))
    for panel in panels:
        panel.axvspan(-scale, scale, color="0.94", zorder=0, linewidth=0)


def asinh_label(scale: float, inches: float) -> str:
    """The label of an axis of eigenvalues that `asinh_axis` made, in lines of at most so many inches."""
    return with_note("eigenvalue λ", f"(asinh axis, linear within {scientific(scale)} of zero)", inches)


def asinh_ticks(low: float, high: float, scale: float, labels: float) -> tuple[dict[float, str], list[float]]:
    """Ticks of an asinh axis with room for so many `labels`: {position: label} and minor positions.

    Labels are at zero and at every s-th power of ten of either sign, with the smallest s that leaves room. Where these
    are fewer than three, the most numerous is taken of other powers and of 1, 2 and 5 (or 1 and 3) times powers of ten.
    """
    least = (np.arcsinh(high / scale) - np.arcsinh(low / scale)) / labels
    largest = max(abs(low), abs(high))
    powers = range(int(np.floor(np.log10(scale))), int(np.floor(np.log10(largest))) + 1)

    def inside(positive: list[float]) -> list[float]:
        return [x for x in [-x for x in positive[::-1]] + [0.0] + positive if low <= x <= high]

    stride = max(1, int(np.ceil(least / np.log(10))))
    clear = scale * np.sinh(least)
    minor = inside([float(f"1e{power}") for power in powers])
    every = [
        inside([float(f"1e{power}") for power in powers if power % stride == first and 10.0**power >= clear])
        for first in range(stride)
    ]
    for major in every:
        if len(major) >= 3:
            return {x: power_of_ten(x) for x in major}, minor
    mantissas = (1, 2, 5) if least <= np.log(2) else (1, 3) if least <= np.log(3) else (1,)
    steps = [float(f"{m}e{power}") for power in powers[::stride] for m in mantissas]
    return {x: plain(x) for x in max(inside([x for x in steps if x >= clear]), *every, key=len)}, minor


def magnitude_axis(axes: Axes, name: str, magnitudes: np.ndarray, labels: float = np.inf) -> None:
    """Make the axis `name` ("x" or "y") logarithmic, with limits from `magnitudes` and not from error bars.

    It has room for so many `labels`, or for half as many where these are powers of ten.

    Raises SpectraError: all are zero.
    """
    magnitudes = magnitudes[magnitudes > 0]
    if not magnitudes.size:
        raise SpectraError("`log`: every value is zero, which a logarithmic axis cannot show; leave `log` out")
    low, high = magnitudes.min(), magnitudes.max()
    room = max((high / low) ** 0.06, 1.2)
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low / room, high * room)})
    axis = getattr(axes, f"{name}axis")
    brief = low >= 1e-3 and high < 1e4  # no powers of ten among the labels
    labels = labels if brief else labels / 2
    subs = closest(np.log10(high / low) / labels, (1, 2, 5) if brief else (1, 3))
    if high / low < VERY_FEW:
        axis.set_major_locator(MaxNLocator(int(min(5, max(labels, 1))), steps=[1, 2, 5, 10]))
    elif high / low < FEW:
        axis.set_major_locator(LogLocator(subs=subs))
    if high / low < VERY_FEW or (high / low < FEW and len(subs) > 1):
        axis.set_major_formatter(lambda value, _: scientific(value, 3))
    axis.set_minor_formatter(NullFormatter())


def closest(decades: float, subs: tuple[int, ...]) -> tuple[int, ...]:
    """The multiples of powers of ten to label: `subs`, or fewer where these are less than so many decades apart."""
    for some in (subs, (1, 3)):
        if min(np.diff(np.log10([*some, 10]))) >= decades:
            return some
    return (1,)


def plain(value: float, digits: int = 6) -> str:
    """A number without an exponent where that is short, with a typographic minus sign."""
    return f"{value:.{digits}g}".replace("-", "−")


def power_of_ten(value: float) -> str:
    """The power of ten nearest to a number, as mathtext."""
    sign = "-" if value < 0 else ""
    return rf"${sign}10^{{{round(np.log10(abs(value)))}}}$" if value else "0"


def scientific(value: float, digits: int = 2) -> str:
    """A number as mathtext, with a power of ten where it is large or small."""
    if 1e-3 <= value < 1e4:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return rf"${mantissa}\times10^{{{int(exponent)}}}$"
