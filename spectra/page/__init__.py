"""One HTML file from results: tables as on the terminal, figures, the problem, and how to repeat it.

Without scripts and without the network: everything that the page shows is inside it.
"""
