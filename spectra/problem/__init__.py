"""The Problem: a model, a loss, batches of data and the parameters at one point. It knows no matrix and no method."""
