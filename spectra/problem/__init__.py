"""A model, a loss, batches and parameters at one point: the Problem. Knows no matrix and no method."""
