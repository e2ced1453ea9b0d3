"""The panel on noise scales: the progress of a step with the gradient of a batch, relative to the full gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from spectra.plots.names import settable
from spectra.plots.style import head, legend_below, line_style
from spectra.records.noise import Noise, NoiseScale

POINTS = 200
LEFT = 3.0  # decades below the noise scales, as far as batches are drawn
RIGHT = 2.0


def scales_of(noise: Noise | None, entries: Any) -> dict[str, NoiseScale]:
    """The noise scales that were estimated, by name: the simple one, and the full ones by their matrices."""
    if noise is None:
        return {}
    known = {"simple": noise.simple} | {entry.curvature: entry.full_noise for entry in entries if entry.full_noise}
    return {name: scale for name, scale in known.items() if scale.lower is not None}


def draw_noise(axes: Axes, scales: dict[str, NoiseScale], unit: str, width: float) -> None:
    """Draw 1 / (1 + noise scale / batch) with its 95 % interval; only the upper end where the scale is unbounded."""
    ends = [end for scale in scales.values() for end in (scale.lower, scale.value, scale.upper) if end]
    batch = np.geomspace(max(1.0, min(ends) / 10**LEFT), max(10.0, max(ends) * 10**RIGHT), POINTS)
    for i, (name, scale) in enumerate(scales.items()):
        style = line_style(i, len(scales))
        high = batch / (batch + (scale.lower or 0.0))
        low = np.zeros_like(batch) if scale.upper is None else batch / (batch + scale.upper)
        label = settable(name if name == "simple" else f"full, {name}")
        bound = "" if scale.value is not None else " (upper bound)"
        axes.fill_between(batch, low, high, color=style["color"], alpha=0.15 if scale.value else 0.08, linewidth=0)
        line = high if scale.value is None else batch / (batch + scale.value)
        axes.plot(batch, line, label=f"{label}{bound}", **style)
        if scale.value is not None:
            axes.plot(scale.value, 0.5, "o", color=style["color"], markersize=5, markeredgecolor="white", zorder=8)
    axes.axhline(0.5, color="0.6", linewidth=0.7, zorder=1)
    axes.set(xscale="log", xlim=(batch[0], batch[-1]), ylim=(0, 1.02), xlabel=f"batch size ({unit}s)")
    axes.set_ylabel("progress of a step")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    legend_below(axes, width)
    dots = "; dots: noise scales" if any(scale.value is not None for scale in scales.values()) else ""
    head(axes, f"gradient noise\nshaded: 95 % interval{dots}", width)
