"""The matrices of a problem, one file each, and the engine that makes their products. No method is known here."""
