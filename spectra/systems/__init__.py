"""Systems beyond layered networks for which Pearlmutter (1994) derives exact products.

They are fixed points of recurrent networks, Boltzmann machines, and weight perturbation.
"""
