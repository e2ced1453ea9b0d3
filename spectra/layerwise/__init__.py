"""Analysis of a matrix by diagonal blocks: layers, branches of the model, or channels."""
