"""Iterative and dense methods of linear algebra for symmetric operators; none of them depends on neural networks."""
