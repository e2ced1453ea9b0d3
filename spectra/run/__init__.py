"""From a problem and a request to a finished record. Knows nothing of the command line.

`eig`, `trace`, `density` and `inspection` hold the settings of the command of that name and the function that carries
it out. For `spectra compare`, `layers`, `landscape` and `step` both are in `run.py` of the rooms `comparison`,
`layerwise`, `surfaces` and `steps`. All work in a `session.Session`, which loads the problem, calls the method and
keeps what comes out.
"""
