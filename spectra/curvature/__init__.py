"""Matrices of a problem: each file is one, and knows nothing of methods."""
