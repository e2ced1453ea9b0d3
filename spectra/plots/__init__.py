"""Figures that compare matrices or checkpoints, with error bars or bands."""

from spectra.plots.density import density_figure
from spectra.plots.eigenvalues import eigenvalue_figure
from spectra.plots.style import save_figure
from spectra.plots.trace import trace_figure

__all__ = ["density_figure", "eigenvalue_figure", "save_figure", "trace_figure"]
