"""Spectral analysis of loss landscapes: the Hessian, the GGN and the Fisher matrices by their products.

Names are loaded when first used, so that `import spectra` (and with it every `--help`) needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "accuracy": "spectra.curvature.evaluation",
    "mean_gradient": "spectra.curvature.engine.gradients",
    "Batch": "spectra.problem.problem",
    "BinaryCrossEntropy": "spectra.problem.losses",
    "Counting": "spectra.operator",
    "CrossEntropy": "spectra.problem.cross_entropy",
    "Curvature": "spectra.curvature.operator",
    "CustomLoss": "spectra.problem.losses",
    "Deflated": "spectra.operator",
    "Eigenpairs": "spectra.krylov.results",
    "MATRICES": "spectra.curvature.matrices",
    "MeanSquaredError": "spectra.problem.losses",
    "Problem": "spectra.problem.problem",
    "Shifted": "spectra.operator",
    "SpectraError": "spectra.errors",
    "SpectralMeasure": "spectra.krylov.results",
    "SymmetricOperator": "spectra.operator",
    "TraceEstimate": "spectra.krylov.results",
    "check_operator": "spectra.operator",
    "compare": "spectra.comparison.comparison",
    "comparison_figure": "spectra.plots.comparison",
    "cut_batches": "spectra.curvature.evaluation",
    "density": "spectra.calls",
    "density_figure": "spectra.plots",
    "eigenvalue_figure": "spectra.plots",
    "eig": "spectra.calls",
    "eigenpairs": "spectra.krylov.eigenpairs",
    "evolution_figure": "spectra.plots.evolution",
    "evolution_files": "spectra.plots.evolution_files",
    "evolution_of": "spectra.sweeps.evolution",
    "hutch_plus_plus": "spectra.krylov.hutchinson",
    "hutchinson": "spectra.krylov.hutchinson",
    "layers": "spectra.layerwise.by_layer",
    "layers_figures": "spectra.plots.layers",
    "load_problem": "spectra.inputs.problem",
    "load_result": "spectra.records.record",
    "mean_loss": "spectra.curvature.evaluation",
    "save_figure": "spectra.plots",
    "spectral_measure": "spectra.krylov.quadrature",
    "to_scipy": "spectra.operator",
    "trace": "spectra.calls",
    "trace_figure": "spectra.plots",
    "watch": "spectra.training.watch",
    "xtrace": "spectra.krylov.xtrace",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spectra' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
