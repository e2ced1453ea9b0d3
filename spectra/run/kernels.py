"""The methods for matrices over examples, which are made whole where memory holds them."""

from __future__ import annotations

from spectra.curvature.factor.gram import LARGEST
from spectra.problem.problem import Problem


def is_held(problem: Problem) -> bool:
    """Whether the dense matrix over the examples is small enough to be held."""
    return sum(map(len, problem.batches)) <= LARGEST


def exact_method(asked: str, problem: Problem) -> str:
    """The method for eigenvalues: exact ones from the dense matrix, unless it is too large or another is asked for."""
    return "gram" if asked == "lanczos" and is_held(problem) else asked
