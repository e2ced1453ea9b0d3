"""What a run is about: something that has matrices by name. There are two kinds, a network and operators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from spectra.operator import Shaped, SymmetricOperator
from spectra.problem.problem import Processes
from spectra.records.problem import ProblemRecord


class Matrix(SymmetricOperator, Protocol):
    """A matrix with what a measurement tells of it."""

    name: str
    setup_seconds: float
    derivative_check: Any  # how a product compares with differences; None: not asked for

    @property
    def path(self) -> str:
        """The way in which products are made."""
        ...

    @property
    def precision(self) -> str:
        """The precision of products."""
        ...

    @property
    def kept_bytes(self) -> int:
        """The bytes that are kept between products."""
        ...

    @property
    def peak_bytes(self) -> int:
        """The bytes that are kept between products and that one product takes."""
        ...

    @property
    def semidefinite(self) -> bool:
        """Whether no eigenvalue is negative, by definition."""
        ...

    def prepare(self) -> None:
        """Make products ready."""
        ...


class Subject(Protocol):
    """What a run is about."""

    names: tuple[str, ...]  # of its matrices, once loaded
    about: ProblemRecord  # once loaded
    told: tuple[str, ...]  # which the user should know before the work, once loaded
    computes: str  # what makes products, in words

    def device(self) -> torch.device:
        """The device on which it is or will be. Raises SpectraError where there is no such device."""
        ...

    def refuse_early(self, device: torch.device) -> None:
        """Raise SpectraError for what can be refused before anything is loaded."""
        ...

    def processes(self, device: torch.device) -> Processes:
        """The processes that share the work, once all are there."""
        ...

    def undisturbed(self) -> AbstractContextManager[Any]:
        """A context that leaves the caller's own as it was found."""
        ...

    def load(self, processes: Processes, begins: Callable[[str], None]) -> None:
        """Make all ready for matrices; `begins` is told of each stage. Raises SpectraError."""
        ...

    @property
    def space(self) -> Shaped:
        """The vectors that all its matrices multiply, as they are sharded over processes."""
        ...

    @property
    def classes(self) -> int | None:
        """The number of classes that its outputs tell apart; None where there are none."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """The inputs on which numbers depend, besides what was asked for."""
        ...

    def matrix(self, session: Any, name: str, products: int, memory: int | None, precision: str | None) -> Matrix:
        """The matrix `name`, for so many products, within so much memory."""
        ...

    def distributed(self, matrix: Any) -> SymmetricOperator:
        """The matrix on vectors sharded over the processes, preconditioned where that is asked for; of a single
        process, and as it is, the matrix itself.
        """
        ...
