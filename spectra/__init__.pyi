"""Every public name and where it is, for type checkers and editors; `__init__.py` reads the names here too."""

from spectra.calls import density as density
from spectra.calls import eig as eig
from spectra.calls import trace as trace
from spectra.comparison.comparison import compare as compare
from spectra.curvature.engine.gradients import mean_gradient as mean_gradient
from spectra.curvature.evaluation import accuracy as accuracy
from spectra.curvature.evaluation import cut_batches as cut_batches
from spectra.curvature.evaluation import mean_loss as mean_loss
from spectra.curvature.matrices import MATRICES as MATRICES
from spectra.curvature.operator import Curvature as Curvature
from spectra.errors import SpectraError as SpectraError
from spectra.inputs.problem import load_problem as load_problem
from spectra.krylov.eigenpairs import eigenpairs as eigenpairs
from spectra.krylov.hutchinson import hutch_plus_plus as hutch_plus_plus
from spectra.krylov.hutchinson import hutchinson as hutchinson
from spectra.krylov.quadrature import spectral_measure as spectral_measure
from spectra.krylov.results import Eigenpairs as Eigenpairs
from spectra.krylov.results import SpectralMeasure as SpectralMeasure
from spectra.krylov.results import TraceEstimate as TraceEstimate
from spectra.krylov.xtrace import xtrace as xtrace
from spectra.layerwise.by_layer import layers as layers
from spectra.operator import Counting as Counting
from spectra.operator import Deflated as Deflated
from spectra.operator import Shifted as Shifted
from spectra.operator import SymmetricOperator as SymmetricOperator
from spectra.operator import check_operator as check_operator
from spectra.operator import to_scipy as to_scipy
from spectra.plots import density_figure as density_figure
from spectra.plots import eigenvalue_figure as eigenvalue_figure
from spectra.plots import save_figure as save_figure
from spectra.plots import trace_figure as trace_figure
from spectra.plots.comparison import comparison_figure as comparison_figure
from spectra.plots.evolution import evolution_figure as evolution_figure
from spectra.plots.evolution_files import evolution_files as evolution_files
from spectra.plots.layers import layers_figures as layers_figures
from spectra.problem.cross_entropy import CrossEntropy as CrossEntropy
from spectra.problem.losses import BinaryCrossEntropy as BinaryCrossEntropy
from spectra.problem.losses import CustomLoss as CustomLoss
from spectra.problem.losses import MeanSquaredError as MeanSquaredError
from spectra.problem.problem import Batch as Batch
from spectra.problem.problem import Problem as Problem
from spectra.records.record import load_result as load_result
from spectra.sweeps.evolution import evolution_of as evolution_of
from spectra.training.watch import watch as watch

__version__: str
