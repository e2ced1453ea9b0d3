"""What is kept: records of results, as JSON and NPZ."""
