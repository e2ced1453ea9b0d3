"""A study of when the Fisher is the Hessian: exact matrices of small networks during training."""
