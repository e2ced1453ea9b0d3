"""The HTML page of `spectra report`: the problem, figures, tables as on the terminal, and command lines.

The page needs no scripts and no network: everything that it shows is in the one file.
"""
