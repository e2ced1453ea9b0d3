"""Several matrices at work at once: what each may take, what is written down of it, where it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spectra.cli.session import SMALLEST_CHECKED, Session
from spectra.cli.terminal import note


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
        from spectra.operator import CHECKS, check_operator

        self.curvature.prepare()
        if limit is None or limit >= SMALLEST_CHECKED:
            start = time.perf_counter()
            self.noise, self.checks = check_operator(self.operator, generator), CHECKS
            self.seconds = time.perf_counter() - start

    def measured(self, answer, spent: int, seconds: float):
        """A measurement of an answer that took so many products and seconds besides the checks."""
        from spectra.measurement import measured

        cost = {"products": self.checks + spent, "seconds": self.seconds + seconds}
        return measured(self.curvature, answer, setup_seconds=self.curvature.setup_seconds, noise=self.noise, **cost)


@dataclass
class Together:
    """Matrices that share the memory of `count`."""

    session: Session
    count: int

    def matrix(self, problem, name: str, products: int, journal: str | None = None) -> Prepared:
        """The matrix `name` of a problem, for so many products; `journal` names what is written down, else its name."""
        from spectra.cluster.distributed import distributed
        from spectra.curvature.operator import Curvature
        from spectra.memory import memory_share
        from spectra.resume.journal import Remembering

        memory = self.session.options["memory"] or memory_share(problem.device)
        expected = min(products, self.session.options["max_products"] or products)
        matrix = Curvature(problem, name, memory // self.count, expected)
        operator = distributed(matrix)
        if state := self.session.state:
            kept = state.journal(journal or name)
            if held := kept.held(matrix.shape[0] * matrix.dtype.itemsize):
                note(f"{journal or name}: goes on after {held} products of an earlier run ({state.directory})")
            operator = Remembering(operator, kept)
        return Prepared(matrix, operator)


@contextmanager
def resumable(session: Session) -> Iterator[None]:
    """Tells where what is done is held, if the command is interrupted; an error of the user's input leaves nothing."""
    from spectra.errors import SpectraError

    try:
        yield
    except SpectraError:
        if session.state:
            session.state.remove()  # the same command would end the same way
        raise
    except KeyboardInterrupt as error:
        if session.state:
            error.args = (f"{session.state.directory} holds what is done, and the same command goes on from there",)
        raise
