"""The register of matrices: names, a sentence each, and where they are. It loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrix:
    """One entry: what the command line, the tests and error messages say of a matrix."""

    sentence: str
    path: str  # of a function (problem, batch) -> (vector -> product)
    squared: bool = False  # products of gradients: grows with the square of the loss, and has no weight decay
    distribution: bool = False  # needs the loss to be -log p of some model distribution
    centred: bool = False  # less g g', g the gradient of the mean loss
    split: bool = False  # depends on how the data are split into batches
    indefinite: bool = False  # more than J' M J

    def semidefinite(self, loss: object) -> bool:
        """Whether no eigenvalue is negative, by definition: J' M J with M of squares, or of a loss that is -log p."""
        return not self.indefinite and (self.squared or hasattr(loss, "draw"))


MATRICES = {
    "hessian": Matrix(
        "second derivative of the mean loss; indefinite",
        "spectra.curvature.hessian:linearise",
        indefinite=True,
    ),
    "ggn": Matrix(
        "generalised Gauss-Newton: the Hessian less the model's own curvature",
        "spectra.curvature.output_space:ggn",
    ),
    "fisher": Matrix(
        "exact Fisher, over the labels that the model itself expects",
        "spectra.curvature.output_space:fisher",
        distribution=True,
    ),
    "fisher-mc": Matrix(
        "the same with --mc-samples labels drawn for each example",
        "spectra.curvature.output_space:fisher_mc",
        distribution=True,
    ),
    "fisher-empirical": Matrix(
        "mean outer product of the gradients of single examples, with the data's labels",
        "spectra.curvature.output_space:fisher_empirical",
        squared=True,
    ),
    "gradient-covariance": Matrix(
        "fisher-empirical less g g', g the mean gradient: the noise of stochastic gradients",
        "spectra.curvature.output_space:fisher_empirical",
        squared=True,
        centred=True,
    ),
    "fisher-batch": Matrix(
        "outer products of the gradients of whole batches, often taken for fisher-empirical; depends on --batch-size",
        "spectra.curvature.gradients:fisher_batch",
        squared=True,
        split=True,
    ),
}
