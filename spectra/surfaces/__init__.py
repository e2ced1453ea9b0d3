"""Evaluation of the loss along lines and in planes of parameter space."""
