"""Examples that print a table: each file runs alone, and a test runs it on a smaller problem."""
