"""Prepare several matrices that are in use at the same time: memory, checks, journals and measurements."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from spectra.memory import memory_share
from spectra.operator import Counting, SymmetricOperator, in_ieee
from spectra.problem.problem import Problem
from spectra.product_checks import check_operator, measure_noise
from spectra.resume.journal import CheckpointedOperator
from spectra.run.loading import SMALLEST_CHECKED
from spectra.run.measurement import Measurement, measured, noise_fields
from spectra.run.session import Session


@dataclass
class PreparedMatrix:
    """A matrix, and the operator that methods multiply by, distributed over ranks and with its products logged."""

    curvature: Any  # a Curvature, or another `run.matrix_source.Matrix`
    operator: SymmetricOperator
    noise: float | None = None  # relative, of one product
    checks: int = 0  # products
    seconds: float = 0.0
    counted: Counting = field(init=False)  # the operator, which counts its products

    def __post_init__(self) -> None:
        self.counted = Counting(self.operator)

    def check(self, generator: torch.Generator, limit: int | None) -> None:
        """Check that the matrix is repeatable and symmetric, if the budget has room. Raises SpectraError."""
        self.curvature.prepare()
        if limit is None or limit >= SMALLEST_CHECKED:
            start = time.perf_counter()
            self.noise = check_operator(self.counted, generator)
            if in_ieee(self.counted) is not self.counted:
                self.counted.noise = measure_noise(self.counted, generator)
            self.checks = self.counted.products
            self.seconds = time.perf_counter() - start

    def measured(self, answer: Any, spent: int, seconds: float, apart: int = 0) -> Measurement:
        """Make the measurement of an answer that took `spent` products and `seconds`, besides the checks.

        `apart` of the products were computed in ieee by operators other than `counted`.
        """
        again = self.operator.journal.seconds if isinstance(self.operator, CheckpointedOperator) else 0.0
        cost = {"products": self.checks + spent, "seconds": self.seconds + seconds + again}
        noise = noise_fields(self.counted, self.noise)
        if self.counted.noise:
            noise["ieee_products"] += apart
        return measured(
            self.curvature, self.operator, answer, setup_seconds=self.curvature.setup_seconds, **noise, **cost
        )


@dataclass
class MatrixSet:
    """The matrices of a session that are in use at the same time; each gets 1/`count` of the memory."""

    session: Session
    count: int

    @property
    def memory(self) -> int:
        """The bytes that each matrix may take."""
        memory = self.session.request.memory
        return (memory_share(self.session.device) if memory is None else memory) // self.count

    def of(self, name: str, products: int) -> PreparedMatrix:
        """Prepare the matrix `name` of the session's subject for this many products."""
        matrix = self.session.matrix_source.matrix(self.session, name, products, self.memory, None)
        return PreparedMatrix(matrix, self.session.operator(matrix, name))

    def matrix(self, problem: Problem, name: str, products: int, journal: str | None = None) -> PreparedMatrix:
        """Prepare the matrix `name` of a problem for this many products, with its log under `journal` or its name."""
        matrix = self.session.matrix(problem, name, products, self.memory)
        return PreparedMatrix(matrix, self.session.operator(matrix, journal or name))
