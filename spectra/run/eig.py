"""Eigenvalues at the ends of the spectrum: the settings, and the function that makes their record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

from spectra.curvature.matrices import refuse_gram
from spectra.defaults import IEEE, TOLERANCE, K
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.limits import refuse_dense, refuse_k, refuse_which
from spectra.krylov.methods import EIG, KERNEL_EIG, POLISHED
from spectra.krylov.placement import Placement
from spectra.krylov.results import without_vectors
from spectra.krylov.sampling import with_sampling_errors
from spectra.operator import Shaped, SymmetricOperator
from spectra.records.eig import LARGEST_VECTORS, EigResult, eig_results
from spectra.records.record import Record
from spectra.run import input_blocks
from spectra.run.kernels import exact_method, kernels
from spectra.run.measurement import Measurement
from spectra.run.session import Session
from spectra.spectrum.localisation import localisation_of


@dataclass(frozen=True)
class EigSettings:
    """The settings of eigenvalues.

    Attributes:
        k: the number of eigenvalues.
        which: their end: LM, LA, SA or BE.
        method: a method of EIG.
        tolerance: the residual / |value| to reach.
    """

    k: int = K
    which: str = "LM"
    method: str = "lanczos"
    tolerance: float = TOLERANCE

    command = "eig"
    less_memory = ("`k`", "choose fewer, or fewer parameters with `params`")

    def refuse(self, matrices: Sequence[str]) -> None:
        if self.method == "gram":
            for name in matrices:
                refuse_gram(name)
        if self.method == "power":
            refuse_which(self.which)

    def basis(self, space: Shaped) -> Placement | None:
        return basis_of(space, self.k) if self.method == "lanczos" else None

    def refuse_size(self, size: int, products: int | None) -> None:
        refuse_k(self.k, size)
        if self.method == "dense":
            refuse_dense(size, products)


def lean(solve: Callable[..., Any], save_vectors: bool, operator: SymmetricOperator, **options: Any) -> Any:
    """The pairs from `solve`, without vectors that will not be saved, since the next matrix needs their memory."""
    pairs = with_sampling_errors(solve(operator, **options), operator)
    return pairs if save_vectors or pairs.vectors.nbytes <= LARGEST_VECTORS else without_vectors(pairs)


def eig(session: Session[EigSettings], save_vectors: bool = False) -> Record:
    """Compute the requested eigenvalues and save their record, with eigenvectors up to 1 GiB or if `save_vectors`."""
    session.load()
    settings = session.request.settings
    if session.request.wrt_inputs:
        found, method = input_blocks.eigenpairs(session, lambda solve: partial(lean, solve, save_vectors))
        record = session.record(found, [EigResult.by_example(one, method) for one in found])
        session.save_record(record)
        return record
    over_examples = kernels(session)
    others = [name for name in session.names if name not in over_examples]
    found = pairs(session, others, settings.method, EIG[settings.method], save_vectors)
    method = exact_method(session, settings.method)
    found += pairs(session, over_examples, method, KERNEL_EIG if method == "gram" else EIG[method], save_vectors)
    found.sort(key=lambda one: session.names.index(one.curvature))
    results = eig_results(found, settings.method, save_vectors)
    results = [r.changed(method=method) if r.curvature in over_examples else r for r in results]
    shapes = session.problem_record.get("shapes")
    for i, one in enumerate(found):
        held = localisation_of(one.answer, settings.which, None if one.curvature in over_examples else shapes)
        results[i] = results[i].changed(localisation=held)
    record = session.record(found, results)
    session.save_record(record)
    return record


def pairs(
    session: Session[EigSettings], names: Sequence[str], method: str, solver: str, save_vectors: bool
) -> list[Measurement]:
    """Compute the eigenpairs of these matrices with the function at the path `solver`."""
    if not names:
        return []
    settings = session.request.settings
    solve = partial(resolve_name(solver), k=settings.k, which=settings.which, tolerance=settings.tolerance)
    expected = 3 + 2 * settings.k if method == "gram" else 20 + 3 * settings.k
    precision = None if method in POLISHED else IEEE  # other methods cannot get below the noise
    found = partial(lean, solve, save_vectors)
    return session.measure(found, products=expected, precision=precision, names=names)
