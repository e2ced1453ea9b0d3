"""The vectors that the matrices of a problem multiply: their number of entries, dtype and device."""

from __future__ import annotations

import torch

from spectra.devices import device_of_vectors
from spectra.problem.problem import Problem


class Space:
    """The shape, dtype and device of the matrices of a problem, known before there is a matrix."""

    def __init__(self, problem: Problem):
        self.problem = problem

    @property
    def shape(self) -> torch.Size:
        """The shape (n, n)."""
        return torch.Size((self.problem.size, self.problem.size))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of vectors."""
        return self.problem.dtype

    @property
    def device(self) -> torch.device:
        """The device of vectors."""
        return device_of_vectors(self.problem.device)
