"""The matrices of a problem, one file each, and the engine that makes their products. No method of linear algebra
is known here.
"""
