"""Methods of linear algebra. Each sees a symmetric operator and a random generator, and knows nothing of networks."""
