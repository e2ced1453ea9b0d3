"""Factors F of matrices A = F'F, and their Gram matrices F F'."""
