"""Record curvature from inside a user's training loop."""
