"""Several matrices at work at once: what each may take, what is written down of it, where it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass

from spectra.run.session import SMALLEST_CHECKED, Session


@dataclass
class Prepared:
    """A matrix, and the operator that methods multiply by: of all ranks, its products written down."""

    curvature: object
    operator: object
    noise: float | None = None  # relative, of one product
    checks: int = 0  # products
    seconds: float = 0.0

    def check(self, generator, limit: int | None) -> None:
        """See that it is repeatable and symmetric, where the budget has room for that. Raises SpectraError."""
        from spectra.operator import Counting, check_operator

        self.curvature.prepare()
        if limit is None or limit >= SMALLEST_CHECKED:
            start = time.perf_counter()
            counted = Counting(self.operator)
            self.noise, self.checks = check_operator(counted, generator), counted.products
            self.seconds = time.perf_counter() - start

    def measured(self, answer, spent: int, seconds: float):
        """A measurement of an answer that took so many products and seconds besides the checks."""
        from spectra.run.measurement import measured

        again = self.operator.journal.seconds if hasattr(self.operator, "journal") else 0.0
        cost = {"products": self.checks + spent, "seconds": self.seconds + seconds + again}
        return measured(self.curvature, answer, setup_seconds=self.curvature.setup_seconds, noise=self.noise, **cost)


@dataclass
class Together:
    """Matrices that share the memory of `count`."""

    session: Session
    count: int

    @property
    def memory(self) -> int:
        """Bytes of each."""
        from spectra.memory import memory_share

        memory = self.session.options["memory"]
        return (memory_share(self.session.loaded.problem.device) if memory is None else memory) // self.count

    def matrix(self, problem, name: str, products: int, journal: str | None = None) -> Prepared:
        """The matrix `name` of a problem, for so many products; `journal` names what is written down, else its name."""
        from spectra.curvature.operator import Curvature

        expected = min(products, self.session.options["max_products"] or products)
        matrix = Curvature(problem, name, self.memory, expected, check=not self.session.options["no_check"])
        return Prepared(matrix, self.session.operator(matrix, journal or name))
