"""What a product, a spectrum, a trace and a density cost: spectra and its peers on the same problems, side by side."""
