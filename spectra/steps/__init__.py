"""What the next step of an optimizer meets: slope, curvature and loss along it, and where it points."""
