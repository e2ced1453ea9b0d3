"""Defaults that commands, calls, methods and forecasts share. This module loads nothing."""

K = 10  # eigenvalues of eig, leading eigenvectors of compare
TOLERANCE = 1e-3  # of an eigenpair: residual over |eigenvalue|
RTOL = 0.01  # of a trace: standard error over |trace|
DENSITY_STEPS, DENSITY_PROBES = 80, 10  # of density: products per probe, and random vectors
COMPARE_STEPS, COMPARE_PROBES = 40, 16  # likewise of compare
LAYERS_STEPS, LAYERS_PROBES = 40, 4  # likewise of a density of layers
RHO, ADAPTIVE_RHO, ASCENT_STEPS = 0.05, 0.5, 5  # of step: radii of the balls of SAM and ASAM, and steps of ascent
SAVE_EVERY = 5.0  # minutes between saves of an unfinished run
IEEE = "ieee"
PRECISIONS = (IEEE, "tf32", "bf16")  # of products
EXACT = "exact"
PRODUCTS = (EXACT, "finite-difference", "forward-difference")  # ways to make products with the Hessian
