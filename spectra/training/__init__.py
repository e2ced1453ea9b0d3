"""What runs inside of someone's training loop."""
