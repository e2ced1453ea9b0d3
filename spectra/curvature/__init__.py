"""The matrices of a problem: what each of them is. Knows nothing of methods."""
