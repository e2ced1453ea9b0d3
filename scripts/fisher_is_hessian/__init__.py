"""The experiment: when is the Fisher the Hessian? Exact matrices of small networks, over training."""
