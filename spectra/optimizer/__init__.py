"""The preconditioner of an optimizer, computed from its state, for the curvature in the optimizer's own coordinates.

A step of an adaptive optimizer is -eta P^-1 m, with a diagonal P from its state and a momentum m. Its stability depends
on P^-1/2 A P^-1/2 as that of gradient descent depends on A, so its threshold of stability is for the eigenvalues of
that matrix (Cohen et al. 2022, "Adaptive gradient methods at the edge of stability").
"""
