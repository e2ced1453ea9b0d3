"""Run `spectra layers`: its settings, and the function that makes the record."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from spectra.cluster.distributed import distributed
from spectra.defaults import LAYERS_PROBES, RTOL, TOLERANCE
from spectra.krylov.bounds import kato_temple
from spectra.krylov.eigenpairs import basis_of
from spectra.krylov.placement import Placement
from spectra.krylov.results import Eigenpairs
from spectra.layerwise.layers import layers
from spectra.layerwise.parameter_blocks import (
    ParameterBlock,
    block_sums,
    diagonal_blocks,
    parameter_blocks,
    root_of,
    tied,
)
from spectra.layerwise.recording import layers_results
from spectra.operator import Shaped
from spectra.records.record import Record
from spectra.run.earlier_eigenpairs import earlier_which, eigenpairs
from spectra.run.matrix_set import MatrixSet, PreparedMatrix
from spectra.run.measurement import Measurement
from spectra.run.request import AnySize
from spectra.run.session import Session
from spectra.vectors import take_rows

LEADING = ("LM", "BE")  # choices of eig that include the eigenvalue of largest magnitude


class ResolvedSettings(NamedTuple):
    """The settings with defaults that depend on the kind of blocks."""

    k: int
    sort: str
    rtol: float


@dataclass(frozen=True)
class LayersSettings(AnySize):
    """The settings of `spectra layers`, see `layers.layers`; None: the default for this kind of blocks."""

    by: str = "layer"
    k: int | None = None
    sort: str | None = None
    method: str = "xdiag"
    rtol: float | None = None
    tolerance: float = TOLERANCE
    steps: int = 0
    probes: int = LAYERS_PROBES

    command = "layers"
    less_memory = ("`k`", "ask for fewer, or choose fewer parameters with `params`")

    def basis(self, space: Shaped) -> Placement | None:
        return basis_of(space, k) if (k := self.resolved().k) else None

    def resolved(self) -> ResolvedSettings:
        """The settings with defaults filled in; channels are many, so by default they are ranked by saliency."""
        channels = self.by == "channel"
        return ResolvedSettings(
            k=(0 if channels else 1) if self.k is None else self.k,
            sort=self.sort or ("sensitivity" if channels else "order"),
            rtol=(0.05 if channels else RTOL) if self.rtol is None else self.rtol,
        )


def layerwise(session: Session[LayersSettings]) -> Record:
    """Analyse each matrix block by block, and return the record."""
    session.load()
    settings, problem = session.request.settings, session.problem
    blocks = parameter_blocks(problem, settings.by)
    root_of(session.network.preconditioner)  # raises an error before anything is computed
    with session.resumable():
        found = [measured(session, name, blocks) for name in session.names]
    record = session.record([], layers_results(found, settings.by, settings.resolved().sort, settings.method))
    return record.changed(problem=record.problem.changed(notes=[*(record.problem.notes or ()), *tied(problem)]))


def measured(session: Session[LayersSettings], name: str, blocks: list[ParameterBlock]) -> Measurement:
    """Analyse the blocks of one matrix, and count the cost."""
    settings, limit, problem = session.request.settings, session.request.max_products, session.problem
    resolved = settings.resolved()
    generator = torch.Generator().manual_seed(session.request.seed)
    together = MatrixSet(session, 2)
    matrix = together.matrix(problem, name, 200)
    with session.listener.work(name):
        matrix.check(generator, limit)
    network = session.network
    own = diagonal_blocks(distributed(matrix.curvature), blocks, problem, name, together.memory)
    own = network.preconditioned(own)
    start = time.perf_counter()
    found = layers(
        matrix.counted,
        session.remembered(own, f"{name}-blocks"),
        blocks,
        block_sums(problem, blocks, matrix.operator, root_of(network.preconditioner)),
        k=resolved.k,
        method=settings.method,
        rtol=resolved.rtol,
        ranked=settings.by == "channel" or resolved.sort == "sensitivity",
        tolerance=settings.tolerance,
        steps=settings.steps,
        probes=settings.probes,
        known=leading(session, matrix, name, limit) if resolved.k else None,
        generator=generator,
        max_products=None if limit is None else limit - matrix.checks,
        watch=lambda what: session.listener.work(f"{name}, {what}"),
    )
    apart = sum(part.products for part in (*found.eigenpairs, *found.measures))
    return matrix.measured(found, found.products, time.perf_counter() - start, apart)


def leading(
    session: Session[LayersSettings], matrix: PreparedMatrix, name: str, limit: int | None
) -> Eigenpairs | None:
    """The leading eigenpair from an earlier result of eig, if there is one."""
    path, agree = session.arrays_of_earlier(), session.processes.least
    if not agree(path is not None and earlier_which(path) in LEADING) or path is None:
        return None
    room = None if limit is None else max(0, limit - matrix.checks) // 4
    known = eigenpairs(path, matrix.counted, name, session.listener.note, agree, "taken", room)
    if known is None:
        return None
    first = [int(known.values.abs().argmax())]
    values, residuals = known.values[first], known.residuals[first]
    return replace(
        known,
        values=values,
        vectors=take_rows(known.vectors, first),
        residuals=residuals,
        error_estimates=kato_temple(values, residuals, known.values),
    )
