"""The spectral density: its settings, and the function that makes its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spectra.defaults import DENSITY_PROBES, DENSITY_STEPS
from spectra.krylov.kernel import kernel_measure
from spectra.krylov.placement import Placement
from spectra.krylov.quadrature import basis_of, spectral_measure
from spectra.krylov.results import SpectralMeasure
from spectra.operator import Shaped
from spectra.records.precondition import titled
from spectra.records.record import Record
from spectra.run import input_blocks
from spectra.run.kernels import exact_kernels, kernels
from spectra.run.request import AnySize
from spectra.run.session import Session
from spectra.spectrum.recording import density_result

# A function of measures by name of the matrix, the file for the figure, and their thresholds of stability.
Draw = Callable[[dict[str, SpectralMeasure], Path, list[float | None]], None]


@dataclass(frozen=True)
class DensitySettings(AnySize):
    """The settings of a density: products per probe (`steps`), number of `probes`, and the `damping` X of A + X I."""

    steps: int = DENSITY_STEPS
    probes: int = DENSITY_PROBES
    damping: float | None = None

    command = "density"
    less_memory = ("`steps`", "choose fewer, or fewer parameters with `params`")

    def basis(self, space: Shaped) -> Placement | None:
        return basis_of(space, self.steps)


def density(session: Session[DensitySettings], draw: Draw) -> Record:
    """Compute the requested spectral measures, save their record and return it.

    `draw` draws the figure of the finite measures, if there is a directory for it.
    """
    session.load()
    settings = session.request.settings
    method = partial(spectral_measure, steps=settings.steps, probes=settings.probes)
    products = (settings.probes + 1) * settings.steps
    over_examples, exact = kernels(session), exact_kernels(session)
    if session.request.wrt_inputs:
        found, how = input_blocks.measures(session, method, products)
        methods = dict.fromkeys(session.names, how)
    else:
        methods = dict.fromkeys(exact, "gram")
        others = [name for name in session.names if name not in exact]
        found = session.measure(method, reuse=True, products=products, names=others) if others else []
        found += session.measure(kernel_measure, names=exact) if exact else []
        found.sort(key=lambda one: session.names.index(one.curvature))
    finite = {m.curvature: m.answer for m in found if m.answer.nodes.isfinite().all()}
    home = session.request.artifacts_dir or session.request.out
    path = home / "density.png" if home and finite else None
    other = session.request.wrt_inputs or session.request.preconditioner
    classes = None if other else session.matrix_source.classes  # which apply to the plain matrix only
    of_one = not session.request.wrt_inputs
    results = [
        density_result(one, path, None if one.curvature in over_examples else classes, settings.damping, of_one)
        for one in found
    ]
    record = session.record(found, [r.changed(method=methods.get(r.curvature, r.method)) for r in results])
    if path and session.first:
        found = session.problem_record.get("precondition")
        thresholds = [found.threshold_of(name) if found else None for name in finite]
        draw({titled(name, found): measure for name, measure in finite.items()}, path, thresholds)
    session.save_record(record)
    return record
