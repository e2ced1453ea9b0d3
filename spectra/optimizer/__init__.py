"""The preconditioner of an optimizer, read from its state: how curved the loss is as that optimizer meets it.

A step of an adaptive optimizer is -eta P^-1 m, with a diagonal P that its state holds and a momentum m. It meets
P^-1/2 A P^-1/2 where gradient descent meets A, and its threshold of stability is one for those eigenvalues (Cohen et
al. 2022, "Adaptive gradient methods at the edge of stability").
"""
