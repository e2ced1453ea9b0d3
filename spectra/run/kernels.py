"""The matrices over examples (kernels) of a run, and their methods: they are computed whole if they fit in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectra.curvature.factor.gram import LARGEST
from spectra.curvature.matrices import KERNELS
from spectra.run.network import Network

if TYPE_CHECKING:
    from spectra.run.session import Session


def kernels(session: Session) -> list[str]:
    """The names of the matrices over examples; a given operator may have such a name, and is not one."""
    return [name for name in session.names if name in KERNELS and isinstance(session.matrix_source, Network)]


def exact_kernels(session: Session) -> list[str]:
    """The names of the matrices over examples that are small enough to be computed whole."""
    found = kernels(session)
    return found if found and sum(map(len, session.problem.batches)) <= LARGEST else []


def exact_method(session: Session, requested: str) -> str:
    """The method for eigenvalues of kernels: exact by default, unless the matrix is too large."""
    return "gram" if requested == "lanczos" and exact_kernels(session) else requested
