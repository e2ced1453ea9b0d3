"""The subject of a run, which has matrices by name: a network, or operators given by the user."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from spectra.operator import Shaped, SymmetricOperator
from spectra.problem.problem import Processes
from spectra.records.problem import ProblemRecord


class Matrix(SymmetricOperator, Protocol):
    """The interface of a matrix that can be measured."""

    name: str
    setup_seconds: float
    derivative_check: Any  # a product compared with finite differences; None: not requested

    @property
    def path(self) -> str:
        """How products are computed."""
        ...

    @property
    def precision(self) -> str:
        """The precision of products."""
        ...

    @property
    def kept_bytes(self) -> int:
        """The memory kept between products, in bytes."""
        ...

    @property
    def peak_bytes(self) -> int:
        """The memory kept between products plus that of one product, in bytes."""
        ...

    @property
    def semidefinite(self) -> bool:
        """Whether no eigenvalue is negative, by definition."""
        ...

    def prepare(self) -> None:
        """Do the work that is needed before the first product."""
        ...


class MatrixSource(Protocol):
    """The interface of the subject of a run."""

    names: tuple[str, ...]  # of its matrices, once loaded
    record: ProblemRecord  # once loaded
    initial_notes: tuple[str, ...]  # notes for the user before the work, once loaded
    computes: str  # what computes products, as text

    def device(self) -> torch.device:
        """The device of the subject. Raises SpectraError if there is no such device."""
        ...

    def refuse_early(self, device: torch.device) -> None:
        """Raise SpectraError for what can be refused before anything is loaded."""
        ...

    def processes(self, device: torch.device) -> Processes:
        """The processes that share the work, after all have joined."""
        ...

    def preserved(self) -> AbstractContextManager[Any]:
        """A context that restores the caller's model on leaving."""
        ...

    def load(self, processes: Processes, begins: Callable[[str], None]) -> None:
        """Load the subject; `begins` is called with each stage. Raises SpectraError."""
        ...

    @property
    def space(self) -> Shaped:
        """The vectors that its matrices multiply, sharded over processes."""
        ...

    @property
    def classes(self) -> int | None:
        """The number of classes of its outputs; None if there are none."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """The inputs on which the numbers depend, besides the options."""
        ...

    def matrix(self, session: Any, name: str, products: int, memory: int | None, precision: str | None) -> Matrix:
        """Make the matrix `name`, for this many products and this much memory."""
        ...

    def distributed(self, matrix: Any) -> SymmetricOperator:
        """The matrix on vectors sharded over processes, preconditioned if requested; otherwise the matrix itself."""
        ...
