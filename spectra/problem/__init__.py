"""The `Problem`: a model, a loss, batches of data and parameters at one point. It knows no matrices or methods."""
