"""Directions and points of parameter space at a checkpoint, which `steps` and `surfaces` share."""
