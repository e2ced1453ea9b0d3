"""Checks and measurements of spectra on a CUDA machine, part by part within a time budget."""
