"""Methods: each sees a symmetric operator and a generator, and knows nothing of networks."""
