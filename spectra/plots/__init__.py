"""Figures for a page: matrices (or checkpoints) side by side, each with its error."""

from spectra.plots.density import density_figure
from spectra.plots.eigenvalues import eigenvalue_figure
from spectra.plots.style import save_figure
from spectra.plots.trace import trace_figure

__all__ = ["density_figure", "eigenvalue_figure", "save_figure", "trace_figure"]
