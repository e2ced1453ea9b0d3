"""Code that runs inside of a user's training loop."""
