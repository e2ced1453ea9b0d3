"""Cost of products, eigenvalues, traces and densities: spectra and other tools on the same problems."""
