"""The matrices over examples among those of a run, and their methods: they are made whole where memory holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectra.curvature.factor.gram import LARGEST
from spectra.curvature.matrices import KERNELS
from spectra.run.network import Network

if TYPE_CHECKING:
    from spectra.run.session import Session


def kernels(session: Session) -> list[str]:
    """The names of the matrices over examples; a matrix of the user's own may be called as they are."""
    return [name for name in session.names if name in KERNELS and isinstance(session.subject, Network)]


def exact_kernels(session: Session) -> list[str]:
    """Those of which the dense matrix is small enough to be held."""
    found = kernels(session)
    return found if found and sum(map(len, session.problem.batches)) <= LARGEST else []


def exact_method(session: Session, asked: str) -> str:
    """The method for their eigenvalues: exact ones from the dense matrix, unless it is too large or another is asked
    for.
    """
    return "gram" if asked == "lanczos" and exact_kernels(session) else asked
