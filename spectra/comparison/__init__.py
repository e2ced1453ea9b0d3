"""Comparison of several matrices: distances, eigenspaces, spectra, and the causes of differences."""
