"""Factors F of matrices A = F'F, and the Gram matrices F F'."""
