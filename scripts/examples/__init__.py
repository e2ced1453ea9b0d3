"""Examples that print a table. Each file runs alone, and a test runs it on a smaller problem."""
