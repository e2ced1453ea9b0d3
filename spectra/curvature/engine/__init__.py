"""The engine of matrix-vector products: batches, derivatives, traced graphs, and memory."""
