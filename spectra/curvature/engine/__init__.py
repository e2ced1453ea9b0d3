"""How products of matrices with vectors are made: batches, derivatives, traced graphs, and memory."""
