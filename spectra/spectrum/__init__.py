"""A spectral measure as curves and numbers: density, bands, outliers, summaries."""
