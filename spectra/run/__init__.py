"""Carry out a request about a problem and make its record. Nothing here knows of the command line.

`eig`, `trace`, `density` and `inspection` hold the settings of a command and the function that runs it. For `spectra
compare`, `layers`, `landscape` and `step` both are in `run.py` of the packages `comparison`, `layerwise`, `surfaces`
and `steps`. All work in a `session.Session`, which loads the problem, calls the method and saves the result.
"""
