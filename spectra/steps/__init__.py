"""Analysis of the next step of an optimizer: slope, curvature and loss along it, noise scales, and worst cases."""
