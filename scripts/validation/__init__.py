"""Published and closed-form numbers beside ours. Each module has `rows()`, which measures what one publication says."""
