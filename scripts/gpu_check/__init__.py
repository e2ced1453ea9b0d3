"""What spectra does on a CUDA machine, checked and measured part by part within a budget of time."""
