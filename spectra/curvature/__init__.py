"""The matrices of a problem, one file each, and the engine that makes their products. It knows no method."""
