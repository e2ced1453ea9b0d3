"""Curves and numbers of a spectral measure: density, confidence bands, outliers, summaries."""
